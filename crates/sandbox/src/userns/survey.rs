//! What a machine says about users and their namespaces, for people to read.

use super::facts::{self, Facts, Tool};
use super::remedy::{self, Distribution, Lack};
use super::{HostRoot, idmap, program};

/// What files and settings say; whether it works is for [`crate::probe`] to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// The user's name, or number.
    pub user: String,
    /// The family of distributions that this machine has one of.
    pub distribution: Distribution,
    /// A setting that forbids user namespaces.
    pub forbidden: Option<Lack>,
    /// newuidmap and newgidmap: where each is, or what is wrong.
    pub tools: [(&'static str, Result<String, String>); 2],
    /// How many IDs `/etc/subuid` and `/etc/subgid` give to the user.
    pub sub_ids: [(&'static str, u64); 2],
    /// What sub-IDs lack.
    pub lacks: Vec<Lack>,
}

/// Reads what the machine says.
#[must_use]
pub fn survey(host: &HostRoot) -> Survey {
    let facts = Facts::read(&host.0);
    let tool = |tool: &Tool| match tool {
        Tool::Usable(path) => Ok(path.display().to_string()),
        Tool::Missing => Err("not installed".to_owned()),
        Tool::Powerless(path, why) => Err(format!("{} {why}", path.display())),
    };
    Survey {
        user: facts.user.shown(),
        distribution: facts.distribution,
        forbidden: facts::forbidden(&host.0).map(|what| remedy::forbids(what, &program())),
        tools: [("newuidmap", tool(&facts.newuidmap)), ("newgidmap", tool(&facts.newgidmap))],
        sub_ids: [("/etc/subuid", idmap::mapped(&facts.uid_map)), ("/etc/subgid", idmap::mapped(&facts.gid_map))],
        lacks: remedy::lacks(&facts),
    }
}
