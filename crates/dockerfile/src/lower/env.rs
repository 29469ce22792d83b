//! Environment variables, in the order in which they were last set.

use crate::shell::Vars;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// Variables by name; setting one again moves it to the end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Env {
    order: BTreeMap<u64, (Rc<str>, Rc<str>)>,
    places: HashMap<Rc<str>, u64>,
    next: u64,
}

impl Env {
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        let name: Rc<str> = name.into();
        if let Some(old) = self.places.insert(Rc::clone(&name), self.next) {
            self.order.remove(&old);
        }
        self.order.insert(self.next, (name, value.into()));
        self.next += 1;
    }

    pub(crate) fn remove(&mut self, name: &str) {
        if let Some(old) = self.places.remove(name) {
            self.order.remove(&old);
        }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.order.values().map(|(name, _)| name.as_ref())
    }

    /// Returns `NAME=value` for each.
    pub(crate) fn to_list(&self) -> Vec<String> {
        self.order.values().map(|(name, value)| format!("{name}={value}")).collect()
    }
}

impl Vars for Env {
    fn get(&self, name: &str) -> Option<&str> {
        let place = self.places.get(name)?;
        self.order.get(place).map(|(_, value)| value.as_ref())
    }
}

/// Splits `NAME=value`.
pub(crate) fn split(pair: &str) -> (&str, &str) {
    pair.split_once('=').unwrap_or((pair, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_set_again_moves_to_the_end() {
        let mut env = Env::default();
        env.set("A", "1");
        env.set("B", "2");
        env.set("A", "3");
        assert_eq!(env.to_list(), ["B=2", "A=3"]);
        assert_eq!(env.get("A"), Some("3"));
        env.remove("B");
        assert_eq!(env.get("B"), None);
        assert_eq!(env.names().collect::<Vec<_>>(), ["A"]);
    }
}
