//! `bud du` and `bud prune`.

use super::{ago, table, told};
use crate::cli::manage::{DuArgs, PruneArgs};
use crate::connect::{self, Start};
use crate::progress::{bytes_text, filter};
use crate::request::values;
use crate::terminal;
use anyhow::{Context as _, Result, bail};
use bud_protocol::control::{DiskUsageRequest, PruneRequest, UsageRecord};
use serde_json::json;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;

/// Shows what the cache holds.
pub async fn du(args: DuArgs) -> Result<ExitCode> {
    let connection = connect::connect(&args.connect, &Start::usual()).await?;
    let request = DiskUsageRequest { filter: args.filter, ..Default::default() };
    let mut records = connection.control().disk_usage(request).await.map_err(told)?.into_inner().record;
    records.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let text = if args.json {
        let list: Vec<_> = records.iter().map(record_json).collect();
        format!("{}\n", serde_json::to_string_pretty(&list)?)
    } else if args.verbose {
        records.iter().map(details).collect::<String>() + &totals(&records)
    } else {
        let mut rows = vec![["ID", "SIZE", "LAST USED", "WHAT"].map(str::to_owned).to_vec()];
        rows.extend(records.iter().map(row));
        table(&rows) + "\n" + &totals(&records)
    };
    terminal::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn last_used(record: &UsageRecord) -> Option<i64> {
    record.last_used_at.or(record.created_at).map(|time| time.seconds).filter(|&s| s > 0)
}

fn row(record: &UsageRecord) -> Vec<String> {
    const WHAT: usize = 60;
    let description = filter::name(&record.description);
    vec![
        format!("{}{}", short(&record.id), if record.in_use { " *" } else { "" }),
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
        vec!["Used:".into(), format!("{} times", record.usage_count)],
        vec!["In use:".into(), record.in_use.to_string()],
        vec!["Shared:".into(), record.shared.to_string()],
    ];
    if let Some(at) = last_used(record) {
        rows.push(vec!["Last used:".into(), ago(at)]);
    }
    if !record.parents.is_empty() {
        rows.push(vec!["Parents:".into(), filter::name(&record.parents.join(" "))]);
    }
    table(&rows) + "\n"
}

fn totals(records: &[UsageRecord]) -> String {
    let sum = |wanted: &dyn Fn(&UsageRecord) -> bool| {
        bytes_text(records.iter().filter(|r| wanted(r)).map(|r| r.size).fold(0, i64::saturating_add))
    };
    let used = if records.iter().any(|r| r.in_use) { " (*: in use)" } else { "" };
    table(&[
        vec!["Total:".into(), format!("{}{used}", sum(&|_| true))],
        vec!["Reclaimable:".into(), sum(&|r| !r.in_use && !r.shared)],
    ])
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
        "mutable": record.mutable,
        "parents": record.parents,
        "createdAt": record.created_at.map(|t| t.seconds),
        "lastUsedAt": record.last_used_at.map(|t| t.seconds),
    })
}

/// Removes cache that is not in use.
pub async fn prune(args: PruneArgs) -> Result<ExitCode> {
    let keep_duration = match &args.keep_duration {
        Some(text) => i64::try_from(values::duration(text)?.as_nanos()).context("--keep-duration is too long")?,
        None => 0,
    };
    let reserved_space = match &args.reserved_space {
        Some(text) => i64::try_from(values::bytes(text)?).context("--reserved-space is too large")?,
        None => 0,
    };
    if !args.force && std::io::stdin().is_terminal() && !confirmed(&args)? {
        bail!("nothing was removed");
    }
    let connection = connect::connect(&args.connect, &Start::usual()).await?;
    let request =
        PruneRequest { filter: args.filter, all: args.all, keep_duration, reserved_space, ..Default::default() };
    let mut removed = connection.control().prune(request).await.map_err(told)?.into_inner();
    let (mut count, mut size) = (0_u64, 0_i64);
    while let Some(record) = removed.message().await.map_err(told)? {
        count += 1;
        size = size.saturating_add(record.size);
        if args.verbose {
            let what = filter::name(&record.description);
            terminal::print(&format!("{}  {}  {what}\n", short(&record.id), bytes_text(record.size)))?;
        }
    }
    terminal::print(&format!(
        "{} freed, {count} record{} removed\n",
        bytes_text(size),
        if count == 1 { "" } else { "s" }
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn confirmed(args: &PruneArgs) -> Result<bool> {
    let what = if args.all { "all build cache that is not in use" } else { "build cache that no image needs" };
    let mut stderr = std::io::stderr().lock();
    write!(stderr, "Remove {what}? Builds after it run anew. [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
