//! Who is who: ordinals, names of pods and claims, uids, revisions of the store.
//!
//! A pod of a set is named `<set>-<ordinal>`, a claim `<template>-<set>-<ordinal>`, and names are read back from the
//! right: the last number is the ordinal (ID-1, ID-2, PVC-1). Only the canonical form counts: `web-07` is nobody's pod,
//! because no set would ever write that name.
//!
//! The types keep names apart that would all be text otherwise. They do not validate: what is in the store was
//! validated at the front door.

use std::{borrow::Borrow, fmt};

use serde::{Deserialize, Serialize};

/// The number in a pod's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ordinal(pub u32);

impl Ordinal {
    /// Reads the canonical decimal form: no sign, no leading zero, nothing around it.
    pub fn parse(text: &str) -> Option<Self> {
        let canonical = match text.as_bytes() {
            [b'0'] => true,
            [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
            _ => false,
        };
        if canonical { text.parse().ok().map(Self) } else { None }
    }

    /// The distance from the first ordinal of a set: what `partition` counts (UPD-2). None below `start`.
    pub fn index(self, start: Ordinal) -> Option<u32> {
        self.0.checked_sub(start.0)
    }
}

impl fmt::Display for Ordinal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
            #[serde(transparent)]
            pub struct $name(String);

            impl $name {
                /// The bare text.
                pub fn as_str(&self) -> &str {
                    &self.0
                }

                /// Whether there is no text: the field was not set.
                pub fn is_empty(&self) -> bool {
                    self.0.is_empty()
                }
            }

            impl From<&str> for $name {
                fn from(text: &str) -> Self {
                    Self(text.to_owned())
                }
            }

            impl From<String> for $name {
                fn from(text: String) -> Self {
                    Self(text)
                }
            }

            impl From<$name> for String {
                fn from(name: $name) -> Self {
                    name.0
                }
            }

            impl AsRef<str> for $name {
                fn as_ref(&self) -> &str {
                    &self.0
                }
            }

            impl Borrow<str> for $name {
                fn borrow(&self) -> &str {
                    &self.0
                }
            }

            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.pad(&self.0)
                }
            }
        )*
    };
}

names! {
    /// Name of a StatefulSet within its namespace.
    SetName,
    /// Name of a pod within its namespace.
    PodName,
    /// Name of a claim within its namespace.
    ClaimName,
    /// Name of a ControllerRevision within its namespace.
    RevisionName,
    /// Name of a node.
    NodeName,
    /// Identity of one object for all time: an object of the same name with another uid is another object.
    Uid,
}

/// The store's revision at which an object was last changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModRevision(pub i64);

impl fmt::Display for ModRevision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl SetName {
    /// The name of the pod with this ordinal (ID-1).
    pub fn pod(&self, ordinal: Ordinal) -> PodName {
        PodName(format!("{self}-{ordinal}"))
    }

    /// The name of the claim that `template` gives the pod with this ordinal (PVC-1).
    pub fn claim(&self, template: &str, ordinal: Ordinal) -> ClaimName {
        ClaimName(format!("{template}-{self}-{ordinal}"))
    }

    /// The ordinal of the pod of this name, if the name is one that this set gives (ID-2, ID-3).
    pub fn ordinal_of(&self, pod: &PodName) -> Option<Ordinal> {
        pod.0.strip_prefix(&self.0)?.strip_prefix('-').and_then(Ordinal::parse)
    }
}

impl PodName {
    /// The set and the ordinal that the name speaks of, whether or not such a set exists.
    pub fn split(&self) -> Option<(SetName, Ordinal)> {
        let (set, ordinal) = self.0.rsplit_once('-')?;
        Some((SetName(set.to_owned()), Ordinal::parse(ordinal)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_in_canonical_form_only() {
        let web = SetName::from("web");
        assert_eq!(web.pod(Ordinal(12)).as_str(), "web-12");
        assert_eq!(web.claim("data", Ordinal(3)).as_str(), "data-web-3");
        assert_eq!(web.ordinal_of(&"web-0".into()), Some(Ordinal(0)));
        assert_eq!(web.ordinal_of(&"web-4294967295".into()), Some(Ordinal(u32::MAX)));
        for strange in
            ["web", "web-", "web-00", "web-07", "web-+1", "web--1", "web-1x", "web-x-1", "api-1", "web-4294967296"]
        {
            assert_eq!(web.ordinal_of(&strange.into()), None, "{strange}");
        }
    }

    #[test]
    fn the_last_number_is_the_ordinal() {
        let name = PodName::from("a-1-2");
        assert_eq!(name.split(), Some(("a-1".into(), Ordinal(2))));
        assert_eq!(PodName::from("a-01").split(), None);
        assert_eq!(PodName::from("a").split(), None);
    }
}
