//! Virtual addresses of Services: which Service has one, and what an update keeps.
//!
//! Which address it is, is the front door's choice; here is only what follows from the Service alone.

use core::net::Ipv4Addr;

use pb::objects::{Service, ServiceSpec};

/// What `clusterIP` says of a Service that has no virtual address.
pub const HEADLESS: &str = "None";
/// The type of a Service that pods stand behind.
pub const CLUSTER_IP: &str = "ClusterIP";
/// The type of a Service that stands for a name outside.
pub const EXTERNAL_NAME: &str = "ExternalName";

/// Whether a Service has, or is to be given, a virtual address.
pub fn is_virtual(spec: &ServiceSpec) -> bool {
    spec.r#type == CLUSTER_IP && spec.cluster_ip != HEADLESS
}

/// The virtual address of a Service; None if it has none (yet).
pub fn address(service: &Service) -> Option<Ipv4Addr> {
    let spec = service.spec.as_ref().filter(|spec| is_virtual(spec))?;
    spec.cluster_ip.parse().ok()
}

/// What an update that leaves the address open keeps of it, and what a change of type takes away. Comes before the
/// defaults: what the new object says of its type is what its author wrote.
pub fn carry(old: &Service, new: &mut Service) {
    let (Some(old), Some(new)) = (&old.spec, &mut new.spec) else { return };
    let external = new.r#type == EXTERNAL_NAME;
    let was_external = old.r#type == EXTERNAL_NAME;
    if external && !was_external {
        // The address of before is given back with the type.
        if new.cluster_ip == old.cluster_ip {
            new.cluster_ip.clear();
        }
        if new.cluster_ips == old.cluster_ips {
            new.cluster_ips.clear();
        }
    } else if was_external && !external && new.external_name == old.external_name {
        new.external_name.clear();
    } else if !external && new.cluster_ip.is_empty() {
        new.cluster_ip.clone_from(&old.cluster_ip);
        if new.cluster_ips.is_empty() {
            new.cluster_ips.clone_from(&old.cluster_ips);
        }
    } else if new.cluster_ip != old.cluster_ip && new.cluster_ips == old.cluster_ips {
        // Who changes the one and leaves the other means the one.
        new.cluster_ips.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(kind: &str, ip: &str, external: &str) -> Service {
        let spec = ServiceSpec {
            r#type: kind.into(),
            cluster_ip: ip.into(),
            cluster_ips: [ip].into_iter().filter(|ip| !ip.is_empty()).map(str::to_owned).collect(),
            external_name: external.into(),
            ..Default::default()
        };
        Service { spec: Some(spec), ..Default::default() }
    }

    fn carried(old: &Service, mut new: Service) -> (String, usize, String) {
        carry(old, &mut new);
        let spec = new.spec.unwrap();
        (spec.cluster_ip, spec.cluster_ips.len(), spec.external_name)
    }

    #[test]
    fn an_address_stays_until_the_type_or_the_user_changes_it() {
        let old = service(CLUSTER_IP, "10.96.0.9", "");
        assert_eq!(address(&old), Some(Ipv4Addr::new(10, 96, 0, 9)));
        assert_eq!(carried(&old, service("", "", "")), ("10.96.0.9".into(), 1, String::new()));
        let external = service(EXTERNAL_NAME, "10.96.0.9", "db.example.com");
        assert_eq!(carried(&old, external), (String::new(), 0, "db.example.com".into()));
        let external = service(EXTERNAL_NAME, "", "db.example.com");
        assert_eq!(carried(&external, service(CLUSTER_IP, "", "db.example.com")), (String::new(), 0, String::new()));
        assert_eq!(
            carried(&service(CLUSTER_IP, HEADLESS, ""), service("", "", "")),
            (HEADLESS.into(), 1, String::new())
        );
        assert_eq!(address(&service(CLUSTER_IP, HEADLESS, "")), None);
    }
}
