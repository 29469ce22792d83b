//! The server's own process: takes requests, clones containers, waits for them.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::message::{self, Request};
use super::{Event, ExitStatus};
use crate::container::{self, Context, Failure, Listener, Stubs};
use crate::spec::{ContainerSpec, Rootfs};
use crate::sys::{self, Cloned};

/// What a container's process says to the server before it becomes the program.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Report {
    stubs: Option<Stubs>,
    failure: Option<(String, i32)>,
}

/// A container whose process has not been reaped.
struct Running {
    pid: i32,
    pidfd: OwnedFd,
    channel: OwnedFd,
    /// Open until the program runs or could not be started.
    report: Option<OwnedFd>,
    reported: Vec<u8>,
    stubs: Stubs,
    failure: Option<(String, i32)>,
    /// Where stubs are, and whether their parents go with them.
    base: Option<(PathBuf, bool)>,
    /// Notes owners.
    listener: Option<Listener>,
}

/// Serves until the other end of the socket is closed, which is when the daemon is gone.
///
/// The end of this process, process 1 of its namespace, is the end of every container.
pub(super) fn serve(socket: OwnedFd) -> ! {
    let context = Context::read();
    let mut containers: HashMap<u64, Running> = HashMap::new();
    let mut next = 0;
    let mut buffer = Vec::new();
    loop {
        let ready = match wait(&socket, &containers) {
            Ok(ready) => ready,
            // Only a lack of memory is left as a reason. Without this process nothing can be built.
            Err(_) => sys::exit_now(1),
        };
        if ready.request {
            match message::receive(socket.as_fd(), &mut buffer) {
                Ok(Some(request)) => {
                    if let Some(running) = launch(request, &context) {
                        containers.insert(next, running);
                        next += 1;
                    }
                }
                Ok(None) => sys::exit_now(0),
                // The channel came with the message and is closed: the asker sees that.
                Err(error) => eprintln!("fork server: bad request: {error}"),
            }
        }
        for (id, what) in ready.containers {
            let Some(running) = containers.get_mut(&id) else { continue };
            match what {
                Ready::Report => running.read_report(),
                Ready::Channel => running.hear(),
                Ready::Ended => {
                    if let Some(running) = containers.remove(&id) {
                        running.end();
                    }
                }
            }
        }
    }
}

enum Ready {
    Report,
    Channel,
    Ended,
}

struct Waited {
    request: bool,
    /// In the order in which they are to be looked at: a container's end comes last.
    containers: Vec<(u64, Ready)>,
}

fn wait(socket: &OwnedFd, containers: &HashMap<u64, Running>) -> rustix::io::Result<Waited> {
    let mut fds = vec![PollFd::new(socket, PollFlags::IN)];
    let mut what = Vec::new();
    for (id, running) in containers {
        if let Some(report) = &running.report {
            fds.push(PollFd::new(report, PollFlags::IN));
            what.push((*id, Ready::Report));
        }
        fds.push(PollFd::new(&running.channel, PollFlags::IN));
        what.push((*id, Ready::Channel));
        fds.push(PollFd::new(&running.pidfd, PollFlags::IN));
        what.push((*id, Ready::Ended));
    }
    rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
    let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
    let request = ready.next().unwrap_or(false);
    let containers = what.into_iter().zip(ready).filter(|(_, ready)| *ready).map(|(what, _)| what).collect();
    Ok(Waited { request, containers })
}

/// Clones a container. Returns in the server alone; a failure has been told to the asker.
fn launch(request: Request, context: &Context) -> Option<Running> {
    let Request { spec, channel, mut streams } = request;
    let fail = |error: std::io::Error, what: &str| {
        tell(&channel, &Event::Failed { error: format!("start a container: {what}: {error}"), code: 1 });
    };
    let (report_read, report_write) = match rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC) {
        Ok(pipe) => pipe,
        Err(error) => {
            fail(error.into(), "make a pipe");
            return None;
        }
    };
    let own_users = container::has_own_users(&spec);
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let pair = rustix::net::socketpair(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, flags, None);
    let (ours, theirs) = match pair {
        Ok((ours, theirs)) => (std::fs::File::from(ours), std::fs::File::from(theirs)),
        Err(error) => {
            fail(error.into(), "make a socket");
            return None;
        }
    };
    let listener = match container::listen(&spec, context) {
        Ok(Some((listener, socket))) => {
            streams.owners = Some(socket);
            Some(listener)
        }
        Ok(None) => None,
        Err(error) => {
            fail(error, "start the listener for owners");
            return None;
        }
    };
    match sys::clone_into(container::namespaces(&spec)) {
        Ok(Cloned::Child) => {
            drop(ours);
            if own_users && !get_users(&spec, theirs) {
                sys::exit_now(1)
            }
            let mut report = std::fs::File::from(report_write);
            let failure = container::start(&spec, context, &streams, |stubs| {
                if !stubs.is_empty() {
                    say(&mut report, &StubsReport { stubs });
                }
            });
            let Failure { text, code } = failure;
            say(&mut report, &Report { stubs: None, failure: Some((text, code)) });
            sys::exit_now(code)
        }
        Ok(Cloned::Parent { pid, pidfd }) => {
            drop(theirs);
            if own_users && let Err(error) = give_users(&pidfd, ours, context) {
                // It was told nothing and ends by itself.
                sys::wait_for(pid).ok();
                if let Some(listener) = listener {
                    listener.end();
                }
                fail(error, "make its user namespace, which it needs with --oci-worker-no-process-sandbox");
                return None;
            }
            let base = base(&spec);
            Some(Running {
                pid,
                pidfd,
                channel,
                report: Some(report_read),
                reported: Vec::new(),
                stubs: Stubs::default(),
                failure: None,
                base,
                listener,
            })
        }
        Err(error) => {
            if let Some(listener) = listener {
                listener.end();
            }
            let what = match error.raw_os_error() {
                Some(libc::EAGAIN) => {
                    "clone: the user's limit on processes is reached (`ulimit -u`, TasksMax= of a service)"
                }
                Some(libc::ENOSPC | libc::EUSERS) => {
                    "clone: a limit on namespaces is reached (sysctl user.max_pid_namespaces and its like)"
                }
                _ => "clone",
            };
            fail(error, what);
            None
        }
    }
}

/// Enters a user namespace in the container's process, and waits until its IDs are mapped.
fn get_users(spec: &ContainerSpec, mut server: std::fs::File) -> bool {
    let error = container::enter_own_users(spec).err().map_or(0, rustix::io::Errno::raw_os_error);
    let told = server.write_all(&error.to_ne_bytes()).is_ok();
    error == 0 && told && matches!(server.read(&mut [0]), Ok(1))
}

/// Maps the same IDs as here into the user namespace that a container's process has entered.
fn give_users(pidfd: &OwnedFd, mut container: std::fs::File, context: &Context) -> std::io::Result<()> {
    let mut error = [0; 4];
    container.read_exact(&mut error)?;
    match i32::from_ne_bytes(error) {
        0 => {}
        error => return Err(std::io::Error::from_raw_os_error(error)),
    }
    let pid = outer_pid(pidfd);
    for (name, map) in ["uid_map", "gid_map"].into_iter().zip(context.same_ids()) {
        std::fs::write(format!("/proc/{pid}/{name}"), map)?;
    }
    // A process that was killed just now must not take the server with it (SIGPIPE).
    rustix::net::send(&container, b"!", rustix::net::SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The process ID in the namespace of the `/proc` that is mounted here: the daemon's.
fn outer_pid(pidfd: &OwnedFd) -> u32 {
    use std::os::fd::AsRawFd;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap_or_default();
    info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok()).unwrap_or(0)
}

/// [`Report`] with borrowed stubs.
#[derive(Serialize)]
struct StubsReport<'a> {
    stubs: &'a Stubs,
}

/// Writes one line for the server. If it can't be written, the server is gone and this process about to be.
fn say(report: &mut std::fs::File, what: &impl Serialize) {
    if let Ok(mut line) = serde_json::to_vec(what) {
        line.push(b'\n');
        report.write_all(&line).ok();
    }
}

fn base(spec: &ContainerSpec) -> Option<(PathBuf, bool)> {
    let base = match &spec.rootfs {
        Rootfs::Overlay(overlay) => overlay.upper.clone()?,
        Rootfs::Dir(path) => path.clone(),
    };
    Some((base, spec.remove_mount_stubs_recursive))
}

/// Sends an event. An asker that is gone needs none.
fn tell(channel: &OwnedFd, event: &Event) {
    let mut message = serde_json::to_vec(event).unwrap_or_default();
    if message.len() > super::EVENT_MAX {
        message = serde_json::to_vec(&event.shortened()).unwrap_or_default();
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::send(channel, &message, rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT)
    })
    .ok();
}

impl Running {
    /// Takes what the container's process says; the end of it is the start of the program, or its failure.
    fn read_report(&mut self) {
        let Some(report) = self.report.take() else { return };
        let mut file = std::fs::File::from(report);
        let mut chunk = [0; 4096];
        match file.read(&mut chunk) {
            Ok(0) => self.understand_report(),
            Ok(length) => {
                self.reported.extend_from_slice(&chunk[..length]);
                self.report = Some(file.into());
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => self.report = Some(file.into()),
            Err(_) => self.understand_report(),
        }
    }

    fn understand_report(&mut self) {
        let lines = std::mem::take(&mut self.reported);
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            if let Ok(report) = serde_json::from_slice::<Report>(line) {
                self.stubs = report.stubs.unwrap_or(std::mem::take(&mut self.stubs));
                self.failure = report.failure.or(self.failure.take());
            }
        }
        if self.failure.is_none() {
            tell(&self.channel, &Event::Started { pid: outer_pid(&self.pidfd) });
        }
    }

    /// Hears the asker: whatever it says, and its going away, means that the container has to die.
    fn hear(&mut self) {
        let mut word = [0; 16];
        match rustix::net::recv(&self.channel, &mut word, rustix::net::RecvFlags::DONTWAIT) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // A process that has ended already can't be killed, and needn't be.
            _ => {
                pidfd_send_signal(&self.pidfd, Signal::KILL).ok();
            }
        }
    }

    /// The container's first process has ended, and with it all others.
    fn end(mut self) {
        while self.report.is_some() {
            self.read_report();
        }
        let ended = sys::wait_for(self.pid);
        if let Some(listener) = self.listener.take() {
            listener.end();
        }
        if let (Some((base, recursive)), false) = (&self.base, self.stubs.is_empty()) {
            container::remove_stubs(&self.stubs, base, *recursive);
        }
        let event = match (self.failure, ended) {
            (Some((error, code)), _) => Event::Failed { error, code },
            (None, Ok(ended)) => {
                let signal = ended.signal();
                let code = ended.exit_code().unwrap_or_else(|| 128 + signal.unwrap_or(0));
                Event::Exited(ExitStatus { code, signal, cpu_usec: ended.cpu_usec, max_rss: ended.max_rss })
            }
            (None, Err(error)) => Event::Failed { error: format!("wait for the container: {error}"), code: 1 },
        };
        tell(&self.channel, &event);
    }
}
