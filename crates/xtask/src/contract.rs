//! No change of a contract may break a client: proto/contract.lock lists everything that clients rely on, a line each;
//! a line that would vanish or change is a finding. New lines are taken in by `--bless`.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};

use crate::proto_lint::{ours, pool};

/// Lines of the lock that no longer hold, and lines that it lacks.
pub fn check(lock: &Path, bless: bool) -> Result<Vec<String>> {
    let now = lines()?;
    let known: BTreeSet<String> = match fs::read_to_string(lock) {
        Ok(text) => text.lines().map(str::to_owned).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeSet::new(),
        Err(error) => return Err(error).with_context(|| format!("read {}", lock.display())),
    };
    let broken = known.difference(&now).map(|line| format!("breaks clients that rely on: {line}"));
    let mut findings: Vec<String> = broken.collect();
    let new: Vec<&String> = now.difference(&known).collect();
    if bless && findings.is_empty() {
        let text: String = now.iter().map(|line| format!("{line}\n")).collect();
        fs::write(lock, text).with_context(|| format!("write {}", lock.display()))?;
    } else if !new.is_empty() {
        findings.extend(new.iter().map(|line| format!("not in proto/contract.lock yet: {line}")));
        findings.push("take new lines in with: make bless".to_owned());
    }
    Ok(findings)
}

fn lines() -> Result<BTreeSet<String>> {
    let pool = pool()?;
    let mut lines = BTreeSet::new();
    for message in pool.all_messages().filter(|message| ours(message.package_name()) && !message.is_map_entry()) {
        for field in message.fields() {
            lines.insert(format!(
                "{} = {} {:?} {:?} json:{}",
                field.full_name(),
                field.number(),
                field.cardinality(),
                field.kind(),
                field.json_name()
            ));
        }
    }
    for it in pool.all_enums().filter(|it| ours(it.package_name())) {
        lines.extend(it.values().map(|value| format!("{} = {}", value.full_name(), value.number())));
    }
    for service in pool.services().filter(|service| ours(service.package_name())) {
        lines.extend(service.methods().map(|method| {
            let stream = |yes: bool| if yes { "stream " } else { "" };
            format!(
                "{}({}{}) returns ({}{})",
                method.full_name(),
                stream(method.is_client_streaming()),
                method.input().full_name(),
                stream(method.is_server_streaming()),
                method.output().full_name()
            )
        }));
    }
    Ok(lines)
}
