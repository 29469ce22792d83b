//! What is known of the world, and what has to be asked.

use crate::fault::Fault;
use crate::frontend::{FilesAnswer, FilesQuery, ImageAnswer, ImageQuery, Need, Request, SourceAnswer, SourceQuery};
use crate::shell::ExpandError;
use std::cell::RefCell;

/// Why lowering stops.
#[derive(Debug)]
pub(crate) enum Stop {
    /// An answer is missing; it was noted.
    Need,
    Fail(Fault),
}

impl Stop {
    /// Changes the error, if it is one.
    pub(crate) fn map(self, change: impl FnOnce(Fault) -> Fault) -> Self {
        match self {
            Self::Need => Self::Need,
            Self::Fail(fault) => Self::Fail(change(fault)),
        }
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fail(fault)
    }
}

impl From<String> for Stop {
    fn from(message: String) -> Self {
        Self::Fail(message.into())
    }
}

impl From<&str> for Stop {
    fn from(message: &str) -> Self {
        Self::Fail(message.into())
    }
}

impl From<ExpandError> for Stop {
    fn from(error: ExpandError) -> Self {
        Self::Fail(error.into())
    }
}

/// Answers a build's questions from the request, and gathers those without an answer.
pub(crate) struct World<'a> {
    pub(crate) request: &'a Request,
    needs: RefCell<Vec<Need>>,
}

impl<'a> World<'a> {
    pub(crate) fn new(request: &'a Request) -> Self {
        Self { request, needs: RefCell::default() }
    }

    pub(crate) fn opt(&self, key: &str) -> Option<&'a str> {
        self.request.opts.get(key).map(String::as_str)
    }

    fn need<T>(&self, need: Need) -> Result<T, Stop> {
        let mut needs = self.needs.borrow_mut();
        if !needs.contains(&need) {
            needs.push(need);
        }
        Err(Stop::Need)
    }

    pub(crate) fn files(&self, query: FilesQuery) -> Result<&'a FilesAnswer, Stop> {
        match self.request.answers.of_files(&query) {
            Some(answer) => Ok(answer),
            None => self.need(Need::Files(query)),
        }
    }

    pub(crate) fn image(&self, query: ImageQuery) -> Result<&'a Result<ImageAnswer, String>, Stop> {
        match self.request.answers.of_image(&query) {
            Some(answer) => Ok(answer),
            None => self.need(Need::Image(query)),
        }
    }

    pub(crate) fn source(&self, query: SourceQuery) -> Result<&'a Result<SourceAnswer, String>, Stop> {
        match self.request.answers.of_source(&query) {
            Some(answer) => Ok(answer),
            None => self.need(Need::Source(query)),
        }
    }

    pub(crate) fn into_needs(self) -> Vec<Need> {
        self.needs.into_inner()
    }
}
