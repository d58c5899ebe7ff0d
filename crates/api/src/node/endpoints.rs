//! Which pods stand behind a Service: a pure function of the Service and the pods of its namespace.
//!
//! The rules are Kubernetes': who is answered (DNS-3, DNS-4), under which host name (DNS-2), which ports have names
//! (DNS-7), and where a pod listens for each of them. Terminal pods, and pods without an address, are never answered.

use model::service::EXTERNAL_NAME;
use pb::{
    Object, ObjectExt,
    agent::v1::{Endpoint, EndpointPort, ServiceEndpoints},
    objects::{Container, Pod, PodSpec, PodStatus, Service, ServicePort, int_or_string},
};

/// The endpoints of a Service, in order of the pods' names. A Service without a selector has none: its endpoints would
/// be written by hand, and Berth has no such object. One that stands for a name outside has none either.
pub fn endpoints<'a>(service: &Service, pods: impl IntoIterator<Item = &'a Pod>) -> ServiceEndpoints {
    let spec = service.spec.clone().unwrap_or_default();
    let external = spec.r#type == EXTERNAL_NAME;
    let not_ready_too = spec.publish_not_ready_addresses;
    let mut endpoints: Vec<_> = pods
        .into_iter()
        .filter(|pod| !external && selects(service, pod) && is_answered(pod, not_ready_too))
        .filter_map(|pod| endpoint(service, pod))
        .collect();
    endpoints.sort_by(|a, b| a.pod_name.cmp(&b.pod_name));
    let ports = spec.ports.iter().map(|port| EndpointPort {
        name: port.name.clone(),
        protocol: protocol(&port.protocol).to_owned(),
        port: port.port,
    });
    let cluster_ip = model::service::address(service).map(|address| address.to_string());
    ServiceEndpoints {
        namespace: service.namespace().to_owned(),
        name: service.name().to_owned(),
        endpoints,
        ports: ports.collect(),
        cluster_ip: cluster_ip.unwrap_or_default(),
        external_name: if external { spec.external_name } else { String::new() },
    }
}

fn protocol(said: &str) -> &str {
    if said.is_empty() { "TCP" } else { said }
}

/// Whether a Service looks at a pod.
pub fn selects(service: &Service, pod: &Pod) -> bool {
    let Some(selector) = service.spec.as_ref().map(|spec| &spec.selector).filter(|selector| !selector.is_empty())
    else {
        return false;
    };
    service.namespace() == pod.namespace()
        && selector.iter().all(|(key, value)| pod.meta().labels.get(key) == Some(value))
}

/// DNS-4: ready is (publishNotReadyAddresses) or (Ready and not terminating).
fn is_answered(pod: &Pod, not_ready_too: bool) -> bool {
    let Some(status) = &pod.status else { return false };
    let terminal = matches!(status.phase.as_str(), "Succeeded" | "Failed");
    !terminal && (not_ready_too || (is_ready(status) && !pod.is_terminating()))
}

fn is_ready(status: &PodStatus) -> bool {
    status.conditions.iter().any(|condition| condition.r#type == "Ready" && condition.status == "True")
}

fn endpoint(service: &Service, pod: &Pod) -> Option<Endpoint> {
    let ip = pod.status.as_ref().map(|status| &status.pod_ip).filter(|ip| !ip.is_empty())?;
    let spec = pod.spec.as_ref();
    let under_service = spec.is_some_and(|spec| spec.subdomain == service.name());
    let hostname = spec.filter(|_| under_service).map(|spec| spec.hostname.clone()).unwrap_or_default();
    let ports = service.spec.iter().flat_map(|spec| &spec.ports);
    let target_ports = ports.map(|port| target(port, spec)).collect();
    Some(Endpoint { ip: ip.clone(), hostname, pod_name: pod.name().to_owned(), target_ports })
}

/// Where a pod listens for a port of a Service; 0 where that is a name that no container of the pod has. Sidecars are
/// containers like others, init containers that end are not.
fn target(port: &ServicePort, pod: Option<&PodSpec>) -> i32 {
    match port.target_port.as_ref().and_then(|target| target.kind.as_ref()) {
        None | Some(int_or_string::Kind::IntValue(0)) => port.port,
        Some(int_or_string::Kind::IntValue(number)) => *number,
        Some(int_or_string::Kind::StringValue(name)) => {
            let Some(pod) = pod else { return 0 };
            let sidecars = pod.init_containers.iter().filter(|container| is_sidecar(container));
            let ports = pod.containers.iter().chain(sidecars).flat_map(|container| &container.ports);
            let named = |have: &&pb::objects::ContainerPort| {
                have.name == *name && protocol(&have.protocol) == protocol(&port.protocol)
            };
            ports.filter(|_| !name.is_empty()).find(named).map_or(0, |found| found.container_port)
        }
    }
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy == "Always"
}

#[cfg(test)]
mod tests {
    use pb::objects::{Condition, ContainerPort, IntOrString, ObjectMeta, ServiceSpec, Time};

    use super::*;

    fn service(not_ready_too: bool) -> Service {
        Service {
            metadata: Some(ObjectMeta { name: "nginx".into(), namespace: "default".into(), ..Default::default() }),
            spec: Some(ServiceSpec {
                selector: [("app".to_owned(), "nginx".to_owned())].into(),
                ports: vec![ServicePort { name: "web".into(), port: 80, ..Default::default() }],
                publish_not_ready_addresses: not_ready_too,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn pod(name: &str, ip: &str) -> Pod {
        Pod {
            metadata: Some(ObjectMeta {
                name: name.into(),
                namespace: "default".into(),
                labels: [("app".to_owned(), "nginx".to_owned())].into(),
                ..Default::default()
            }),
            spec: Some(PodSpec { hostname: name.into(), subdomain: "nginx".into(), ..Default::default() }),
            status: Some(PodStatus {
                phase: "Running".into(),
                pod_ip: ip.into(),
                conditions: vec![Condition { r#type: "Ready".into(), status: "True".into(), ..Default::default() }],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn answered(service: &Service, pods: &[Pod]) -> Vec<(String, String)> {
        endpoints(service, pods).endpoints.into_iter().map(|e| (e.pod_name, e.hostname)).collect()
    }

    fn pair(name: &str, hostname: &str) -> (String, String) {
        (name.into(), hostname.into())
    }

    #[test]
    fn ready_pods_are_answered_under_their_host_names_in_order() {
        let all = endpoints(&service(false), &[pod("web-1", "10.0.0.2"), pod("web-0", "10.0.0.1")]);
        let names: Vec<_> = all.endpoints.iter().map(|e| (e.pod_name.as_str(), e.ip.as_str())).collect();
        assert_eq!(names, [("web-0", "10.0.0.1"), ("web-1", "10.0.0.2")]);
        assert_eq!(all.ports, [EndpointPort { name: "web".into(), protocol: "TCP".into(), port: 80 }]);
    }

    #[test]
    fn who_is_not_answered() {
        let mut unready = pod("web-0", "10.0.0.1");
        unready.status.as_mut().unwrap().conditions[0].status = "False".into();
        let mut terminating = pod("web-1", "10.0.0.2");
        terminating.meta_mut().deletion_timestamp = Some(Time::default());
        let mut failed = pod("web-2", "10.0.0.3");
        failed.status.as_mut().unwrap().phase = "Failed".into();
        let mut elsewhere = pod("web-3", "10.0.0.4");
        elsewhere.meta_mut().namespace = "other".into();
        let mut other = pod("web-4", "10.0.0.5");
        other.meta_mut().labels.clear();
        let pods = [unready, terminating, failed, elsewhere, other, pod("web-5", "")];
        assert_eq!(answered(&service(false), &pods), []);
        assert_eq!(answered(&service(true), &pods), [pair("web-0", "web-0"), pair("web-1", "web-1")]);
    }

    #[test]
    fn a_host_name_stands_only_under_the_pods_own_subdomain() {
        let mut foreign = pod("web-0", "10.0.0.1");
        foreign.spec.as_mut().unwrap().subdomain = "another".into();
        assert_eq!(answered(&service(false), &[foreign]), [pair("web-0", "")]);
    }

    #[test]
    fn no_selector_selects_nothing() {
        let mut bare = service(true);
        bare.spec.as_mut().unwrap().selector.clear();
        assert_eq!(answered(&bare, &[pod("web-0", "10.0.0.1")]), []);
    }

    #[test]
    fn ports_by_name_are_looked_up_in_each_pod() {
        let mut service = service(false);
        let named = |name: &str, protocol: &str| ServicePort {
            name: name.into(),
            protocol: protocol.into(),
            port: 1,
            target_port: Some(IntOrString { kind: Some(int_or_string::Kind::StringValue(name.into())) }),
            ..Default::default()
        };
        let spec = service.spec.as_mut().unwrap();
        spec.ports.extend([named("http", ""), named("dns", "UDP"), named("metrics", "TCP"), named("init", "TCP")]);
        spec.r#type = "ClusterIP".into();
        spec.cluster_ip = "10.96.0.7".into();
        let port = |name: &str, protocol: &str, port| ContainerPort {
            name: name.into(),
            protocol: protocol.into(),
            container_port: port,
            ..Default::default()
        };
        let mut old = pod("web-0", "10.0.0.1");
        old.spec.as_mut().unwrap().containers = vec![Container {
            ports: vec![port("http", "TCP", 8080), port("dns", "TCP", 53), port("dns", "UDP", 5353)],
            ..Default::default()
        }];
        let mut new = pod("web-1", "10.0.0.2");
        let spec = new.spec.as_mut().unwrap();
        spec.containers = vec![Container { ports: vec![port("http", "", 9090)], ..Default::default() }];
        spec.init_containers = vec![
            Container { ports: vec![port("init", "TCP", 1)], ..Default::default() },
            Container {
                restart_policy: "Always".into(),
                ports: vec![port("metrics", "TCP", 9100)],
                ..Default::default()
            },
        ];
        let all = endpoints(&service, &[old, new]);
        assert_eq!(all.cluster_ip, "10.96.0.7");
        assert_eq!(all.endpoints[0].target_ports, [80, 8080, 5353, 0, 0]);
        assert_eq!(all.endpoints[1].target_ports, [80, 9090, 0, 9100, 0]);
    }

    #[test]
    fn a_name_outside_has_no_endpoints() {
        let mut service = service(true);
        let spec = service.spec.as_mut().unwrap();
        spec.r#type = EXTERNAL_NAME.into();
        spec.external_name = "db.example.com".into();
        let all = endpoints(&service, &[pod("web-0", "10.0.0.1")]);
        assert_eq!((all.endpoints.len(), all.external_name.as_str()), (0, "db.example.com"));
    }
}
