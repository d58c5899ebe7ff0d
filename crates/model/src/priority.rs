//! What a pod's priority is: the value of the class that it names, of the default class, or 0.
//!
//! Pure: the classes come as they are known. Priorities belong to pods and not to templates: a class that comes or goes
//! makes no pod outdated.

use std::collections::BTreeMap;

use pb::{
    ObjectExt,
    objects::{Pod, PodSpec, PriorityClass},
};

use crate::error::{Errors, FieldError, FieldPath};

/// The largest value of a class that users make; above are the system's own.
pub const LARGEST_OF_USERS: i32 = 1_000_000_000;
/// Classes that exist without objects, and their values.
pub const SYSTEM: [(&str, i32); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];
/// What the names of the system's classes begin with.
pub const SYSTEM_PREFIX: &str = "system-";
/// Takes the place of pods of lower priority.
pub const PREEMPT: &str = "PreemptLowerPriority";
/// Waits for room.
pub const NEVER: &str = "Never";

/// The classes that there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Classes(BTreeMap<String, Class>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Class {
    value: i32,
    default: bool,
    policy: String,
}

impl Classes {
    /// The classes of users, and the system's.
    pub fn of<'c>(classes: impl IntoIterator<Item = &'c PriorityClass>) -> Self {
        let system =
            SYSTEM.map(|(name, value)| (name.to_owned(), Class { value, default: false, policy: PREEMPT.to_owned() }));
        let users = classes.into_iter().map(|class| {
            let policy = if class.preemption_policy.is_empty() { PREEMPT } else { &class.preemption_policy };
            let known = Class { value: class.value, default: class.global_default, policy: policy.to_owned() };
            (class.name().to_owned(), known)
        });
        Self(users.chain(system).collect())
    }

    /// Of several default classes the one of the lowest value counts, as in Kubernetes.
    fn default(&self) -> Option<(&String, &Class)> {
        self.0.iter().filter(|(_, class)| class.default).min_by_key(|(_, class)| class.value)
    }

    /// Writes a pod's priority and what it may do to others into its spec. A pod that gets neither from a class stays
    /// as it is: absent is 0.
    ///
    /// # Errors
    /// When there is no such class, or the pod itself says something else than its class.
    pub fn admit(&self, spec: &mut PodSpec, path: &FieldPath) -> Result<(), Vec<FieldError>> {
        let mut errors = Errors::default();
        let class = match spec.priority_class_name.as_str() {
            "" => self.default(),
            name => {
                let found = self.0.get_key_value(name);
                if found.is_none() {
                    let why = "create that PriorityClass first (`berth get priorityclasses` lists them), or leave the field out";
                    errors.not_found(&path.child("priorityClassName"), name, why);
                    return Err(errors.into_vec());
                }
                found
            }
        };
        let value = class.map_or(0, |(_, class)| class.value);
        if spec.priority.is_some_and(|written| written != value) {
            let why = format!("is written from the pod's PriorityClass, which gives {value}: leave the field out");
            errors.forbidden(&path.child("priority"), why);
        }
        let policy = class.map_or(PREEMPT, |(_, class)| class.policy.as_str());
        if !spec.preemption_policy.is_empty() && spec.preemption_policy != policy {
            let why = format!("is written from the pod's PriorityClass, which gives {policy}: leave the field out");
            errors.forbidden(&path.child("preemptionPolicy"), why);
        }
        if !errors.is_empty() {
            return Err(errors.into_vec());
        }
        if let Some((name, class)) = class {
            spec.priority_class_name.clone_from(name);
            spec.priority = Some(class.value);
            spec.preemption_policy.clone_from(&class.policy);
        }
        Ok(())
    }
}

/// Gives a pod that is written again what its class gave it, where the writer does not say it.
pub fn carry(old: &Pod, new: &mut Pod) {
    let Some(old) = &old.spec else { return };
    let new = new.spec.get_or_insert_default();
    new.priority = new.priority.or(old.priority);
    for (old, new) in
        [(&old.priority_class_name, &mut new.priority_class_name), (&old.preemption_policy, &mut new.preemption_policy)]
    {
        if new.is_empty() {
            new.clone_from(old);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, value: i32, default: bool, policy: &str) -> PriorityClass {
        let metadata = pb::objects::ObjectMeta { name: name.to_owned(), ..Default::default() };
        PriorityClass {
            metadata: Some(metadata),
            value,
            global_default: default,
            preemption_policy: policy.to_owned(),
            ..PriorityClass::default()
        }
    }

    fn admitted(classes: &[PriorityClass], mut spec: PodSpec) -> Result<(String, Option<i32>, String), Vec<String>> {
        let path = FieldPath::of("spec");
        match Classes::of(classes).admit(&mut spec, &path) {
            Ok(()) => Ok((spec.priority_class_name, spec.priority, spec.preemption_policy)),
            Err(errors) => Err(errors.iter().map(ToString::to_string).collect()),
        }
    }

    fn naming(name: &str) -> PodSpec {
        PodSpec { priority_class_name: name.to_owned(), ..PodSpec::default() }
    }

    #[test]
    fn a_pod_has_the_priority_of_its_class() {
        let classes = [class("high", 1000, false, ""), class("patient", 7, false, NEVER)];
        let is = |name: &str, value: i32, policy: &str| Ok((name.to_owned(), Some(value), policy.to_owned()));
        assert_eq!(admitted(&classes, naming("high")), is("high", 1000, PREEMPT));
        assert_eq!(admitted(&classes, naming("patient")), is("patient", 7, NEVER));
        let system = "system-node-critical";
        assert_eq!(admitted(&classes, naming(system)), is(system, 2_000_001_000, PREEMPT));
        assert_eq!(admitted(&classes, naming("")), Ok((String::new(), None, String::new())));
        let texts = admitted(&classes, naming("hihg")).unwrap_err();
        assert!(texts[0].starts_with(r#"spec.priorityClassName: Not found: "hihg": create that PriorityClass"#));
    }

    #[test]
    fn of_several_defaults_the_lowest_counts() {
        let classes = [class("b", 20, true, ""), class("a", 30, true, ""), class("c", 10, false, "")];
        assert_eq!(admitted(&classes, naming("")), Ok(("b".to_owned(), Some(20), PREEMPT.to_owned())));
    }

    #[test]
    fn a_pod_does_not_choose_its_own_number() {
        let classes = [class("high", 1000, false, "")];
        let says = |priority, policy: &str| PodSpec {
            priority: Some(priority),
            preemption_policy: policy.to_owned(),
            ..naming("high")
        };
        assert!(admitted(&classes, says(1000, PREEMPT)).is_ok(), "what its class says");
        assert_eq!(admitted(&classes, says(2000, NEVER)).unwrap_err().len(), 2);
        let other = PodSpec { priority: Some(5), ..PodSpec::default() };
        assert_eq!(admitted(&classes, other).unwrap_err().len(), 1);
    }
}
