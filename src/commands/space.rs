//! `bud du` and `bud prune`.

use super::{ago, table, told};
use crate::cli::manage::{DuArgs, Format, PruneArgs};
use crate::connect::{self, Connection, Start};
use crate::progress::{bytes_text, filter};
use crate::request::values;
use crate::terminal;
use anyhow::{Context as _, Result, bail};
use bud_protocol::bud::PlanPruneRequest;
use bud_protocol::control::{DiskUsageRequest, PruneRequest, UsageRecord};
use serde_json::json;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;

/// Shows what the cache holds.
pub async fn du(args: DuArgs) -> Result<ExitCode> {
    let connection = connect::connect(&args.connect, &Start::usual()).await?;
    let (filter, _) = filters(&args.filter)?;
    let is_all = filter.is_empty();
    let request = DiskUsageRequest { filter, ..Default::default() };
    let mut records = connection.control().disk_usage(request).await.map_err(told)?.into_inner().record;
    records.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let text = if args.json || args.format == Some(Format::Json) {
        let list: Vec<_> = records.iter().map(record_json).collect();
        format!("{}\n", serde_json::to_string_pretty(&list)?)
    } else if args.verbose {
        let mut text = records.iter().map(details).collect::<String>() + &totals(&records);
        if is_all && let Some(plans) = planned(&connection).await? {
            text.push_str(&plans);
        }
        text
    } else {
        let mut rows = vec![["ID", "RECLAIMABLE", "SIZE", "LAST USED", "WHAT"].map(str::to_owned).to_vec()];
        rows.extend(records.iter().map(row));
        table(&rows) + "\n" + &totals(&records)
    };
    terminal::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Says what a prune would free; none: the daemon has no such service.
async fn planned(connection: &Connection) -> Result<Option<String>> {
    let mut rows = Vec::new();
    for (all, command) in [(false, "bud prune"), (true, "bud prune --all")] {
        let request = PlanPruneRequest { all, ..Default::default() };
        let records = match connection.bud().plan_prune(request).await {
            Ok(answer) => answer.into_inner().records,
            Err(status) if status.code() == tonic::Code::Unimplemented => return Ok(None),
            Err(status) => return Err(told(status)),
        };
        let size = records.iter().map(|r| r.size).fold(0, i64::saturating_add);
        rows.push(vec![format!("`{command}` frees:"), bytes_text(size), records_text(records.len() as u64)]);
    }
    Ok(Some(table(&rows)))
}

fn records_text(count: u64) -> String {
    format!("{count} record{}", if count == 1 { "" } else { "s" })
}

/// Reads filters as `docker builder prune` takes them (`type=regular`, `until=24h`, `shared=false`) and as BuildKit does
/// (`type==regular`, `description~=apt`). Returns them in BuildKit's words, and the time of `until`.
fn filters(given: &[String]) -> Result<(Vec<String>, Option<String>)> {
    let (mut filters, mut until) = (Vec::new(), None);
    for text in given {
        if let Some(time) = text.strip_prefix("until=").or_else(|| text.strip_prefix("unused-for=")) {
            until = Some(time.trim_start_matches('=').to_owned());
            continue;
        }
        let is_buildkits = text.contains("==") || text.contains("!=") || text.contains("~=") || text.contains(',');
        filters.push(match text.split_once('=') {
            Some((field, value)) if !is_buildkits => {
                let opposite = match field {
                    "shared" => Some("private"),
                    "private" => Some("shared"),
                    "mutable" => Some("immutable"),
                    "immutable" => Some("mutable"),
                    _ => None,
                };
                match (field, value, opposite) {
                    ("inuse" | "shared" | "private" | "mutable" | "immutable", "true" | "1", _) => field.to_owned(),
                    (_, "false" | "0", Some(opposite)) => opposite.to_owned(),
                    ("id", ..) => format!("id~={}", quoted(value)),
                    _ => format!("{field}=={}", quoted(value)),
                }
            }
            _ => text.clone(),
        });
    }
    Ok((filters, until))
}

fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

fn last_used(record: &UsageRecord) -> Option<i64> {
    record.last_used_at.or(record.created_at).map(|time| time.seconds).filter(|&s| s > 0)
}

fn row(record: &UsageRecord) -> Vec<String> {
    const WHAT: usize = 60;
    let description = filter::name(&record.description);
    vec![
        short(&record.id) + if record.mutable { "*" } else { "" },
        is_reclaimable(record).to_string(),
        bytes_text(record.size),
        last_used(record).map_or("-".into(), ago),
        console::truncate_str(&description, WHAT, "…").into_owned(),
    ]
}

fn short(id: &str) -> String {
    let id = filter::name(id);
    id.strip_prefix("sha256:").unwrap_or(&id).chars().take(12).collect()
}

fn details(record: &UsageRecord) -> String {
    let mut rows = vec![
        vec!["ID:".to_owned(), filter::name(&record.id)],
        vec!["Size:".into(), bytes_text(record.size)],
        vec!["Type:".into(), filter::name(&record.record_type)],
        vec!["What:".into(), filter::name(&record.description)],
        vec!["Used:".into(), format!("{} time{}", record.usage_count, if record.usage_count == 1 { "" } else { "s" })],
        vec!["In use:".into(), record.in_use.to_string()],
        vec!["Shared:".into(), record.shared.to_string()],
        vec!["Mutable:".into(), record.mutable.to_string()],
        vec!["Reclaimable:".into(), is_reclaimable(record).to_string()],
    ];
    if let Some(made) = record.created_at {
        rows.push(vec!["Created:".into(), ago(made.seconds)]);
    }
    if let Some(at) = last_used(record) {
        rows.push(vec!["Last used:".into(), ago(at)]);
    }
    if !record.parents.is_empty() {
        rows.push(vec!["Parents:".into(), filter::name(&record.parents.join(" "))]);
    }
    table(&rows) + "\n"
}

/// What no running build holds and no named image needs.
fn is_reclaimable(record: &UsageRecord) -> bool {
    !record.in_use && !record.shared
}

fn totals(records: &[UsageRecord]) -> String {
    let sum = |wanted: &dyn Fn(&UsageRecord) -> bool| {
        bytes_text(records.iter().filter(|r| wanted(r)).map(|r| r.size).fold(0, i64::saturating_add))
    };
    let mut rows = Vec::new();
    if records.iter().any(|r| r.shared) {
        rows.push(vec!["Of named images:".to_owned(), sum(&|r| r.shared)]);
        rows.push(vec!["Cache alone:".into(), sum(&|r| !r.shared)]);
    }
    if records.iter().any(|r| r.in_use) {
        rows.push(vec!["In use now:".into(), sum(&|r| r.in_use)]);
    }
    rows.push(vec!["Reclaimable:".into(), sum(&is_reclaimable)]);
    rows.push(vec!["Total:".into(), sum(&|_| true)]);
    table(&rows)
}

fn record_json(record: &UsageRecord) -> serde_json::Value {
    json!({
        "id": record.id,
        "size": record.size,
        "type": record.record_type,
        "description": record.description,
        "usageCount": record.usage_count,
        "inUse": record.in_use,
        "shared": record.shared,
        "reclaimable": is_reclaimable(record),
        "mutable": record.mutable,
        "parents": record.parents,
        "createdAt": record.created_at.map(|t| t.seconds),
        "lastUsedAt": record.last_used_at.map(|t| t.seconds),
    })
}

/// Removes cache that is not in use, or says what that would free.
pub async fn prune(args: PruneArgs) -> Result<ExitCode> {
    let (filter, until) = filters(&args.filter)?;
    let keep_duration = match until.as_ref().or(args.keep_duration.as_ref()) {
        Some(text) => i64::try_from(values::duration(text)?.as_nanos()).context("--keep-duration is too long")?,
        None => 0,
    };
    let size = |flag: &'static str, text: &Option<String>| -> Result<i64> {
        let bytes = text.as_deref().map_or(Ok(0), values::bytes).context(flag)?;
        i64::try_from(bytes).context(flag)
    };
    let request = PruneRequest {
        filter,
        all: args.all,
        keep_duration,
        reserved_space: size("--reserved-space", &args.reserved_space)?,
        max_used_space: size("--max-used-space", &args.max_used_space)?,
        min_free_space: size("--min-free-space", &args.min_free_space)?,
    };
    if args.dry_run {
        return dry_run(&args, request).await;
    }
    if !args.force && std::io::stdin().is_terminal() && !confirmed(&args)? {
        bail!("nothing was removed");
    }
    let connection = connect::connect(&args.connect, &Start::usual()).await?;
    let mut removed = connection.control().prune(request).await.map_err(told)?.into_inner();
    let (mut count, mut size) = (0_u64, 0_i64);
    while let Some(record) = removed.message().await.map_err(told)? {
        count += 1;
        size = size.saturating_add(record.size);
        if args.verbose {
            terminal::print(&line(&record.id, record.size, &record.description))?;
        }
    }
    terminal::print(&format!("{} freed, {} removed\n", bytes_text(size), records_text(count)))?;
    Ok(ExitCode::SUCCESS)
}

fn line(id: &str, size: i64, description: &str) -> String {
    format!("{}  {}  {}\n", short(id), bytes_text(size), filter::name(description))
}

async fn dry_run(args: &PruneArgs, request: PruneRequest) -> Result<ExitCode> {
    let connection = connect::connect(&args.connect, &Start::usual()).await?;
    let request = PlanPruneRequest {
        filter: request.filter,
        all: request.all,
        keep_duration: request.keep_duration,
        reserved_space: request.reserved_space,
        max_used_space: request.max_used_space,
        min_free_space: request.min_free_space,
    };
    let records = connection.bud().plan_prune(request).await.map_err(told)?.into_inner().records;
    let mut text: String = records.iter().map(|r| line(&r.id, r.size, &r.description)).collect();
    let size = records.iter().map(|r| r.size).fold(0, i64::saturating_add);
    text.push_str(&format!(
        "{} would be freed, {} removed; nothing was\n",
        bytes_text(size),
        records_text(records.len() as u64)
    ));
    terminal::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn confirmed(args: &PruneArgs) -> Result<bool> {
    let what = if args.filter.is_empty() { "the build cache that no image needs" } else { "the matching build cache" };
    let mut stderr = std::io::stderr().lock();
    write!(stderr, "Remove {what} and nothing uses? Builds after it run anew. [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_dockers_and_buildkits() {
        let given = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|t| (*t).to_owned()).collect();
            filters(&texts).unwrap()
        };
        assert_eq!(given(&["until=24h", "type=regular"]), (vec!["type==\"regular\"".into()], Some("24h".into())));
        assert_eq!(given(&["id=layer:4"]).0, ["id~=\"layer:4\""]);
        assert_eq!(given(&["shared=false", "inuse=true", "private"]).0, ["private", "inuse", "private"]);
        assert_eq!(
            given(&["type==regular,shared", "description~=a=b"]).0,
            ["type==regular,shared", "description~=a=b"]
        );
        assert_eq!(given(&["description=a\"b"]).0, ["description==\"a\\\"b\""]);
    }
}
