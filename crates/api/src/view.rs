//! The views of sets (`model::view`) at the front door: what a reader is shown, and what a write through a view means.
//!
//! A set is stored whole, under the version that shows all that is set. A write through `apps/v1` may not name what
//! Berth adds, and keeps it.

use model::{
    error::Errors,
    view::{self, APPS, BERTH, View},
};
use pb::{
    Kind,
    api::v1::{Object as AnyObject, object::Object as Variant},
};

use crate::error::{Error, Result, Violation};

/// The view that a reader asks for.
pub fn parse(kind: Kind, api_version: &str) -> Result<View> {
    let supported = match kind {
        Kind::StatefulSet => match View::of(api_version) {
            Some(view) => return Ok(view),
            None => format!("{APPS:?}, {BERTH:?}"),
        },
        _ if api_version.is_empty() || api_version == kind.api_version() => return Ok(View::Whole),
        _ => format!("{:?}", kind.api_version()),
    };
    Err(Error::field("apiVersion", format!("Unsupported value: {api_version:?}: supported values: {supported}")))
}

/// An object in a view.
pub fn shown(view: View, mut object: AnyObject) -> AnyObject {
    if let Some(Variant::StatefulSet(set)) = &mut object.object {
        view.show(set);
    }
    object
}

/// Makes sure that an object says in which view it was written: a set that does not say so was written whole.
pub fn declare(object: &mut AnyObject) {
    if let Some(Variant::StatefulSet(set)) = &mut object.object
        && set.api_version.is_empty()
    {
        BERTH.clone_into(&mut set.api_version);
    }
}

/// Says that an object was written whole, whatever it says itself: a change that the server makes to what is stored.
pub fn declare_whole(object: &mut AnyObject) {
    if let Some(Variant::StatefulSet(set)) = &mut object.object {
        BERTH.clone_into(&mut set.api_version);
    }
}

/// The view to answer a writer in: one that wrote through `apps/v1` is not shown what it may not write.
pub fn of_answer(written: &AnyObject) -> View {
    match &written.object {
        Some(Variant::StatefulSet(set)) if set.api_version == APPS => View::Apps,
        _ => View::Whole,
    }
}

/// Makes a set whole that was written through a view.
pub fn complete(old: Option<&AnyObject>, new: &mut AnyObject) -> Result<()> {
    let Some(Variant::StatefulSet(set)) = &mut new.object else { return Ok(()) };
    if parse(Kind::StatefulSet, &set.api_version)? == View::Apps {
        let mut errors = Errors::default();
        view::refuse(set, &mut errors);
        if !errors.is_empty() {
            return Err(Error::Invalid(errors.into_vec().into_iter().map(Violation::from).collect()));
        }
        keep(old, new);
    }
    if let Some(Variant::StatefulSet(set)) = &mut new.object {
        view::stamp(set);
    }
    Ok(())
}

/// Gives a set that was written through `apps/v1` what it could not say.
pub fn keep(old: Option<&AnyObject>, new: &mut AnyObject) {
    if let (Some(Variant::StatefulSet(old)), Some(Variant::StatefulSet(new))) =
        (old.and_then(|old| old.object.as_ref()), &mut new.object)
        && new.api_version == APPS
    {
        view::keep(old, new);
    }
}
