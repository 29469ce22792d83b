//! Finding and starting the program of a container.

use std::ffi::CString;
use std::io;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, FileType};
use rustix::io::Errno;

use super::failure::Failure;
use crate::sys::{self, CStrings};

/// What a program that isn't there, and one that can't be started, exits with in every shell.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Program, arguments and environment, checked and laid out for `execve(2)`.
pub(super) struct Program {
    name: String,
    path: String,
    arguments: CStrings,
    environment: CStrings,
}

/// The environment with one value a name, the last one; with `PATH` and `HOME`.
fn environment(given: &[String], home: &str) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut entries: Vec<(String, &str)> = Vec::with_capacity(given.len() + 2);
    for entry in given {
        let name = name(entry);
        match entries.iter_mut().find(|(known, _)| *known == name) {
            Some(earlier) => earlier.1 = entry,
            None => entries.push((name, entry)),
        }
    }
    let has = |name: &str| entries.iter().any(|(known, entry)| known == name && entry.len() > name.len() + 1);
    let (path, home_missing) = (has("PATH"), !has("HOME"));
    let mut environment: Vec<String> = Vec::with_capacity(entries.len() + 2);
    if !path {
        environment.push(format!("PATH={DEFAULT_PATH}"));
    }
    let replaced = |name: &str| (name == "PATH" && !path) || (name == "HOME" && home_missing);
    environment.extend(entries.iter().filter(|(name, _)| !replaced(name)).map(|(_, entry)| (*entry).to_owned()));
    if home_missing {
        environment.push(format!("HOME={home}"));
    }
    environment
}

impl Program {
    pub(super) fn new(args: &[String], env: &[String], home: &str) -> Result<Program, Failure> {
        let name = args.first().filter(|name| !name.is_empty()).ok_or_else(|| Failure::new("no command is given"))?;
        let environment = environment(env, home);
        let path = environment.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH).to_owned();
        let nul = |_| Failure::new("a NUL byte is in the command or its environment");
        Ok(Program {
            name: name.clone(),
            path,
            arguments: CStrings::new(args.iter().map(String::as_str)).map_err(nul)?,
            environment: CStrings::new(environment.iter().map(String::as_str)).map_err(nul)?,
        })
    }

    /// Starts the program. Returns only if that failed.
    pub(super) fn exec(&self) -> Failure {
        let file = match self.find() {
            Ok(file) => file,
            Err(failure) => return failure,
        };
        let Ok(path) = CString::new(file.as_str()) else {
            return self.failure("invalid argument", NOT_FOUND);
        };
        let error = sys::exec(&path, &self.arguments, &self.environment);
        let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
        Failure { text: format!("exec {file}: {}", describe(&error)), code }
    }

    /// Searches the program as a shell would.
    fn find(&self) -> Result<String, Failure> {
        if self.name.contains('/') {
            return match check(&self.name) {
                Ok(()) => Ok(self.name.clone()),
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    Err(self.failure(&format!("stat {}: no such file or directory", self.name), NOT_FOUND))
                }
                Err(Errno::ISDIR) => Err(self.failure("is a directory", NOT_EXECUTABLE)),
                Err(error) => Err(self.failure(&describe(&error.into()), NOT_EXECUTABLE)),
            };
        }
        let mut denied = false;
        for directory in self.path.split(':') {
            let directory = if directory.is_empty() { "." } else { directory };
            let file = format!("{directory}/{}", self.name);
            match check(&file) {
                Ok(()) => return Ok(file),
                Err(Errno::ACCESS) => denied = true,
                Err(_) => {}
            }
        }
        if denied {
            Err(self.failure("permission denied", NOT_EXECUTABLE))
        } else {
            Err(self.failure("executable file not found in $PATH", NOT_FOUND))
        }
    }

    fn failure(&self, text: &str, code: i32) -> Failure {
        Failure { text: format!("exec: {:?}: {text}", self.name), code }
    }
}

/// Says whether the process may execute a file.
fn check(file: &str) -> rustix::io::Result<()> {
    let path = Path::new(file);
    let stat = rustix::fs::stat(path)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Err(Errno::ISDIR),
        FileType::RegularFile => rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS),
        _ => Err(Errno::ACCESS),
    }
}

/// The kernel's words, in small letters and without the number.
fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory".into(),
        Some(libc::EACCES) => "permission denied".into(),
        Some(libc::ENOEXEC) => "exec format error".into(),
        Some(libc::E2BIG) => "argument list too long".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_has_one_value_a_name_and_what_every_program_needs() {
        let env = |entries: &[&str]| environment(&entries.iter().map(|e| (*e).to_owned()).collect::<Vec<_>>(), "/root");
        assert_eq!(env(&[]), [format!("PATH={DEFAULT_PATH}"), "HOME=/root".into()]);
        assert_eq!(env(&["PATH=/x", "A=1", "HOME=/h", "A=2"]), ["PATH=/x", "A=2", "HOME=/h"]);
        assert_eq!(env(&["HOME=", "PATH="]), [format!("PATH={DEFAULT_PATH}"), "HOME=/root".into()]);
    }

    #[test]
    fn commands_that_make_no_sense_are_refused() {
        assert!(Program::new(&[], &[], "/").is_err());
        assert!(Program::new(&[String::new()], &[], "/").is_err());
        assert!(Program::new(&["a\0b".into()], &[], "/").is_err());
        assert!(Program::new(&["a".into()], &["X=\0".into()], "/").is_err());
    }
}
