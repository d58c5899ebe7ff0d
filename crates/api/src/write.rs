//! Writing objects: read, decide, write under the guard that nothing changed meanwhile.
//!
//! No write is unguarded (I13), an update that changes nothing writes nothing, and an object is never brought back by a
//! write that was decided before its deletion (I27): the guard names the revision that was read.

use pb::{
    Kind, Object,
    api::v1::{Object as AnyObject, object::Object as Variant},
    objects::Namespace,
};
use store::{Guard, Key, Op, Revision, Txn, TxnOutcome, objects::put_any};

use crate::{
    Shared, admission,
    caches::Stored,
    cluster_ip::Along,
    error::{Error, Result, called},
    object::{born, changed, copy_status, may_go, meta_mut},
    view,
    volumes::owned_by_users,
};

/// How often a write is decided again when others change the object at the same time.
const ATTEMPTS: usize = 5;

/// The namespace that always exists, and that objects without a namespace are in.
pub const DEFAULT_NAMESPACE: &str = "default";

/// What became of a change.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Written.
    Written(AnyObject),
    /// There was nothing to change.
    Unchanged(AnyObject),
    /// The change took away the last reason to keep the object.
    Gone(AnyObject),
}

impl Outcome {
    /// The object as it is, or was last.
    pub fn object(self) -> AnyObject {
        match self {
            Self::Written(object) | Self::Unchanged(object) | Self::Gone(object) => object,
        }
    }
}

/// Which part of an object an update is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All but the status.
    Main,
    /// The status alone.
    Status,
}

/// Fills in the namespace that an object of a namespaced kind is in, and its type.
pub fn place(object: &mut AnyObject, namespace: &str) -> Result<Kind> {
    let kind = object.kind().ok_or_else(|| Error::field("object", "Required value"))?;
    owned_by_users(kind)?;
    view::declare(object);
    let meta = meta_mut(object)?;
    if kind.namespaced() && meta.namespace.is_empty() {
        let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace };
        namespace.clone_into(&mut meta.namespace);
    }
    object.stamp_type();
    Ok(kind)
}

/// A client's own knowledge of an object, where it shows any, must be what is stored.
fn check_preconditions(old: &AnyObject, uid: &str, resource_version: &str) -> Result<()> {
    let meta = old.meta();
    let what = || old.kind().map_or_else(String::new, |kind| called(kind, &meta.namespace, &meta.name));
    if !uid.is_empty() && uid != meta.uid {
        return Err(Error::Conflict(format!(
            "{} has uid {}, not {uid}: it was deleted and made again; read it and decide again",
            what(),
            meta.uid
        )));
    }
    if !resource_version.is_empty() && resource_version != meta.resource_version {
        return Err(Error::Conflict(format!(
            "{} was changed (it is at resourceVersion {}, not {resource_version}); read it again and retry",
            what(),
            meta.resource_version
        )));
    }
    Ok(())
}

/// What an update makes of an object: server-owned fields kept, defaults filled in, the change allowed.
pub fn updated(old: &AnyObject, mut new: AnyObject, part: Part) -> Result<AnyObject> {
    check_preconditions(old, &new.meta().uid, &new.meta().resource_version)?;
    if part == Part::Status {
        view::keep(Some(old), &mut new);
        let mut result = old.clone();
        copy_status(&new, &mut result);
        admission::status(old, &result)?;
        return Ok(result);
    }
    view::complete(Some(old), &mut new)?;
    if let (Some(Variant::Service(old)), Some(Variant::Service(new))) = (&old.object, &mut new.object) {
        model::service::carry(old, new);
    }
    if let (Some(Variant::Pod(old)), Some(Variant::Pod(new))) = (&old.object, &mut new.object) {
        model::priority::carry(old, new);
    }
    admission::default(&mut new);
    changed(old, &mut new)?;
    admission::update(old, &new)?;
    Ok(new)
}

impl Shared {
    /// One object as the store has it now.
    pub async fn read(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Stored>> {
        let kv = self.store.get(&Key::object(kind, namespace, name)).await?;
        Ok(kv.map(|kv| Stored::decode(kind, &kv)).transpose()?)
    }

    /// Commits changes of objects of one kind; None if a guard did not hold.
    pub async fn commit(&self, kind: Kind, guards: Vec<Guard>, ops: Vec<Op>) -> Result<Option<Revision>> {
        match self.store.txn(Txn { guards, ops }).await? {
            TxnOutcome::Committed(revision) => {
                self.caches.of(kind).wrote(revision);
                Ok(Some(revision))
            }
            TxnOutcome::Conflict => Ok(None),
        }
    }

    /// Makes an object.
    pub async fn create(&self, mut object: AnyObject, dry_run: bool) -> Result<AnyObject> {
        place(&mut object, "")?;
        if !object.meta().resource_version.is_empty() {
            let why = "Forbidden: must not be set on an object to be created; update it instead";
            return Err(Error::field("metadata.resourceVersion", why));
        }
        let view = view::of_answer(&object);
        Ok(view::shown(view, self.insert(newborn(object)?, dry_run).await?))
    }

    /// Writes a new object that has been found good.
    pub async fn insert(&self, mut object: AnyObject, dry_run: bool) -> Result<AnyObject> {
        note_trace(&mut object);
        self.admit_new(&mut object, |_| false).await?;
        let (namespace, name) = (object.meta().namespace.clone(), object.meta().name.clone());
        let kind = object.kind().ok_or_else(|| Error::field("object", "Required value"))?;
        for attempt in 0..ATTEMPTS {
            let mut object = object.clone();
            let Along { mut guards, mut ops } = self.with_address(None, &mut object).await?;
            let op = put_any(&object).ok_or_else(|| Error::field("object", "Required value"))?;
            guards.push(Guard::Absent(op.key().clone()));
            ops.push(op);
            if kind.namespaced() {
                guards.push(self.namespace_guard(&namespace, attempt > 0).await?);
            }
            if !dry_run && let Some(revision) = self.commit(kind, guards, ops).await? {
                meta_mut(&mut object)?.resource_version = revision.to_string();
                return Ok(object);
            }
            if self.read(kind, &namespace, &name).await?.is_some() {
                return Err(Error::AlreadyExists(called(kind, &namespace, &name)));
            }
            if dry_run {
                return Ok(object);
            }
        }
        Err(Error::contended(&called(kind, &namespace, &name)))
    }

    /// The guard that a namespace still exists.
    pub async fn namespace_guard(&self, name: &str, fresh: bool) -> Result<Guard> {
        let cached = if fresh { None } else { self.caches.of(Kind::Namespace).last_known(&namespace_key(name)) };
        let stored = match cached {
            Some(stored) => (*stored).clone(),
            None => self.read(Kind::Namespace, "", name).await?.ok_or_else(|| Error::NotFound {
                what: called(Kind::Namespace, "", name),
                hint: "; create the namespace first".to_owned(),
            })?,
        };
        if stored.object.meta().deletion_timestamp.is_some() {
            return Err(Error::Refused(format!("namespace {name} is being deleted: nothing can be created in it")));
        }
        Ok(Guard::CreateRevision(stored.key, stored.create_revision))
    }

    /// Replaces an object, or its status.
    pub async fn update(&self, mut new: AnyObject, part: Part, dry_run: bool) -> Result<AnyObject> {
        let kind = place(&mut new, "")?;
        let (namespace, name) = (new.meta().namespace.clone(), new.meta().name.clone());
        let outcome = self.modify(kind, &namespace, &name, dry_run, |old| updated(old, new.clone(), part)).await?;
        Ok(view::shown(view::of_answer(&new), outcome.object()))
    }

    /// Changes an object as decided from what is stored; decides again when it was changed meanwhile.
    pub async fn modify(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        dry_run: bool,
        decide: impl Fn(&AnyObject) -> Result<AnyObject> + Send,
    ) -> Result<Outcome> {
        Ok(self.modify_from(kind, namespace, name, dry_run, decide).await?.1)
    }

    /// As [`Shared::modify`]; gives the object as it was, too.
    pub async fn modify_from(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        dry_run: bool,
        decide: impl Fn(&AnyObject) -> Result<AnyObject> + Send,
    ) -> Result<(AnyObject, Outcome)> {
        for _ in 0..ATTEMPTS {
            let old = self.read(kind, namespace, name).await?;
            let old = old.ok_or_else(|| Error::not_found(kind, namespace, name))?;
            let new = decide(&old.object)?;
            if new == old.object {
                return Ok((old.object, Outcome::Unchanged(new)));
            }
            self.admit(&old.object, &new).await?;
            if dry_run {
                return Ok((old.object, Outcome::Written(new)));
            }
            if let Some(outcome) = self.replace(kind, &old, new).await? {
                return Ok((old.object, outcome));
            }
        }
        Err(Error::contended(&called(kind, namespace, name)))
    }

    /// Writes an object over the one that was read, or removes it if nothing keeps it; None if that was changed.
    pub async fn replace(&self, kind: Kind, old: &Stored, new: AnyObject) -> Result<Option<Outcome>> {
        self.replace_under(kind, old, new, Vec::new()).await
    }

    /// As [`Shared::replace`], under further guards.
    pub async fn replace_under(
        &self,
        kind: Kind,
        old: &Stored,
        mut new: AnyObject,
        mut guards: Vec<Guard>,
    ) -> Result<Option<Outcome>> {
        guards.push(Guard::ModRevision(old.key.clone(), old.mod_revision));
        if may_go(&new) {
            let mut ops = Along::release(&old.object).ops;
            ops.push(Op::Delete(old.key.clone()));
            let gone = self.commit(kind, guards, ops).await?;
            return Ok(gone.map(|_| Outcome::Gone(new)));
        }
        note_trace(&mut new);
        let Along { guards: more, mut ops } = self.with_address(Some(&old.object), &mut new).await?;
        guards.extend(more);
        let op = put_any(&new).ok_or_else(|| Error::field("object", "Required value"))?;
        if *op.key() != old.key {
            return Err(Error::Bug(format!("the new {} would be written over {}", op.key(), old.key)));
        }
        ops.push(op);
        let Some(revision) = self.commit(kind, guards, ops).await? else { return Ok(None) };
        meta_mut(&mut new)?.resource_version = revision.to_string();
        Ok(Some(Outcome::Written(new)))
    }

    /// Removes an object; false if it was changed since it was read.
    pub async fn remove(&self, kind: Kind, old: &Stored, mut guards: Vec<Guard>) -> Result<bool> {
        guards.push(Guard::ModRevision(old.key.clone(), old.mod_revision));
        let mut ops = Along::release(&old.object).ops;
        ops.push(Op::Delete(old.key.clone()));
        Ok(self.commit(kind, guards, ops).await?.is_some())
    }

    /// Makes what every cluster has, if it is missing.
    pub async fn bootstrap(&self) -> Result<()> {
        let namespace = Namespace {
            metadata: Some(pb::objects::ObjectMeta { name: DEFAULT_NAMESPACE.to_owned(), ..Default::default() }),
            ..Default::default()
        };
        for object in [namespace.into_any(), default_class().into_any()] {
            match self.create(object, false).await {
                Ok(_) | Err(Error::AlreadyExists(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A new object with defaults and server-owned fields, found good.
pub fn newborn(mut object: AnyObject) -> Result<AnyObject> {
    view::complete(None, &mut object)?;
    born(&mut object)?;
    admission::default(&mut object);
    admission::create(&object)?;
    Ok(object)
}

/// Lets whoever acts on a changed set go on with the trace of the request that changed it.
fn note_trace(object: &mut AnyObject) {
    let Some(trace) = runtime::trace::current().filter(|_| object.kind() == Some(Kind::StatefulSet)) else { return };
    if let Some(meta) = object.meta_mut() {
        meta.annotations.insert(runtime::trace::ANNOTATION.to_owned(), trace);
    }
}

fn namespace_key(name: &str) -> Key {
    Key::object(Kind::Namespace, "", name)
}

/// The class that claims without a class get: directories on the node that the pod is placed on.
fn default_class() -> pb::objects::StorageClass {
    let annotation = ("storageclass.kubernetes.io/is-default-class".to_owned(), "true".to_owned());
    pb::objects::StorageClass {
        metadata: Some(pb::objects::ObjectMeta {
            name: "local".to_owned(),
            annotations: [annotation].into(),
            ..Default::default()
        }),
        provisioner: "local".to_owned(),
        reclaim_policy: Some("Delete".to_owned()),
        volume_binding_mode: Some("WaitForFirstConsumer".to_owned()),
        allow_volume_expansion: Some(true),
        ..Default::default()
    }
}
