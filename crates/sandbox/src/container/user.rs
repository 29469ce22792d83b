//! Users and groups as the image names them.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::failure::{Doing, Failure};
use super::resolve::{file_type, open_in_root};

/// `/etc/passwd` and `/etc/group` are read up to this size.
const MAX_FILE: u64 = 10 << 20;

/// IDs above this are refused when they come from text, as in the reference's lookup.
const MAX_ID: u32 = i32::MAX as u32;

/// Supplementary groups that the kernel takes (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// Who a container's program runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// Looks up `name|uid[:group|gid]` in a root file system. Empty means root.
pub(super) fn look_up(root: impl AsFd, wanted: &str) -> Result<User, Failure> {
    let passwd = read(root.as_fd(), "etc/passwd");
    let (name, group) = match wanted.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (wanted, None),
    };
    let numbers = group.and_then(|group| Some((number(name)?, number(group)?)));
    let named = numbers.is_none() && !wanted.is_empty();
    let passwd = match passwd {
        Ok(text) => text,
        // Numbers need no file; only HOME comes from it then.
        Err(_) if !named => String::new(),
        Err(failure) => return Err(failure),
    };
    let group_file = if named { read(root.as_fd(), "etc/group")? } else { String::new() };
    find(wanted, &passwd, &group_file)
}

/// A user or group given as a number; `root` counts as one.
fn number(text: &str) -> Option<u32> {
    if text == "root" { Some(0) } else { text.parse().ok().filter(|id| *id != u32::MAX) }
}

fn find(wanted: &str, passwd: &str, group_file: &str) -> Result<User, Failure> {
    let refuse = |text: String| Failure::new(format!("user {wanted:?}: {text}"));
    let (name, group) = match wanted.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (wanted, None),
    };
    let entries = || passwd.lines().filter_map(Entry::parse);
    let id = number(name).filter(|id| *id <= MAX_ID);
    let entry = if name.is_empty() {
        entries().find(|entry| entry.id == 0)
    } else {
        // A user may be called by a number: the name goes first.
        entries().find(|entry| entry.name == name).or_else(|| entries().find(|entry| Some(entry.id) == id))
    };
    let home = entry.as_ref().map_or("", |entry| entry.home);
    let home = if home.is_empty() { "/" } else { home }.to_owned();

    if let (Some(uid), Some(gid)) = (number(name), group.and_then(number)) {
        return Ok(User { uid, gid, groups: vec![gid], home });
    }
    let (uid, mut gid) = match (&entry, id) {
        (Some(entry), _) => (entry.id, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) if name.is_empty() => (0, 0),
        (None, None) if name.parse::<i64>().is_ok() => return Err(refuse(format!("IDs go from 0 to {MAX_ID}"))),
        (None, None) => return Err(refuse("no such user in /etc/passwd of the image".into())),
    };
    let mut groups = Vec::new();
    match group {
        Some(group) => {
            let id = number(group).filter(|id| *id <= MAX_ID);
            let found =
                group_file.lines().filter_map(Group::parse).find(|entry| entry.name == group || Some(entry.id) == id);
            gid = match (found, id) {
                (Some(found), _) => found.id,
                (None, Some(id)) => id,
                (None, None) => return Err(refuse(format!("no such group {group:?} in /etc/group of the image"))),
            };
        }
        None => {
            if let Some(entry) = &entry {
                let member = |group: &Group<'_>| group.members.split(',').any(|member| member.trim() == entry.name);
                groups = group_file.lines().filter_map(Group::parse).filter(member).map(|group| group.id).collect();
            }
        }
    }
    groups.retain(|group| *group != gid);
    groups.insert(0, gid);
    groups.dedup();
    groups.truncate(MAX_GROUPS);
    Ok(User { uid, gid, groups, home })
}

/// A line of `passwd(5)`.
struct Entry<'a> {
    name: &'a str,
    id: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Option<Entry<'a>> {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let id = fields.nth(1)?.trim().parse().ok().filter(|id| *id != u32::MAX)?;
        let gid = fields.next()?.trim().parse().ok().filter(|id| *id != u32::MAX)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Entry { name, id, gid, home })
    }
}

/// A line of `group(5)`.
struct Group<'a> {
    name: &'a str,
    id: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Group<'a>> {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let id = fields.nth(1)?.trim().parse().ok().filter(|id| *id != u32::MAX)?;
        Some(Group { name, id, members: fields.next().unwrap_or_default() })
    }
}

/// Reads a file of the root file system: a regular one inside it, of bounded size. A missing one is empty.
fn read(root: impl AsFd, path: &str) -> Result<String, Failure> {
    // O_NONBLOCK: a FIFO in its place must not hold us up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match open_in_root(root, Path::new(path), flags) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(error) => return Err(error).doing(|| format!("read /{path} of the image")),
    };
    if file_type(&file).doing(|| format!("read /{path} of the image"))? != FileType::RegularFile {
        return Err(Failure::new(format!("/{path} of the image is not a regular file")));
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file)
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .doing(|| format!("read /{path} of the image"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Failure::new(format!("/{path} of the image is larger than {} MB", MAX_FILE >> 20)));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nanna:x:1000:1001::/home/anna:/bin/sh\n\nbroken\n77:x:5:6::/seven:\nbad:x:-1:0::/:\nmax:x:4294967295:0::/:\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:anna,bert\nanna:x:1001:\nvideo:x:44:bert,anna\nodd:x:60:annab\n";

    fn user(wanted: &str) -> Result<(u32, u32, Vec<u32>, String), String> {
        find(wanted, PASSWD, GROUP)
            .map(|user| (user.uid, user.gid, user.groups, user.home))
            .map_err(|failure| failure.text)
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        let ok = |uid, gid, groups: &[u32], home: &str| Ok((uid, gid, groups.to_vec(), home.to_owned()));
        assert_eq!(user(""), ok(0, 0, &[0], "/root"));
        assert_eq!(user("root"), ok(0, 0, &[0], "/root"));
        assert_eq!(user("anna"), ok(1000, 1001, &[1001, 50, 44], "/home/anna"));
        assert_eq!(user("1000"), ok(1000, 1001, &[1001, 50, 44], "/home/anna"));
        assert_eq!(user("anna:"), ok(1000, 1001, &[1001, 50, 44], "/home/anna"));
        assert_eq!(user("anna:staff"), ok(1000, 50, &[50], "/home/anna"));
        assert_eq!(user("anna:7"), ok(1000, 7, &[7], "/home/anna"));
        assert_eq!(user("4000:5000"), ok(4000, 5000, &[5000], "/"));
        assert_eq!(user("4000"), ok(4000, 0, &[0], "/"));
        assert_eq!(user("1000:1000"), ok(1000, 1000, &[1000], "/home/anna"));
        assert_eq!(user("77"), ok(5, 6, &[6], "/seven"));
    }

    #[test]
    fn users_that_are_not_there_are_refused() {
        for wanted in [
            "bert",
            "anna:nobody",
            "-1",
            "4294967295",
            "4294967296",
            "4294967295:0",
            "0:4294967295",
            "bad",
            "max",
            "99999999999999999999",
        ] {
            assert!(user(wanted).is_err(), "{wanted}: {:?}", user(wanted));
        }
    }

    #[test]
    fn a_root_without_files_knows_numbers_and_root() {
        let root = tempfile::tempdir().unwrap();
        let root = std::fs::File::open(root.path()).unwrap();
        assert_eq!(look_up(&root, "").unwrap().home, "/");
        assert_eq!(look_up(&root, "12:34").unwrap().groups, [34]);
        assert_eq!(look_up(&root, "12").unwrap().uid, 12);
        assert!(look_up(&root, "anna").is_err());
    }

    #[test]
    fn hostile_files_are_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let etc = directory.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        let root = std::fs::File::open(directory.path()).unwrap();
        let passwd = etc.join("passwd");

        rustix::fs::mknodat(rustix::fs::CWD, &passwd, FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert!(look_up(&root, "anna").unwrap_err().text.contains("not a regular file"));
        assert_eq!(look_up(&root, "1:1").unwrap().uid, 1);

        std::fs::remove_file(&passwd).unwrap();
        std::fs::File::create(&passwd).unwrap().set_len(4 << 30).unwrap();
        assert!(look_up(&root, "anna").unwrap_err().text.contains("larger than"));

        // Links are followed inside the root alone; the host's own passwd has root in it.
        std::fs::remove_file(&passwd).unwrap();
        std::os::unix::fs::symlink("/../../../etc/passwd-elsewhere", &passwd).unwrap();
        assert!(look_up(&root, "daemon").unwrap_err().text.contains("no such user"));
        std::fs::remove_file(&passwd).unwrap();
        std::os::unix::fs::symlink("/proc/self/environ", &passwd).unwrap();
        assert!(look_up(&root, "daemon").unwrap_err().text.contains("no such user"));
    }
}
