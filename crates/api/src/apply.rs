//! Apply: makes the objects of a manifest so.
//!
//! All documents are read, completed and judged before the first is written: one answer names every mistake of every
//! document, and a manifest with a mistake changes nothing. Writing is then document by document; each write is decided
//! again if others change the object meanwhile.

use std::collections::BTreeSet;

use model::view::View;
use pb::{
    Kind, Object as _,
    api::v1::{ApplyRequest, ApplyResponse, ApplyResult, FieldValidation, Object as AnyObject},
    objects::StatefulSet,
};
use serde_json::Value;

use crate::{
    Shared, admission,
    error::{Error, Result, Violation, called},
    foresee::Foreseen,
    merge::{LAST_APPLIED, remembered, three_way},
    object::meta_mut,
    view,
    write::{Outcome, Part, newborn, place, updated},
};

/// How often an apply is decided anew when the object comes or goes at the same time.
const ATTEMPTS: usize = 3;
/// Documents of one request.
const DOCUMENTS: usize = 1000;

/// A document that has been read.
struct Document {
    kind: Kind,
    namespace: String,
    name: String,
    /// What the user wants, as remembered.
    want: Value,
    /// The same as an object, to be made if there is none.
    object: AnyObject,
    /// The view that it is written in.
    view: View,
    warnings: Vec<String>,
}

impl Document {
    fn read(bytes: &[u8], namespace: &str, validation: FieldValidation) -> Result<Self> {
        let manifest: Value = serde_json::from_slice(bytes)
            .map_err(|error| Error::field("manifest", format!("Invalid value: not JSON: {error}")))?;
        let (mut object, warnings) = admission::decode(&manifest, validation)?;
        let kind = place(&mut object, namespace)?;
        let view = view::of_answer(&object);
        let mut want = remembered(&manifest);
        if view == View::Apps {
            model::view::forget(&mut want);
        }
        let memory = want.to_string();
        let meta = meta_mut(&mut object)?;
        meta.annotations.insert(LAST_APPLIED.to_owned(), memory);
        let (namespace, name) = (meta.namespace.clone(), meta.name.clone());
        if name.is_empty() {
            let why = "Required value: apply needs a name to find the object again; use create with generateName";
            return Err(Error::field("metadata.name", why));
        }
        Ok(Self { kind, namespace, name, want, object, view, warnings })
    }

    fn called(&self) -> String {
        called(self.kind, &self.namespace, &self.name)
    }

    /// What becomes of the object that is there.
    fn over(&self, live: &AnyObject) -> Result<AnyObject> {
        let bug = |error: &dyn std::fmt::Display| Error::Bug(format!("{} has no JSON form: {error}", self.called()));
        let live_json = view::shown(self.view, live.clone()).to_json().map_err(|error| bug(&error))?;
        let last = live.meta().annotations.get(LAST_APPLIED).and_then(|text| serde_json::from_str::<Value>(text).ok());
        let merged = three_way(last.as_ref(), &self.want, &live_json);
        let mut new = AnyObject::from_json(self.kind, merged).map_err(|error| bug(&error))?;
        place(&mut new, &self.namespace)?;
        let wanted = self.object.meta();
        let meta = meta_mut(&mut new)?;
        meta.annotations.insert(LAST_APPLIED.to_owned(), self.memory(last.as_ref()));
        // What the manifest itself says of the object's identity is a precondition.
        meta.resource_version.clone_from(&wanted.resource_version);
        meta.uid.clone_from(&wanted.uid);
        updated(live, new, Part::Main)
    }

    /// What is remembered of this manifest, when `last` was remembered before.
    fn memory(&self, last: Option<&Value>) -> String {
        let mut memory = self.want.clone();
        if let (View::Apps, Some(last)) = (self.view, last) {
            model::view::carry(last, &mut memory);
        }
        memory.to_string()
    }

    /// A new object.
    fn fresh(&self) -> Result<AnyObject> {
        newborn(self.object.clone())
    }
}

impl Shared {
    /// Makes the objects of a manifest so.
    pub async fn apply(&self, request: ApplyRequest) -> Result<ApplyResponse> {
        if request.manifests.len() > DOCUMENTS {
            let many = request.manifests.len();
            return Err(Error::field("manifests", format!("Too many: {many}: must have at most {DOCUMENTS} items")));
        }
        let documents = self.judged(&request).await?;
        let mut results = Vec::with_capacity(documents.len());
        for document in &documents {
            let Applied { before, object, outcome } = self.apply_one(document, request.dry_run).await?;
            let mut warnings = document.warnings.clone();
            if object.meta().deletion_timestamp.is_some() {
                warnings.push(format!("{} is being deleted; apply again when it is gone", document.called()));
            }
            let (foreseen, held_back) = match StatefulSet::peek(&object) {
                Some(set) if request.dry_run => self.foresee(set).await?,
                _ => Foreseen::default(),
            };
            results.push(ApplyResult {
                object: Some(view::shown(document.view, object)),
                outcome: outcome.to_owned(),
                warnings,
                before: before.map(|before| view::shown(document.view, before)),
                foreseen,
                held_back,
            });
        }
        Ok(ApplyResponse { results })
    }

    /// All documents, or all that is wrong with them.
    async fn judged(&self, request: &ApplyRequest) -> Result<Vec<Document>> {
        let mut documents: Vec<Document> = Vec::new();
        let mut wrong = Vec::new();
        let mut seen = BTreeSet::new();
        let many = request.manifests.len() > 1;
        for (at, bytes) in request.manifests.iter().enumerate() {
            let label = if many { label(at, bytes) } else { String::new() };
            let mut fault = |violations: Vec<Violation>| {
                wrong.extend(violations.into_iter().map(|v| if many { v.within(&label) } else { v }));
            };
            let document = match Document::read(bytes, &request.namespace, request.field_validation()) {
                Ok(document) => document,
                Err(Error::Invalid(violations)) => {
                    fault(violations);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if !seen.insert((document.kind, document.namespace.clone(), document.name.clone())) {
                fault(vec![Violation::new("metadata.name", format!("Duplicate value: {:?}", document.name))]);
            }
            let live = self.read(document.kind, &document.namespace, &document.name).await?;
            let judged = match &live {
                Some(live) => match document.over(&live.object) {
                    Ok(new) => self.admit(&live.object, &new).await.map(|()| new),
                    refused => refused,
                },
                None => match document.fresh() {
                    // Whether an address that it chose can be had; which one it is given is settled when it is written.
                    Ok(mut new) => match self.with_address(None, &mut new).await {
                        Ok(_) => {
                            let comes =
                                |class: &str| seen.contains(&(Kind::PriorityClass, String::new(), class.to_owned()));
                            self.admit_new(&mut new, comes).await.map(|()| new)
                        }
                        Err(error) => Err(error),
                    },
                    refused => refused,
                },
            };
            match judged {
                Ok(_) => {}
                Err(Error::Invalid(violations)) => fault(violations),
                Err(error) => return Err(error),
            }
            let namespace = &document.namespace;
            let made_before = || seen.contains(&(Kind::Namespace, String::new(), namespace.clone()));
            if document.kind.namespaced()
                && !made_before()
                && self.read(Kind::Namespace, "", namespace).await?.is_none()
            {
                let why =
                    format!("Not found: {namespace:?}; create the namespace first, or put it before this document");
                fault(vec![Violation::new("metadata.namespace", why)]);
            }
            documents.push(document);
        }
        if wrong.is_empty() { Ok(documents) } else { Err(Error::Invalid(wrong)) }
    }

    async fn apply_one(&self, document: &Document, dry_run: bool) -> Result<Applied> {
        let Document { kind, namespace, name, .. } = document;
        let made = |object| Applied { before: None, object, outcome: "created" };
        for _ in 0..ATTEMPTS {
            match self.modify_from(*kind, namespace, name, dry_run, |live| document.over(live)).await {
                Ok((before, outcome)) => {
                    let word = if matches!(outcome, Outcome::Unchanged(_)) { "unchanged" } else { "configured" };
                    return Ok(Applied { before: Some(before), object: outcome.object(), outcome: word });
                }
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
            let fresh = document.fresh()?;
            if dry_run {
                return Ok(made(fresh));
            }
            match self.insert(fresh, false).await {
                Ok(object) => return Ok(made(object)),
                Err(Error::AlreadyExists(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::contended(&document.called()))
    }
}

/// What became of one document.
struct Applied {
    before: Option<AnyObject>,
    object: AnyObject,
    outcome: &'static str,
}

/// How one document of many is called in errors: `statefulset/web`, or its number if it does not say.
fn label(at: usize, bytes: &[u8]) -> String {
    let manifest: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let kind = manifest.get("kind").and_then(Value::as_str);
    let name = manifest.pointer("/metadata/name").and_then(Value::as_str);
    match (kind, name) {
        (Some(kind), Some(name)) => format!("{}/{name}", kind.to_ascii_lowercase()),
        _ => format!("document {}", at + 1),
    }
}
