//! Patches: a merge patch (RFC 7396) or a JSON patch (RFC 6902) of an object's JSON.
//!
//! A set is patched as a whole, so that `{"spec": {"paused": true}}` needs no version. A patch that says
//! `apiVersion: apps/v1` is one of that view, and keeps what the view does not show.

use json_patch::{AddOperation, PatchOperation, ReplaceOperation, TestOperation};
use model::view::{APPS, View};
use pb::api::v1::{FieldValidation, Object as AnyObject, PatchRequest, PatchResponse, PatchType};
use serde_json::Value;

use crate::{
    Shared, admission,
    error::{Error, Result, called, parse_kind},
    view,
    write::{DEFAULT_NAMESPACE, Part, place, updated},
};

enum Patch {
    Merge(Value),
    Json(json_patch::Patch),
}

impl Patch {
    fn read(form: PatchType, bytes: &[u8]) -> Result<Self> {
        let wrong = |error: serde_json::Error| Error::field("patch", format!("Invalid value: {error}"));
        match form {
            PatchType::Unspecified | PatchType::Merge => Ok(Self::Merge(serde_json::from_slice(bytes).map_err(wrong)?)),
            PatchType::Json => Ok(Self::Json(serde_json::from_slice(bytes).map_err(wrong)?)),
        }
    }

    /// The view that the patch is written in: `apps/v1` if it says so, otherwise the whole.
    fn view(&self) -> View {
        let apps = Some(APPS);
        let says = match self {
            Self::Merge(patch) => patch.get("apiVersion").and_then(Value::as_str) == apps,
            Self::Json(patch) => patch.iter().any(|operation| match operation {
                PatchOperation::Add(AddOperation { path, value })
                | PatchOperation::Replace(ReplaceOperation { path, value })
                | PatchOperation::Test(TestOperation { path, value }) => {
                    path.as_str() == "/apiVersion" && value.as_str() == apps
                }
                _ => false,
            }),
        };
        if says { View::Apps } else { View::Berth }
    }

    fn on(&self, json: &mut Value) -> Result<()> {
        match self {
            Self::Merge(patch) => json_patch::merge(json, patch),
            Self::Json(patch) => json_patch::patch(json, patch)
                .map_err(|error| Error::field("patch", format!("Invalid value: {error}")))?,
        }
        Ok(())
    }
}

impl Shared {
    /// Changes parts of an object.
    pub async fn patch(&self, request: PatchRequest) -> Result<PatchResponse> {
        let kind = parse_kind(&request.kind)?;
        let patch = Patch::read(request.r#type(), &request.patch)?;
        let view = patch.view();
        let namespace = if request.namespace.is_empty() { DEFAULT_NAMESPACE } else { &request.namespace };
        let name = &request.name;
        let patched = |old: &AnyObject| {
            let base = view::shown(view, old.clone());
            let mut json = base.to_json().map_err(|error| Error::Bug(format!("{name} has no JSON form: {error}")))?;
            patch.on(&mut json)?;
            let (mut new, warnings) = admission::decode(&json, request.field_validation())?;
            let same = place(&mut new, namespace)? == kind
                && new.meta().name == *name
                && new.meta().namespace == old.meta().namespace;
            if !same {
                let what = called(kind, namespace, name);
                return Err(Error::field("patch", format!("Forbidden: would change the kind or name of {what}")));
            }
            Ok((new, warnings))
        };
        let decide = |old: &AnyObject| updated(old, patched(old)?.0, Part::Main);
        let outcome = self.modify(kind, namespace, name, request.dry_run, decide).await?;
        let answer = if view == View::Apps { View::Apps } else { View::Whole };
        let object = view::shown(answer, outcome.object());
        let warnings = match request.field_validation() {
            FieldValidation::Warn => patched(&object).map(|(_, warnings)| warnings).unwrap_or_default(),
            FieldValidation::Unspecified | FieldValidation::Strict => Vec::new(),
        };
        Ok(PatchResponse { object: Some(object), warnings })
    }
}
