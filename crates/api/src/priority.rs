//! Priorities of pods that users make, and classes of which one may be everybody's.

use model::{error::FieldPath, priority::Classes};
use pb::{
    Kind, ObjectExt,
    api::v1::{Object as AnyObject, object::Object as Variant},
    objects::{Pod, PriorityClass},
};

use crate::{
    Shared,
    caches::Stored,
    error::{Error, Result, Violation},
};

impl Shared {
    /// Whether a new object keeps to what is allowed here; writes the priority of its class into a pod. `comes` says of a
    /// class whether it is made together with the object.
    pub async fn admit_new(&self, object: &mut AnyObject, comes: impl Fn(&str) -> bool + Send) -> Result<()> {
        self.keep_to_policy(None, object)?;
        match &mut object.object {
            Some(Variant::Pod(pod)) => self.prioritize(pod, comes).await,
            Some(Variant::PriorityClass(class)) => self.one_default(class).await,
            _ => Ok(()),
        }
    }

    /// Whether an object keeps to what is allowed here.
    pub fn keep_to_policy(&self, old: Option<&AnyObject>, new: &AnyObject) -> Result<()> {
        match self.settings.policy.check(old, new) {
            none if none.is_empty() => Ok(()),
            violations => Err(Error::Invalid(violations)),
        }
    }

    async fn prioritize(&self, pod: &mut Pod, comes: impl Fn(&str) -> bool + Send) -> Result<()> {
        let spec = pod.spec.get_or_insert_default();
        if comes(&spec.priority_class_name) {
            return Ok(());
        }
        let (known, _) = self.caches.list(Kind::PriorityClass, "").await?;
        let mut classes: Vec<_> = known.iter().filter_map(|stored| stored.typed::<PriorityClass>().cloned()).collect();
        let name = spec.priority_class_name.as_str();
        if !name.is_empty() && classes.iter().all(|class| class.name() != name) {
            // Another replica may have made it a moment ago.
            let stored = self.read(Kind::PriorityClass, "", name).await?;
            classes.extend(stored.as_ref().and_then(Stored::typed::<PriorityClass>).cloned());
        }
        let admitted = Classes::of(&classes).admit(spec, &FieldPath::of("spec"));
        admitted.map_err(|errors| Error::Invalid(errors.into_iter().map(Violation::from).collect()))
    }

    /// Whether there is no other class that pods without a class have. Two that are made at the same moment are both
    /// taken; the one of the lower value counts then.
    pub async fn one_default(&self, class: &PriorityClass) -> Result<()> {
        if !class.global_default {
            return Ok(());
        }
        let (known, _) = self.caches.list(Kind::PriorityClass, "").await?;
        let mut others = known.iter().filter_map(|stored| stored.typed::<PriorityClass>());
        match others.find(|other| other.global_default && other.name() != class.name()) {
            None => Ok(()),
            Some(other) => {
                let why = format!(
                    "Forbidden: PriorityClass {} is the default already, and only one can be: apply that with \
                     globalDefault: false first",
                    other.name()
                );
                Err(Error::field("globalDefault", why))
            }
        }
    }
}
