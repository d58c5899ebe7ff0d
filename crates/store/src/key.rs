//! Keys: `/berth/<plural>/<namespace>/<name>`, and without a namespace for objects of the whole cluster.

use std::{fmt, net::Ipv4Addr};

use pb::{Kind, Object, ObjectExt};

/// The root of all keys.
const ROOT: &str = "/berth/";

/// A key of the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

/// All keys that start with this.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(String);

impl Key {
    /// The key of an object. The namespace is not looked at for kinds of the whole cluster.
    pub fn object(kind: Kind, namespace: &str, name: &str) -> Self {
        if kind.namespaced() {
            Self(format!("{ROOT}{}/{namespace}/{name}", kind.plural()))
        } else {
            Self(format!("{ROOT}{}/{name}", kind.plural()))
        }
    }

    /// The key of this object.
    pub fn of<T: Object>(object: &T) -> Self {
        Self::object(T::KIND, object.namespace(), object.name())
    }

    /// The key that a leader of this role holds.
    pub fn leader(role: &str) -> Self {
        Self(format!("{ROOT}leaders/{role}"))
    }

    /// The key that lives as long as a node's lease.
    pub fn node_lease(node: &str) -> Self {
        Self(format!("{ROOT}leases/nodes/{node}"))
    }

    /// The key that a Service holds as long as it has this virtual address; its value says which one.
    pub fn cluster_ip(address: Ipv4Addr) -> Self {
        Self(format!("{ROOT}clusterips/{address}"))
    }

    /// A key as text, from a message or the store itself.
    pub fn from_raw(raw: impl Into<String>) -> Self {
        Self(raw.into())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last part: an object's name.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The namespace of a namespaced object's key; empty for others.
    pub fn namespace(&self) -> &str {
        let mut parts = self.0.strip_prefix(ROOT).unwrap_or_default().split('/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(_), Some(namespace), Some(_)) => namespace,
            _ => "",
        }
    }
}

impl Prefix {
    /// Everything.
    pub fn all() -> Self {
        Self(ROOT.to_owned())
    }

    /// All objects of a kind.
    pub fn kind(kind: Kind) -> Self {
        Self(format!("{ROOT}{}/", kind.plural()))
    }

    /// All objects of a kind in a namespace; of the kind if the namespace is empty.
    pub fn namespace(kind: Kind, namespace: &str) -> Self {
        if namespace.is_empty() || !kind.namespaced() {
            Self::kind(kind)
        } else {
            Self(format!("{ROOT}{}/{namespace}/", kind.plural()))
        }
    }

    /// All objects of a kind in a namespace whose name starts so.
    pub fn names(kind: Kind, namespace: &str, start: &str) -> Self {
        Self(Key::object(kind, namespace, start).0)
    }

    /// The keys that live as long as the nodes' leases.
    pub fn node_leases() -> Self {
        Self(format!("{ROOT}leases/nodes/"))
    }

    /// A prefix as text.
    pub fn from_raw(raw: impl Into<String>) -> Self {
        Self(raw.into())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a key is under it.
    pub fn contains(&self, key: &Key) -> bool {
        key.0.starts_with(&self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
