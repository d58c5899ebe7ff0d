//! `berth volume ls`: claims with their volumes.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::Result;
use jiff::Timestamp;
use pb::{
    Kind, Object, ObjectExt,
    api::v1::UsedVolume,
    objects::{PersistentVolume, PersistentVolumeClaim, Pod},
};

use super::{Scope, all, bytes, claims, named_by, state, usage, volume_of};
use crate::{
    age,
    client::Client,
    output::{self, Format, table::Table},
};

/// Flags of `berth volume ls`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Whose: `sts/web`, `pod/web-0` or a claim; all claims of the namespace if absent
    #[arg(value_name = "sts/SET | pod/POD | CLAIM")]
    of: Option<String>,
    /// The form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// No header over the table
    #[arg(long)]
    no_headers: bool,
}

/// What is known beside the claims.
struct Around {
    volumes: BTreeMap<String, PersistentVolume>,
    used: BTreeMap<String, UsedVolume>,
    pods: Vec<Pod>,
    now: Timestamp,
}

/// Shows.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let scope = args.of.as_deref().map(Scope::read).transpose()?;
    let claims = claims(&client, scope.as_ref()).await?;
    if claims.is_empty() && matches!(args.output, Format::Table | Format::Wide) {
        let whose = args.of.map_or_else(|| format!("in namespace {}", client.namespace), |of| format!("of {of}"));
        eprintln!("There are no claims {whose}.");
        return Ok(ExitCode::SUCCESS);
    }
    match args.output {
        Format::Json | Format::Yaml => {
            let objects: Vec<_> = claims.into_iter().map(Object::into_any).collect();
            output::write_value(&mut std::io::stdout().lock(), &output::list(&objects)?, args.output)?;
        }
        Format::Name => {
            for claim in &claims {
                println!("{}", output::called(Kind::PersistentVolumeClaim, claim.name()));
            }
        }
        Format::Table | Format::Wide => {
            let bound = claims.iter().map(volume_of).filter(|name| !name.is_empty()).map(str::to_owned).collect();
            let volumes = all::<PersistentVolume>(&client).await?.into_iter();
            let around = Around {
                volumes: volumes.map(|volume| (volume.name().to_owned(), volume)).collect(),
                used: usage(&client, bound).await,
                pods: all(&client).await?,
                now: Timestamp::now(),
            };
            let text = table(&claims, &around, args.output == Format::Wide).to_string();
            let skip = if args.no_headers { text.find('\n').map_or(0, |at| at + 1) } else { 0 };
            print!("{}", text.get(skip..).unwrap_or_default());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(claims: &[PersistentVolumeClaim], around: &Around, wide: bool) -> Table {
    let mut header = vec!["NAME", "STATUS", "USED", "SIZE", "NODE", "POD", "STORAGECLASS", "AGE"];
    if wide {
        header.extend(["VOLUME", "DRIVER"]);
    }
    let mut table = Table::new(header);
    for claim in claims {
        let mut cells = row(claim, around);
        cells.truncate(if wide { cells.len() } else { cells.len() - 2 });
        table.push(cells);
    }
    table
}

fn row(claim: &PersistentVolumeClaim, around: &Around) -> Vec<String> {
    let volume = around.volumes.get(volume_of(claim));
    let used = around.used.get(volume_of(claim));
    let pod = around.pods.iter().find(|pod| named_by(pod).any(|name| name == claim.name()));
    let node = match (used, volume) {
        (Some(used), _) => used.node.clone(),
        (None, Some(volume)) => state::reach(volume),
        (None, None) => String::new(),
    };
    let driver = volume.and_then(|volume| volume.spec.as_ref()?.csi.as_ref()).map(|csi| csi.driver.clone());
    vec![
        claim.name().to_owned(),
        state::word(claim),
        used.map_or_else(|| "-".to_owned(), |used| bytes::share(used.used_bytes, used.total_bytes)),
        state::size(claim),
        node,
        pod.map_or_else(|| "<none>".to_owned(), |pod| pod.name().to_owned()),
        claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone()).unwrap_or_default(),
        age::since(claim.meta().creation_timestamp.as_ref(), around.now),
        volume_of(claim).to_owned(),
        driver.unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_well() {
        let claim = |name: &str, volume: &str| -> PersistentVolumeClaim {
            serde_json::from_value(json!({
                "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"volumeName": volume, "storageClassName": "local", "resources": {"requests": {"storage": "1Gi"}}},
                "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
            }))
            .unwrap()
        };
        let volume: PersistentVolume = serde_json::from_value(json!({
            "metadata": {"name": "pv-1"},
            "spec": {"csi": {"driver": "local"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "topology.local.berth.dev/node", "operator": "In", "values": ["node-2"]}]},
            ]}}},
        }))
        .unwrap();
        let pod = json!({"metadata": {"name": "web-0"}, "spec": {"volumes": [{"persistentVolumeClaim": {"claimName": "www-web-0"}}]}});
        let used =
            UsedVolume { node: "node-1".into(), total_bytes: 1 << 30, used_bytes: 256 << 20, ..UsedVolume::default() };
        let around = Around {
            volumes: [("pv-1".to_owned(), volume)].into(),
            used: [("pv-0".to_owned(), used)].into(),
            pods: vec![serde_json::from_value(pod).unwrap()],
            now: "2026-01-01T00:01:00Z".parse().unwrap(),
        };
        let text = table(&[claim("www-web-0", "pv-0"), claim("www-web-1", "pv-1")], &around, false).to_string();
        assert_eq!(
            text,
            "NAME        STATUS   USED          SIZE   NODE     POD      STORAGECLASS   AGE\n\
             www-web-0   Bound    256Mi (25%)   1Gi    node-1   web-0    local          60s\n\
             www-web-1   Bound    -             1Gi    node-2   <none>   local          60s\n"
        );
    }
}
