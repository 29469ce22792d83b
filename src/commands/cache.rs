//! `bud cache`: the cache mounts of RUN steps as objects.

use super::{ago, table, told};
use crate::cli::manage::{CacheCommand, CacheExportArgs, CacheImportArgs, CacheLsArgs, CacheRmArgs};
use crate::connect::{self, Start};
use crate::progress::{bytes_text, filter};
use crate::terminal;
use anyhow::{Context as _, Result, bail};
use bud_protocol::bud::{
    CacheMount, ExportCacheMountRequest, ImportCacheMountRequest, ListCacheMountsRequest, RemoveCacheMountRequest,
};
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio_stream::wrappers::ReceiverStream;

/// So much of a tar goes in one message.
const PIECE: usize = 256 << 10;

/// Runs `bud cache`.
pub async fn run(command: CacheCommand) -> Result<ExitCode> {
    match command {
        CacheCommand::Ls(args) => list(args).await,
        CacheCommand::Rm(args) => remove(args).await,
        CacheCommand::Export(args) => export(args).await,
        CacheCommand::Import(args) => import(args).await,
    }
}

async fn list(args: CacheLsArgs) -> Result<ExitCode> {
    let connection = connect::connect(&args.connect, &Start::usual()).await?;
    let answer = connection.bud().list_cache_mounts(ListCacheMountsRequest {}).await.map_err(told)?;
    let mut mounts = answer.into_inner().mounts;
    mounts.sort_by(|a, b| a.id.cmp(&b.id));
    let text = if args.json {
        let list: Vec<_> = mounts.iter().map(json).collect();
        format!("{}\n", serde_json::to_string_pretty(&list)?)
    } else if args.quiet {
        mounts.iter().map(|mount| format!("{}\n", filter::name(&mount.id))).collect()
    } else {
        let mut rows = vec![["ID", "SIZE", "CREATED", "LAST USED", "USED"].map(str::to_owned).to_vec()];
        rows.extend(mounts.iter().map(row));
        table(&rows)
    };
    terminal::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn row(mount: &CacheMount) -> Vec<String> {
    let copies = if mount.directories > 1 { format!(" ({} copies)", mount.directories) } else { String::new() };
    vec![
        filter::name(&mount.id),
        format!("{}{copies}", bytes_text(mount.size)),
        ago(mount.created_unix),
        if mount.in_use { "now".into() } else { ago(mount.last_used_unix) },
        format!("{} time{}", mount.usage_count, if mount.usage_count == 1 { "" } else { "s" }),
    ]
}

fn json(mount: &CacheMount) -> serde_json::Value {
    serde_json::json!({
        "id": mount.id,
        "size": mount.size,
        "createdAt": mount.created_unix,
        "lastUsedAt": mount.last_used_unix,
        "usageCount": mount.usage_count,
        "directories": mount.directories,
        "inUse": mount.in_use,
    })
}

async fn remove(args: CacheRmArgs) -> Result<ExitCode> {
    let connection = connect::connect(&args.connect, &Start::usual()).await?;
    let mut failed = false;
    for id in args.ids {
        match connection.bud().remove_cache_mount(RemoveCacheMountRequest { id: id.clone() }).await {
            Ok(answer) => {
                terminal::print(&format!("{}: {} freed\n", filter::name(&id), bytes_text(answer.into_inner().bytes)))?;
            }
            Err(status) => {
                failed = true;
                terminal::note(&format!("error: {}", filter::plain_text(&format!("{:#}", told(status)))));
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Where an export goes. A file appears under its name when it is whole.
enum Target {
    Stdout(std::io::Stdout),
    /// Such as `/dev/null` or a pipe.
    Other(std::fs::File),
    File {
        temporary: std::fs::File,
        at: PathBuf,
        path: PathBuf,
    },
}

impl Target {
    fn open(output: Option<&Path>) -> Result<Self> {
        let Some(path) = output.filter(|path| *path != Path::new("-")) else {
            let stdout = std::io::stdout();
            if stdout.is_terminal() {
                bail!("a tar is nothing for a terminal: give -o FILE, or a pipe");
            }
            return Ok(Self::Stdout(stdout));
        };
        let failed = || format!("cannot write {}", path.display());
        if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
            return Ok(Self::Other(std::fs::File::options().write(true).open(path).with_context(failed)?));
        }
        if path.is_dir() {
            bail!("{} is a directory: give the name of a file", path.display());
        }
        let mut at = path.as_os_str().to_owned();
        at.push(format!(".part-{}", std::process::id()));
        let at = PathBuf::from(at);
        let temporary = std::fs::File::options().write(true).create_new(true).open(&at).with_context(failed)?;
        Ok(Self::File { temporary, at, path: path.to_owned() })
    }

    fn write(&mut self, data: &[u8]) -> Result<()> {
        let written = match self {
            Self::Stdout(stdout) => stdout.write_all(data),
            Self::Other(file) | Self::File { temporary: file, .. } => file.write_all(data),
        };
        written.context("cannot write the tar")
    }

    fn finish(mut self) -> Result<()> {
        match &mut self {
            Self::Stdout(stdout) => stdout.flush().context("cannot write the tar"),
            Self::Other(_) => Ok(()),
            Self::File { at, path, .. } => {
                std::fs::rename(&*at, &*path).with_context(|| format!("cannot write {}", path.display()))
            }
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Self::File { at, .. } = self {
            // It is not there any more when all went well.
            std::fs::remove_file(at).ok();
        }
    }
}

async fn export(args: CacheExportArgs) -> Result<ExitCode> {
    let connection = connect::connect(&args.connect, &Start::usual()).await?;
    let request = ExportCacheMountRequest { id: args.id };
    let mut pieces = connection.bud().export_cache_mount(request).await.map_err(told)?.into_inner();
    // Only now: a mount that isn't there leaves the file alone.
    let mut target = Target::open(args.output.as_deref())?;
    while let Some(piece) = pieces.message().await.map_err(told)? {
        target.write(&piece.data)?;
    }
    target.finish()?;
    Ok(ExitCode::SUCCESS)
}

async fn import(args: CacheImportArgs) -> Result<ExitCode> {
    let mut input: Box<dyn std::io::Read + Send> = match args.file.as_deref().filter(|path| *path != Path::new("-")) {
        Some(path) => Box::new(std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?),
        None if std::io::stdin().is_terminal() => bail!("no tar: give a file, or a pipe"),
        None => Box::new(std::io::stdin()),
    };
    let connection = connect::connect(&args.connect, &Start::usual()).await?;
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let id = args.id;
    let reading = tokio::task::spawn_blocking(move || -> Result<()> {
        let mut id = Some(id);
        loop {
            let mut data = vec![0; PIECE];
            let n = match input.read(&mut data) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                read => read.context("cannot read the tar")?,
            };
            data.truncate(n);
            let done = n == 0;
            let message = ImportCacheMountRequest { id: id.take().unwrap_or_default(), data: data.into(), done };
            // The daemon may have had enough: its answer says why.
            if sender.blocking_send(message).is_err() || done {
                return Ok(());
            }
        }
    });
    let answer = connection.bud().import_cache_mount(ReceiverStream::new(receiver)).await;
    // An input that goes on after the daemon's answer is not waited for.
    if reading.is_finished()
        && let Ok(read) = reading.await
    {
        read?;
    }
    let done = answer.map_err(told)?.into_inner();
    if done.lost_owners > 0 {
        terminal::note(&format!(
            "note: {} entries belong to other users in the tar; only your own ID is mapped here, so they belong to root in the mount",
            done.lost_owners
        ));
    }
    let left_out = if done.skipped > 0 { format!(", {} device nodes left out", done.skipped) } else { String::new() };
    terminal::print(&format!(
        "{}: {} entries, {}{left_out}\n",
        filter::name(&done.id),
        done.entries,
        bytes_text(done.bytes)
    ))?;
    Ok(ExitCode::SUCCESS)
}
