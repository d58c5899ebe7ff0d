//! Undoing a rollout: a set's template becomes that of an older revision again.
//!
//! Which revision is meant is decided from the set and its revisions as the store has them, and written under the guard
//! that neither changed. The present template need not have a revision yet: the one to go back to is the newest whose
//! template is another one.

use model::{default, identity::Uid};
use pb::{
    Kind, Object as _, ObjectExt as _,
    api::v1::{Object as AnyObject, UndoRolloutRequest, UndoRolloutResponse, object::Object as Variant},
    objects::{ControllerRevision, PodTemplateSpec, StatefulSet},
};
use plan::statefulset::template_bytes;
use store::{Guard, Key, PageRequest, Prefix, Revision};

use crate::{
    Shared,
    caches::Stored,
    error::{Error, Result, Violation, called},
    scale::namespace_or_default,
    view,
    write::{Outcome, Part, updated},
};

/// How often an undo is decided again when others change the set or its revisions at the same time.
const ATTEMPTS: usize = 5;
/// Revisions of a namespace that are read in one go.
const PAGE: usize = 500;
/// Pages that are read at most.
const PAGES: usize = 200;

/// A revision of a set, and where it is stored.
#[derive(Clone, Debug)]
struct Past {
    key: Key,
    at: Revision,
    revision: ControllerRevision,
}

/// Whether two templates mean the same: defaults that were added since are no difference (REV-7, REV-9).
fn same(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let canonical = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        default::pod_template(&mut template);
        template_bytes(&template)
    };
    canonical(a) == canonical(b)
}

/// The revision to go back to, out of all of the set's. Number 0 is the newest that is not the present template.
fn chosen<'a>(past: &'a [Past], present: &PodTemplateSpec, number: i64, what: &str) -> Result<&'a Past> {
    let fits = |one: &&Past| match number {
        0 => !same(one.revision.data.as_ref().unwrap_or(&PodTemplateSpec::default()), present),
        number => one.revision.revision == number,
    };
    past.iter().filter(fits).max_by_key(|one| one.revision.revision).ok_or_else(|| {
        let mut numbers: Vec<_> = past.iter().map(|one| one.revision.revision).collect();
        numbers.sort_unstable();
        let numbers: Vec<_> = numbers.iter().map(i64::to_string).collect();
        let there = match numbers.as_slice() {
            [] => "it has no revisions yet".to_owned(),
            [one] => format!("its only revision is {one}"),
            many => format!("its revisions are {}", many.join(", ")),
        };
        let missing = if number == 0 { "an earlier revision".to_owned() } else { format!("revision {number}") };
        Error::NotFound { what: format!("{missing} of {what}"), hint: format!(": {there}") }
    })
}

impl Shared {
    /// Sets a set's template back to that of an older revision.
    pub async fn undo_rollout(&self, request: UndoRolloutRequest) -> Result<UndoRolloutResponse> {
        let UndoRolloutRequest { name, to_revision, dry_run, .. } = &request;
        let namespace = namespace_or_default(&request.namespace);
        let what = called(Kind::StatefulSet, namespace, name);
        if *to_revision < 0 {
            let why = "must be the number of a revision, or 0 for the one before";
            return Err(Error::Invalid(vec![Violation::value("toRevision", to_revision, why)]));
        }
        for _ in 0..ATTEMPTS {
            let old = self.read(Kind::StatefulSet, namespace, name).await?;
            let old = old.ok_or_else(|| Error::not_found(Kind::StatefulSet, namespace, name))?;
            let set = old.typed::<StatefulSet>().ok_or_else(|| Error::Bug(format!("{what} is no set")))?;
            let present = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
            let past = self.revisions_of(namespace, &Uid::from(set.uid())).await?;
            let to = chosen(&past, &present, *to_revision, &what)?;
            let template = to.revision.data.clone().unwrap_or_default();
            let answer = |set: AnyObject, unchanged| {
                let set = StatefulSet::from_any(set).ok();
                UndoRolloutResponse { set, revision: to.revision.revision, unchanged }
            };
            if same(&template, &present) {
                return Ok(answer(old.object, true));
            }
            let mut new = old.object.clone();
            view::declare_whole(&mut new);
            if let Some(Variant::StatefulSet(set)) = &mut new.object {
                set.spec.get_or_insert_default().template = Some(template);
            }
            let new = updated(&old.object, new, Part::Main)?;
            if *dry_run {
                return Ok(answer(new, false));
            }
            let unchanged = vec![Guard::ModRevision(to.key.clone(), to.at)];
            match self.replace_under(Kind::StatefulSet, &old, new, unchanged).await? {
                Some(outcome) => return Ok(answer(Outcome::object(outcome), false)),
                None => continue,
            }
        }
        Err(Error::contended(&what))
    }

    /// The revisions that a set controls, as the store has them now.
    async fn revisions_of(&self, namespace: &str, set: &Uid) -> Result<Vec<Past>> {
        let prefix = Prefix::namespace(Kind::ControllerRevision, namespace);
        let (mut past, mut page) = (Vec::new(), PageRequest { limit: PAGE, ..PageRequest::default() });
        for _ in 0..PAGES {
            let read = self.store.list(&prefix, page).await?;
            for kv in &read.items {
                let Stored { key, object, mod_revision, .. } = Stored::decode(Kind::ControllerRevision, kv)?;
                let Ok(revision) = ControllerRevision::from_any(object) else { continue };
                let owners = &revision.meta().owner_references;
                if owners.iter().any(|owner| owner.controller == Some(true) && owner.uid == set.as_str()) {
                    past.push(Past { key, at: mod_revision, revision });
                }
            }
            let after = read.items.last().map(|kv| kv.key.clone());
            if !read.more || after.is_none() {
                return Ok(past);
            }
            page = PageRequest { limit: PAGE, after, revision: Some(read.revision) };
        }
        Err(Error::Refused(format!("namespace {namespace} has more than {} revisions", PAGE * PAGES)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "a", "image": image}]}})).unwrap()
    }

    fn past(numbers: &[(i64, &str)]) -> Vec<Past> {
        let one = |(number, image): &(i64, &str)| Past {
            key: Key::object(Kind::ControllerRevision, "default", &format!("web-{number}")),
            at: 1,
            revision: ControllerRevision { data: Some(template(image)), revision: *number, ..Default::default() },
        };
        numbers.iter().map(one).collect()
    }

    fn number(past: &[Past], present: &str, to: i64) -> std::result::Result<i64, String> {
        let mut present = template(present);
        default::pod_template(&mut present);
        chosen(past, &present, to, "statefulset default/web")
            .map(|one| one.revision.revision)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn the_one_before_is_the_newest_other_template() {
        let three = past(&[(1, "a"), (2, "b"), (3, "c")]);
        assert_eq!(number(&three, "c", 0), Ok(2));
        assert_eq!(number(&three, "d", 0), Ok(3), "the present template has no revision yet");
        assert_eq!(number(&three, "b", 0), Ok(3), "the controller has not renumbered what was gone back to yet");
        assert_eq!(number(&three, "c", 1), Ok(1));
        assert_eq!(number(&three, "c", 3), Ok(3));
    }

    #[test]
    fn what_there_is_not_is_told_with_what_there_is() {
        let three = past(&[(3, "c"), (1, "a"), (2, "b")]);
        assert_eq!(
            number(&three, "c", 7),
            Err("revision 7 of statefulset default/web not found: its revisions are 1, 2, 3".to_owned())
        );
        assert_eq!(
            number(&past(&[(1, "a")]), "a", 0),
            Err("an earlier revision of statefulset default/web not found: its only revision is 1".to_owned())
        );
        assert!(number(&[], "a", 0).unwrap_err().ends_with("it has no revisions yet"));
    }
}
