//! Which pods of a node may be asked to go. Pure.

use pb::objects::Pod;

/// What was said about pods that lose something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Accepts {
    /// Pods that nobody makes again may go.
    pub for_good: bool,
    /// The data of emptyDir volumes may be lost.
    pub lost_data: bool,
}

/// Why a pod is not asked to go, and what would let it; None if it may.
pub fn objection(pod: &Pod, accepts: Accepts) -> Option<String> {
    let phase = pod.status.as_ref().map_or("", |status| status.phase.as_str());
    let going = pod.metadata.as_ref().is_some_and(|meta| meta.deletion_timestamp.is_some());
    // What has ended loses nothing any more, and what is on its way is not asked.
    if going || matches!(phase, "Succeeded" | "Failed") {
        return None;
    }
    let owners = pod.metadata.iter().flat_map(|meta| &meta.owner_references);
    if !accepts.for_good && !owners.clone().any(|owner| owner.controller == Some(true)) {
        return Some("belongs to no set: it would not come back (--force lets it go for good)".to_owned());
    }
    let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes);
    let mut scratch = volumes.filter(|volume| volume.empty_dir.is_some()).map(|volume| volume.name.as_str());
    match scratch.next() {
        Some(name) if !accepts.lost_data => Some(format!(
            "keeps data in the emptyDir volume {name:?}, which would be lost (--delete-emptydir-data lets it go)"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use pb::{Kind, Object, api::v1::Object as AnyObject};
    use serde_json::{Value, json};

    use super::*;

    fn pod(owned: bool, volumes: Value, phase: &str) -> Pod {
        let owner = json!({"kind": "StatefulSet", "name": "web", "uid": "u", "controller": true});
        let owners = if owned { json!([owner]) } else { json!([]) };
        let json = json!({
            "metadata": {"name": "web-0", "ownerReferences": owners},
            "spec": {"volumes": volumes}, "status": {"phase": phase},
        });
        Pod::from_any(AnyObject::from_json(Kind::Pod, json).unwrap()).unwrap()
    }

    #[test]
    fn what_would_be_lost_must_be_said() {
        let nothing = Accepts::default();
        let scratch = json!([{"name": "tmp", "emptyDir": {}}]);
        assert_eq!(objection(&pod(true, json!([]), "Running"), nothing), None);
        assert!(objection(&pod(false, json!([]), "Running"), nothing).unwrap().contains("--force"));
        let lost = objection(&pod(true, scratch.clone(), "Running"), nothing).unwrap();
        assert!(lost.contains("\"tmp\"") && lost.contains("--delete-emptydir-data"), "{lost}");
        let all = Accepts { for_good: true, lost_data: true };
        assert_eq!(objection(&pod(false, scratch.clone(), "Running"), all), None);
        assert_eq!(objection(&pod(false, scratch, "Succeeded"), nothing), None, "it has ended");
    }
}
