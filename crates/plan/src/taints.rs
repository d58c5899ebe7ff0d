//! Taints of nodes, what pods put up with, and when a pod has to leave a node that does not want it any more.
//!
//! A taint that takes a node out of service is not decided here: it says that nothing runs, and asks nobody to leave.

use jiff::{SignedDuration, Timestamp};
use model::validate::OUT_OF_SERVICE;
use pb::{
    ObjectExt,
    objects::{Node, Pod, Taint, Toleration},
};

/// Keeps pods away.
pub const NO_SCHEDULE: &str = "NoSchedule";
/// Keeps pods away where there is another place.
pub const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";
/// Keeps pods away, and lets those leave that are there.
pub const NO_EXECUTE: &str = "NoExecute";
/// The taint that a cordoned node has, written or not.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Whether a toleration is about this taint.
pub fn covers(toleration: &Toleration, taint: &Taint) -> bool {
    (toleration.effect.is_empty() || toleration.effect == taint.effect)
        && (toleration.key.is_empty() || toleration.key == taint.key)
        && match toleration.operator.as_str() {
            "" | "Equal" => toleration.value == taint.value,
            "Exists" => true,
            _ => false,
        }
}

/// Whether one of the tolerations is about this taint.
pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| covers(toleration, taint))
}

/// Why, and when, a pod has to leave its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leave {
    /// The moment; not after now: at once.
    pub at: Timestamp,
    /// The taint.
    pub taint: Taint,
}

/// When a pod has to leave its node; None if it may stay. `since` says since when a taint that does not say so itself is
/// known. Of several taints the first to send the pod away counts.
pub fn leave(pod: &Pod, node: &Node, since: impl Fn(&Taint) -> Timestamp) -> Option<Leave> {
    let tolerations = pod.spec.as_ref().map(|spec| spec.tolerations.as_slice()).unwrap_or_default();
    let leaving = |taint: &Taint| {
        let at = taint.time_added.as_ref().map_or_else(|| since(taint), Timestamp::from);
        let Some(toleration) = tolerations.iter().find(|toleration| covers(toleration, taint)) else {
            return Some(Leave { at, taint: taint.clone() });
        };
        let seconds = toleration.toleration_seconds?.max(0);
        // A time that cannot be reckoned is never.
        let at = at.checked_add(SignedDuration::from_secs(seconds)).ok()?;
        Some(Leave { at, taint: taint.clone() })
    };
    if pod.is_terminating() {
        return None;
    }
    executing(node).filter_map(leaving).min_by_key(|leave| leave.at)
}

/// The taints of a node that let pods leave.
pub fn executing(node: &Node) -> impl Iterator<Item = &Taint> {
    let taints = node.spec.iter().flat_map(|spec| &spec.taints);
    taints.filter(|taint| taint.effect == NO_EXECUTE && taint.key != OUT_OF_SERVICE)
}

#[cfg(test)]
mod tests {
    use pb::objects::{NodeSpec, PodSpec};

    use super::*;

    fn taint(key: &str, value: &str, effect: &str) -> Taint {
        Taint { key: key.into(), value: value.into(), effect: effect.into(), time_added: None }
    }

    fn toleration(key: &str, operator: &str, value: &str, effect: &str, seconds: Option<i64>) -> Toleration {
        Toleration {
            key: key.into(),
            operator: operator.into(),
            value: value.into(),
            effect: effect.into(),
            toleration_seconds: seconds,
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn leaves(tolerations: &[Toleration], taints: &[Taint]) -> Option<(i64, String)> {
        let spec = PodSpec { tolerations: tolerations.to_vec(), ..PodSpec::default() };
        let pod = Pod { spec: Some(spec), ..Pod::default() };
        let node = Node { spec: Some(NodeSpec { taints: taints.to_vec(), ..NodeSpec::default() }), ..Node::default() };
        leave(&pod, &node, |_| at(100)).map(|leave| (leave.at.as_second(), leave.taint.key))
    }

    #[test]
    fn a_toleration_is_about_keys_values_and_effects() {
        let gpu = taint("gpu", "yes", NO_SCHEDULE);
        for (wanted, key, operator, value, effect) in [
            (true, "gpu", "", "yes", ""),
            (true, "gpu", "Equal", "yes", NO_SCHEDULE),
            (true, "gpu", "Exists", "", ""),
            (true, "", "Exists", "", ""),
            (false, "gpu", "Equal", "no", ""),
            (false, "gpu", "Equal", "yes", NO_EXECUTE),
            (false, "cpu", "Exists", "", ""),
            (false, "gpu", "Sometimes", "yes", ""),
        ] {
            assert_eq!(
                covers(&toleration(key, operator, value, effect, None), &gpu),
                wanted,
                "{key} {operator} {value}"
            );
        }
    }

    #[test]
    fn a_pod_stays_as_long_as_it_puts_up_with_every_taint() {
        let (a, b) = (taint("a", "", NO_EXECUTE), taint("b", "", NO_EXECUTE));
        let exists = |key, seconds| toleration(key, "Exists", "", "", seconds);
        assert_eq!(leaves(&[], &[taint("a", "", NO_SCHEDULE)]), None);
        assert_eq!(leaves(&[], &[taint(OUT_OF_SERVICE, "", NO_EXECUTE)]), None, "it has its own way");
        assert_eq!(leaves(&[], std::slice::from_ref(&a)), Some((100, "a".into())));
        assert_eq!(leaves(&[exists("", None)], &[a.clone(), b.clone()]), None);
        assert_eq!(
            leaves(&[exists("a", Some(30)), exists("b", Some(20))], &[a.clone(), b.clone()]),
            Some((120, "b".into()))
        );
        assert_eq!(
            leaves(&[exists("a", Some(30)), exists("b", None)], &[a.clone(), b.clone()]),
            Some((130, "a".into()))
        );
        assert_eq!(leaves(&[exists("a", Some(-1))], &[a.clone(), b]), Some((100, "a".into())), "b is not put up with");
        let added = Taint { time_added: Some(at(7).into()), ..a };
        assert_eq!(leaves(&[exists("a", Some(3))], &[added]), Some((10, "a".into())));
    }
}
