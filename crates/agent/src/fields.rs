//! Fields of a pod, and bounds and requests of its containers, as variables and files hold them.
//!
//! Pure.

use std::collections::BTreeMap;

use model::{qos, quantity::Quantity};
use pb::objects::{Container, ObjectMeta, Pod, ResourceFieldSelector};

/// What fields of the pod are read from, beside the pod itself.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The node's name.
    pub node_name: &'a str,
    /// The node's address.
    pub host_ip: &'a str,
    /// The pod's address.
    pub pod_ip: &'a str,
    /// What the node has for pods: the bound of a container that has none.
    pub allocatable: &'a BTreeMap<String, Quantity>,
}

/// A field of the pod, by its path. The error says what paths there are.
pub fn of_pod(pod: &Pod, path: &str, place: Place<'_>) -> Result<String, String> {
    let none = ObjectMeta::default();
    let meta = pod.metadata.as_ref().unwrap_or(&none);
    let entry = |prefix: &str, map: &BTreeMap<String, String>| {
        let key = path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(map.get(key).cloned().unwrap_or_default())
    };
    let plain = match path {
        "metadata.name" => Some(meta.name.clone()),
        "metadata.namespace" => Some(meta.namespace.clone()),
        "metadata.uid" => Some(meta.uid.clone()),
        "spec.nodeName" => Some(place.node_name.to_owned()),
        "status.hostIP" | "status.hostIPs" => Some(place.host_ip.to_owned()),
        "status.podIP" | "status.podIPs" => Some(place.pod_ip.to_owned()),
        _ => None,
    };
    plain
        .or_else(|| entry("metadata.labels", &meta.labels))
        .or_else(|| entry("metadata.annotations", &meta.annotations))
        .ok_or_else(|| {
            format!(
                "fieldPath {path:?} is not supported: use metadata.name, metadata.namespace, metadata.uid, \
                 metadata.labels['KEY'], metadata.annotations['KEY'], spec.nodeName, status.hostIP or status.podIP"
            )
        })
}

/// A bound or request of a container in whole units of the divisor, rounded up. `own` is the container that is meant when
/// none is named.
pub fn of_container(
    pod: &Pod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    place: Place<'_>,
) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    let mut all = spec.into_iter().flat_map(|spec| spec.init_containers.iter().chain(&spec.containers));
    let container = match selector.container_name.as_str() {
        "" => own.ok_or("containerName is missing: name the container whose resources are meant")?,
        name => all
            .find(|container| container.name == name)
            .ok_or_else(|| format!("the pod has no container {name:?}: name one of its own in containerName"))?,
    };
    let amount = amount(container, &selector.resource, place.allocatable)?;
    let one = Quantity::units(1);
    let divisor = match &selector.divisor {
        None => one,
        Some(divisor) => Quantity::try_from(divisor).map_err(|why| format!("divisor {:?} {why}", divisor.value))?,
    };
    let divisor = if divisor.is_zero() { one } else { divisor };
    // Both in the unit that the resource is reckoned in.
    let count = |amount: Quantity| match selector.resource.ends_with(".cpu") {
        true => amount.as_millis(),
        false => amount.as_units(),
    };
    let (whole, unit) = (count(amount), count(divisor).max(1));
    Ok((whole / unit + i64::from(whole % unit != 0)).to_string())
}

fn amount(container: &Container, resource: &str, allocatable: &BTreeMap<String, Quantity>) -> Result<Quantity, String> {
    let bounded = |amount: Option<Quantity>| amount.filter(|amount| !amount.is_zero());
    match resource.split_once('.') {
        Some(("limits", name)) => Ok(bounded(qos::limit(container, name))
            .or_else(|| allocatable.get(name).copied())
            .unwrap_or(Quantity::ZERO)),
        Some(("requests", name)) => Ok(qos::request(container, name).unwrap_or(Quantity::ZERO)),
        _ => Err(format!("resource {resource:?} is not supported: use limits.NAME or requests.NAME")),
    }
}

#[cfg(test)]
mod tests {
    use pb::objects::{PodSpec, ResourceRequirements};

    use super::*;

    fn container(name: &str) -> Container {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), pb::objects::Quantity::from(*value))).collect()
        };
        let limits = map(&[("cpu", "1500m"), ("memory", "100Mi")]);
        let resources = ResourceRequirements { limits, requests: map(&[("cpu", "250m")]) };
        Container { name: name.into(), resources: Some(resources), ..Default::default() }
    }

    fn read(own: Option<&Container>, name: &str, resource: &str, divisor: &str) -> Result<String, String> {
        let spec = PodSpec { containers: vec![container("main")], ..Default::default() };
        let pod = Pod { spec: Some(spec), ..Default::default() };
        let allocatable = BTreeMap::from([("memory".to_owned(), Quantity::bytes(1 << 30))]);
        let place = Place { node_name: "", host_ip: "", pod_ip: "", allocatable: &allocatable };
        let selector = ResourceFieldSelector {
            container_name: name.into(),
            resource: resource.into(),
            divisor: (!divisor.is_empty()).then(|| divisor.into()),
        };
        of_container(&pod, own, &selector, place)
    }

    #[test]
    fn amounts_are_whole_units_of_the_divisor() {
        let own = container("own");
        for (resource, divisor, says) in [
            ("limits.cpu", "", "2"),
            ("limits.cpu", "1m", "1500"),
            ("requests.cpu", "1m", "250"),
            ("requests.cpu", "1", "1"),
            ("limits.memory", "1Mi", "100"),
            ("limits.memory", "1M", "105"),
            ("limits.memory", "0", "104857600"),
            ("requests.memory", "1Mi", "100"),
            ("requests.ephemeral-storage", "", "0"),
        ] {
            assert_eq!(read(Some(&own), "", resource, divisor).as_deref(), Ok(says), "{resource} in {divisor:?}");
        }
    }

    #[test]
    fn what_has_no_bound_is_bounded_by_the_node() {
        let open = Container { name: "open".into(), ..Default::default() };
        assert_eq!(read(Some(&open), "", "limits.memory", "1Mi").as_deref(), Ok("1024"));
        assert_eq!(read(Some(&open), "", "requests.memory", "1Mi").as_deref(), Ok("0"));
    }

    #[test]
    fn another_container_is_named() {
        assert_eq!(read(None, "main", "limits.cpu", "1m").as_deref(), Ok("1500"));
        assert!(read(None, "other", "limits.cpu", "").unwrap_err().contains("no container \"other\""));
        assert!(read(None, "", "limits.cpu", "").unwrap_err().contains("containerName is missing"));
        assert!(read(None, "main", "pods", "").unwrap_err().contains("\"pods\" is not supported"));
    }
}
