//! What happened, in words: one line for each thing that a commit changed, and a portrait of what there is.
//!
//! Names of revisions are hashes; they are told by their number and image instead. Times and uids are left out.

use check::{Actor, Key, Objects, Step, World};
use pb::{Object, ObjectExt, objects::*};

use super::{image, is_ready, phase, version};

/// The lines of one commit.
pub(super) fn commit(step: &Step<'_>) -> Vec<String> {
    let who = match step.by {
        Actor::SetController => "controller",
        Actor::Collector => "collector",
        Actor::User => "user",
        Actor::Evictor => "evictor",
        Actor::Other => "node",
    };
    let mut lines = Vec::new();
    let (before, after) = (step.before, step.after);
    changes(&before.revisions, &after.revisions, revision, &mut lines);
    changes(&before.claims, &after.claims, |_, claim| self::claim(claim), &mut lines);
    changes(&before.pods, &after.pods, |_, pod| self::pod(pod), &mut lines);
    changes(&before.sets, &after.sets, set(after), &mut lines);
    lines.into_iter().map(|line| format!("  {who:10} {line}")).collect()
}

/// Everything that there is, as far as it does not depend on chance: what two histories that come to the same agree on.
pub(super) fn portrait(world: &World) -> Vec<String> {
    let mut lines = Vec::new();
    let tell = |title: String, is: String| format!("{title} {is}");
    lines.extend(world.revisions.iter().map(|(key, object)| tell(key.1.clone(), revision(key, object))));
    lines.extend(world.claims.iter().map(|(key, object)| tell(key.1.clone(), claim(object))));
    lines.extend(world.pods.iter().map(|(key, object)| tell(key.1.clone(), pod(object))));
    lines.extend(world.sets.iter().map(|(key, object)| tell(key.1.clone(), set(world)(key, object))));
    lines
}

fn changes<T: Object>(
    before: &Objects<T>,
    after: &Objects<T>,
    tell: impl Fn(&Key, &T) -> String,
    lines: &mut Vec<String>,
) {
    let word = word(T::KIND.name());
    let named = |key: &Key| match T::KIND.name() {
        "ControllerRevision" => word.to_owned(),
        "StatefulSet" => key.1.clone(),
        _ => format!("{word} {}", key.1),
    };
    for (key, object) in before {
        if after.get(key).is_none_or(|now| now.uid() != object.uid()) {
            let told = if word == "revision" { format!(" {}", tell(key, object)) } else { String::new() };
            lines.push(format!("- {}{told}", named(key)));
        }
    }
    for (key, object) in after {
        match before.get(key).filter(|was| was.uid() == object.uid()) {
            None => lines.push(format!("+ {} {}", named(key), tell(key, object))),
            Some(was) if tell(key, was) != tell(key, object) => {
                lines.push(format!("  {} {}", named(key), tell(key, object)));
            }
            Some(_) => {}
        }
    }
}

fn word(kind: &str) -> &str {
    match kind {
        "StatefulSet" => "set",
        "Pod" => "pod",
        "PersistentVolumeClaim" => "claim",
        "ControllerRevision" => "revision",
        other => other,
    }
}

fn revision(_: &Key, revision: &ControllerRevision) -> String {
    let template = of(revision.data.as_ref());
    format!("#{} of v{}{}", revision.revision, version(&template), owners(revision))
}

fn of(template: Option<&PodTemplateSpec>) -> String {
    let spec = template.and_then(|template| template.spec.as_ref());
    let container = spec.and_then(|spec| spec.containers.first());
    container.map(|container| container.image.clone()).unwrap_or_default()
}

fn claim(claim: &PersistentVolumeClaim) -> String {
    let going = if claim.is_terminating() { ", to go" } else { "" };
    let bound = if claim.spec.as_ref().is_some_and(|spec| spec.volume_name.is_empty()) { "unbound" } else { "bound" };
    let capacity = claim.status.as_ref().and_then(|status| status.capacity.get("storage"));
    let size = capacity.map(|size| format!(", {}", size.value)).unwrap_or_default();
    format!("{bound}{size}{}{going}", owners(claim))
}

fn pod(pod: &Pod) -> String {
    let ready = if is_ready(pod) { ", ready" } else { "" };
    let node = if pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_empty()) { ", no node" } else { "" };
    let going = if pod.is_terminating() { ", to go" } else { "" };
    let nobody = if pod.meta().owner_references.is_empty() { ", nobody's" } else { "" };
    format!("v{} {}{node}{ready}{nobody}{going}", version(image(pod)), phase(pod))
}

fn set(world: &World) -> impl Fn(&Key, &StatefulSet) -> String + '_ {
    move |key, set| {
        let going = if set.is_terminating() { ", to go" } else { "" };
        let wants = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let Some(status) = &set.status else { return format!("{wants} wanted{going}") };
        let named = |name: &str| {
            let revision = world.revisions.get(&(key.0.clone(), name.to_owned()));
            revision.map_or_else(|| "?".to_owned(), |revision| version(&of(revision.data.as_ref())).to_owned())
        };
        let (current, update) = (named(&status.current_revision), named(&status.update_revision));
        let revisions = if current == update { format!("v{current}") } else { format!("v{current} to v{update}") };
        let counts = [
            ("ready", status.ready_replicas),
            ("available", status.available_replicas),
            ("current", status.current_replicas),
            ("updated", status.updated_replicas),
        ];
        let counts = counts.iter().map(|(word, count)| format!(", {count} {word}")).collect::<String>();
        format!("{wants} wanted, {} there{counts}, {revisions}{going}", status.replicas)
    }
}

fn owners<T: ObjectExt>(object: &T) -> String {
    let owners: Vec<_> = object.meta().owner_references.iter().map(|owner| owner.name.as_str()).collect();
    if owners.is_empty() { String::new() } else { format!(", of {}", owners.join(" and ")) }
}
