//! `berth volume describe`: everything about the volume of one claim, on one page.

use std::process::ExitCode;

use anyhow::Result;
use jiff::Timestamp;
use pb::{
    Kind, Object as _, ObjectExt,
    api::v1::UsedVolume,
    objects::{ClaimOperation, PersistentVolume, PersistentVolumeClaim, Pod, Time, VolumeAttachment, VolumeSnapshot},
};

use super::{all, bytes, get, named_by, state, usage, volume_of};
use crate::{age, client::Client, commands::describe, output::table::Table, target};

/// Where values begin.
const VALUES: usize = 16;

/// Flags of `berth volume describe`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The claim: `www-web-0` or `pvc/www-web-0`
    #[arg(required = true, value_name = "CLAIM")]
    claim: Vec<String>,
}

/// All that is shown.
struct Facts {
    claim: PersistentVolumeClaim,
    volume: Option<PersistentVolume>,
    used: Option<UsedVolume>,
    pods: Vec<Pod>,
    attachments: Vec<VolumeAttachment>,
    snapshots: Vec<VolumeSnapshot>,
    now: Timestamp,
}

/// Describes.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let (kind, name) = target::one(&args.claim, Some(Kind::PersistentVolumeClaim))?;
    if kind != Kind::PersistentVolumeClaim {
        anyhow::bail!("a {kind} is no claim; `berth volume ls` shows the claims of sets and pods");
    }
    let claim: PersistentVolumeClaim = get(&client, &name).await?;
    let bound = volume_of(&claim).to_owned();
    let volume = match client.find(Kind::PersistentVolume, &bound, "").await {
        Ok(found) if !bound.is_empty() => found.and_then(|object| PersistentVolume::from_any(object).ok()),
        Ok(_) => None,
        Err(error) => return Err(error),
    };
    let used = if bound.is_empty() { None } else { usage(&client, vec![bound.clone()]).await.remove(&bound) };
    let (mut pods, mut attachments, mut snapshots): (Vec<Pod>, Vec<VolumeAttachment>, Vec<VolumeSnapshot>) =
        (all(&client).await?, all(&client).await?, all(&client).await?);
    pods.retain(|pod| named_by(pod).any(|claim| claim == name));
    attachments.retain(|attachment| volume_attached(attachment) == bound);
    snapshots.retain(|snapshot| source(snapshot) == name);
    let object = claim.clone().into_any();
    let facts = Facts { claim, volume, used, pods, attachments, snapshots, now: Timestamp::now() };
    print!("{}{}", described(&facts), describe::events(&client, &object).await?);
    Ok(ExitCode::SUCCESS)
}

fn volume_attached(attachment: &VolumeAttachment) -> &str {
    let source = attachment.spec.as_ref().and_then(|spec| spec.source.as_ref());
    source.map_or("", |source| &source.persistent_volume_name)
}

fn source(snapshot: &VolumeSnapshot) -> &str {
    let source = snapshot.spec.as_ref().and_then(|spec| spec.source.as_ref());
    source.map_or("", |source| &source.persistent_volume_claim_name)
}

fn line(out: &mut String, title: &str, value: &str) {
    out.push_str(&format!("{:VALUES$}{value}\n", format!("{title}:")));
}

fn described(facts: &Facts) -> String {
    let Facts { claim, volume, used, pods, .. } = facts;
    let mut out = String::new();
    let spec = claim.spec.clone().unwrap_or_default();
    line(&mut out, "Claim", &format!("{}/{}", claim.namespace(), claim.name()));
    line(&mut out, "Status", &state::word(claim));
    let pods: Vec<_> = pods.iter().map(|pod| pod.name()).collect();
    line(&mut out, "Used by", if pods.is_empty() { "<none>".to_owned() } else { pods.join(", ") }.as_str());
    line(&mut out, "Size", &state::size(claim));
    if let Some(used) = used {
        let left = bytes::short(used.available_bytes);
        line(&mut out, "Used", &format!("{}, {left} left", bytes::share(used.used_bytes, used.total_bytes)));
        line(&mut out, "Mounted on", &used.node);
    }
    line(&mut out, "Storage class", spec.storage_class_name.as_deref().unwrap_or("<default>"));
    line(&mut out, "Access modes", &spec.access_modes.join(", "));
    if let Some(source) = &spec.data_source {
        line(&mut out, "Made from", &format!("{} {}", source.kind, source.name));
    }
    match volume {
        Some(volume) => about_volume(&mut out, volume),
        None if volume_of(claim).is_empty() => line(&mut out, "Volume", "<none yet>"),
        None => line(&mut out, "Volume", &format!("{} (gone)", volume_of(claim))),
    }
    if let Some(operation) = state::operation(claim) {
        about_operation(&mut out, operation, facts.now);
    }
    for condition in claim.status.iter().flat_map(|status| &status.conditions).filter(|c| c.status == "True") {
        let since = age::since(condition.last_transition_time.as_ref(), facts.now);
        line(&mut out, &condition.r#type, &format!("{} (for {since})", condition.message));
    }
    out.push_str(&attached(facts));
    out.push_str(&snapshots(facts));
    out
}

fn about_volume(out: &mut String, volume: &PersistentVolume) {
    let spec = volume.spec.clone().unwrap_or_default();
    line(out, "Volume", volume.name());
    if let Some(csi) = &spec.csi {
        line(out, "Driver", &csi.driver);
        line(out, "Handle", &csi.volume_handle);
    }
    line(out, "Reachable", &state::reach(volume));
    line(out, "Reclaim policy", &spec.persistent_volume_reclaim_policy);
    let status = volume.status.clone().unwrap_or_default();
    if !status.message.is_empty() {
        line(out, "Volume says", &status.message);
    }
}

fn about_operation(out: &mut String, operation: &ClaimOperation, now: Timestamp) {
    let what = match operation.r#type.as_str() {
        "Move" => format!("move to {}", operation.target_node),
        _ => format!("restore from {}", operation.snapshot),
    };
    let mut text = format!("{what} ({}): {}", operation.id, operation.phase);
    if operation.total_bytes > 0 {
        let done = bytes::share(operation.done_bytes, operation.total_bytes);
        text.push_str(&format!(", {done} of {}", bytes::short(operation.total_bytes)));
    }
    if !operation.message.is_empty() {
        text.push_str(&format!("; {}", operation.message));
    }
    let when = |title: &str, time: &Option<Time>| match time {
        Some(_) => format!(", {title} {} ago", age::since(time.as_ref(), now)),
        None => String::new(),
    };
    text.push_str(&when("asked", &operation.started_at));
    text.push_str(&when("ended", &operation.ended_at));
    line(out, "Operation", &text);
}

fn attached(facts: &Facts) -> String {
    if facts.attachments.is_empty() {
        return String::new();
    }
    let mut table = Table::new(["Node", "Attached", "Trouble"]);
    for attachment in &facts.attachments {
        let status = attachment.status.clone().unwrap_or_default();
        let trouble = status.detach_error.or(status.attach_error).map_or(String::new(), |error| error.message);
        let node = attachment.spec.as_ref().map_or("", |spec| &spec.node_name).to_owned();
        let how = match (attachment.is_terminating(), status.attached) {
            (true, _) => "is being detached",
            (false, true) => "yes",
            (false, false) => "not yet",
        };
        table.push([node, how.to_owned(), trouble]);
    }
    under("Attachments", &table)
}

fn snapshots(facts: &Facts) -> String {
    if facts.snapshots.is_empty() {
        return format!("{:VALUES$}<none>\n", "Snapshots:");
    }
    let mut table = Table::new(["Name", "Ready", "Size", "Taken"]);
    for snapshot in &facts.snapshots {
        let status = snapshot.status.clone().unwrap_or_default();
        let taken = match &status.creation_time {
            Some(time) => format!("{} ago", age::since(Some(time), facts.now)),
            None => "-".to_owned(),
        };
        let size = status.restore_size.map_or_else(|| "-".to_owned(), |size| size.value);
        table.push([snapshot.name().to_owned(), status.ready_to_use.to_string(), size, taken]);
    }
    under("Snapshots", &table)
}

fn under(title: &str, table: &Table) -> String {
    let rows: String = table.to_string().lines().map(|row| format!("  {row}\n")).collect();
    format!("{title}:\n{rows}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_well() {
        let claim = serde_json::from_value(json!({
            "metadata": {"name": "www-web-0", "namespace": "default"},
            "spec": {
                "accessModes": ["ReadWriteOnce"], "volumeName": "pv-1", "storageClassName": "local",
                "resources": {"requests": {"storage": "1Gi"}},
            },
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "operation": {
                "id": "ab12", "type": "Move", "targetNode": "node-2", "phase": "Copying", "doneBytes": 512,
                "totalBytes": 1024, "startedAt": "2026-01-01T00:00:00Z",
            }},
        }))
        .unwrap();
        let snapshot = json!({
            "metadata": {"name": "nightly-www-web-0"},
            "status": {"readyToUse": true, "restoreSize": "1Gi", "creationTime": "2026-01-01T00:00:30Z"},
        });
        let facts = Facts {
            claim,
            volume: None,
            used: Some(UsedVolume {
                node: "node-1".into(),
                total_bytes: 1 << 30,
                used_bytes: 1 << 29,
                ..Default::default()
            }),
            pods: Vec::new(),
            attachments: Vec::new(),
            snapshots: vec![serde_json::from_value(snapshot).unwrap()],
            now: "2026-01-01T00:01:00Z".parse().unwrap(),
        };
        let text = described(&facts);
        assert!(
            text.starts_with("Claim:          default/www-web-0\nStatus:         Moving 50%\nUsed by:        <none>\n"),
            "{text}"
        );
        assert!(text.contains("\nUsed:           512Mi (50%), 0 left\n"), "{text}");
        assert!(text.contains("\nVolume:         pv-1 (gone)\n"), "{text}");
        assert!(
            text.contains("\nOperation:      move to node-2 (ab12): Copying, 512 (50%) of 1Ki, asked 60s ago\n"),
            "{text}"
        );
        assert!(
            text.ends_with(
                "Snapshots:\n  Name                Ready   Size   Taken\n  nightly-www-web-0   true    1Gi    30s ago\n"
            ),
            "{text}"
        );
    }
}
