//! What is done with the data in claims: they grow, they are held, they are given up, they are kept between revisions.

use model::{identity::Ordinal, overrides, quantity::Quantity};
use pb::{
    Object, ObjectExt,
    objects::{Condition, PersistentVolumeClaim, Pod, StatefulSet},
};

use crate::{
    Findings,
    world::{Actor, Step, World, changed, in_range, key, ordinal, replicas, spec, strategy, title},
};

/// Annotation of a claim: the revision whose pod had it last. Of a snapshot: the revision that came next.
const DATA_REVISION: &str = "apps.berth.dev/revision";
/// Annotation of a claim: the set and the template that it was made for.
const MADE_FOR: &str = "berth.dev/made-for";
/// Seconds after which volumes are given up, where it is not said.
const RECREATE_AFTER: i32 = 600;

fn amount(written: Option<&pb::objects::Quantity>) -> Option<Quantity> {
    written?.try_into().ok()
}

/// What a claim asks for.
fn size(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    amount(claim.spec.as_ref()?.resources.as_ref()?.requests.get("storage"))
}

fn capacity(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    amount(claim.status.as_ref()?.capacity.get("storage"))
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.spec.as_ref().is_some_and(|spec| !spec.volume_name.is_empty())
}

fn condition<'a>(claim: &'a PersistentVolumeClaim, kind: &str) -> Option<&'a Condition> {
    claim.status.iter().flat_map(|status| &status.conditions).find(|condition| condition.r#type == kind)
}

/// Whether something is being done with the data as a whole.
pub(crate) fn is_held(claim: &PersistentVolumeClaim) -> bool {
    let operation = claim.status.as_ref().and_then(|status| status.operation.as_ref());
    operation.is_some_and(|operation| !matches!(operation.phase.as_str(), "Done" | "Failed"))
}

/// No controller makes a claim smaller.
pub(crate) fn never_shrinks(step: &Step<'_>, findings: &mut Findings) {
    for (was, is) in changed(&step.before.claims, &step.after.claims).filter(|_| step.by != Actor::User) {
        if let (Some(from), Some(to)) = (size(was), size(is))
            && to < from
        {
            findings.add(title(is), format!("asked for {from} and now for {to}"));
        }
    }
}

/// The claims of a template grow one after the other.
pub(crate) fn one_at_a_time(step: &Step<'_>, findings: &mut Findings) {
    if step.by != Actor::SetController {
        return;
    }
    for (was, is) in changed(&step.before.claims, &step.after.claims) {
        if size(is) <= size(was) || !is_bound(was) {
            continue;
        }
        let Some((set, template, _)) = whose(step.before, was) else { continue };
        let others = step.before.claims.values().map(AsRef::as_ref).filter(|other| other.uid() != was.uid());
        let mut of_template = others.filter(|other| {
            let theirs = whose(step.before, other);
            theirs.is_some_and(|(of, name, place)| of.uid() == set.uid() && name == template && in_range(set, place))
        });
        if let Some(other) = of_template.find(|other| is_growing(other)) {
            findings.add(title(is), format!("was asked to grow while {} was growing", other.name()));
        }
    }
}

/// Whether the volume of a claim is on its way to be larger, and nothing else is the matter with it.
fn is_growing(claim: &PersistentVolumeClaim) -> bool {
    let short = capacity(claim).zip(size(claim)).is_some_and(|(has, wants)| has < wants);
    let at_start = condition(claim, "FileSystemResizePending").is_some_and(|pending| pending.status == "True");
    let steps = claim.status.iter().flat_map(|status| status.allocated_resource_statuses.values());
    let elsewhere = claim.status.as_ref().is_some_and(|status| status.operation.is_some())
        || condition(claim, "VolumeLost").is_some();
    let mut stuck = steps.filter(|step| step.ends_with("Infeasible") || *step == "NodeResizePending");
    is_bound(claim) && short && !at_start && !elsewhere && !claim.is_terminating() && stuck.next().is_none()
}

/// A pod that serves is replaced for an update only after its claims were asked to grow to what they should have.
pub(crate) fn grown_before_update(step: &Step<'_>, findings: &mut Findings) {
    if step.by != Actor::SetController {
        return;
    }
    for pod in step.pods_asked_to_go() {
        let Some(set) = step.before.set_of(pod).filter(|set| strategy(set) != "Recreate") else { continue };
        let Some(due) = ordinal(set, pod).filter(|due| in_range(set, *due)) else { continue };
        if set.is_terminating() || !step.before.is_available(set, pod) {
            continue;
        }
        let claims = || step.before.claims.values().map(AsRef::as_ref);
        let infeasible = |claim: &PersistentVolumeClaim| {
            let mut steps = claim.status.iter().flat_map(|status| status.allocated_resource_statuses.values());
            steps.any(|step| step.ends_with("Infeasible"))
        };
        if claims().any(infeasible) {
            continue;
        }
        for claim in claims() {
            let theirs = whose(step.before, claim).filter(|(of, _, place)| of.uid() == set.uid() && *place == due);
            let Some((_, template, _)) = theirs else { continue };
            let elsewhere = claim.status.as_ref().is_some_and(|status| status.operation.is_some())
                || condition(claim, "VolumeLost").is_some();
            if size(claim) < size_due(set, template, due) && !elsewhere && !claim.is_terminating() {
                findings.add(title(pod), format!("was replaced before its claim {} had grown", claim.name()));
            }
        }
    }
}

/// What the claim of an ordinal should ask for.
fn size_due(set: &StatefulSet, template: &str, due: Ordinal) -> Option<Quantity> {
    let spec = spec(set)?;
    let mut wanted = spec.volume_claim_templates.iter().find(|one| one.name() == template)?.spec.clone()?;
    overrides::claim(spec, due, template, &mut wanted);
    amount(wanted.resources?.requests.get("storage"))
}

/// The set, the template and the ordinal that a claim was made for.
fn whose<'a>(world: &'a World, claim: &PersistentVolumeClaim) -> Option<(&'a StatefulSet, &'a str, Ordinal)> {
    let made_for = claim.meta().annotations.get(MADE_FOR)?;
    let (name, template) = made_for.split_once('/')?;
    let set = world.sets.get(&(claim.namespace().to_owned(), name.to_owned()))?;
    let mut templates = spec(set)?.volume_claim_templates.iter();
    let template = templates.find(|one| one.name() == template)?.name();
    let number = claim.name().strip_prefix(&format!("{template}-{name}-"))?;
    Some((set, template, Ordinal::parse(number)?))
}

/// The set and ordinal by whose names a claim goes.
fn by_name<'a>(world: &'a World, claim: &PersistentVolumeClaim) -> Option<(&'a StatefulSet, Ordinal)> {
    let mut sets = world.sets.values().filter(|set| set.namespace() == claim.namespace());
    sets.find_map(|set| {
        let mut templates = spec(set)?.volume_claim_templates.iter();
        let prefix = |template: &PersistentVolumeClaim| format!("{}-{}-", template.name(), set.name());
        let made_for = claim.meta().annotations.get(MADE_FOR);
        let ours = |template: &PersistentVolumeClaim| {
            made_for.is_none_or(|made_for| *made_for == format!("{}/{}", set.name(), template.name()))
        };
        let ordinal = templates
            .by_ref()
            .filter(|template| ours(template))
            .find_map(|template| Ordinal::parse(claim.name().strip_prefix(&prefix(template))?));
        Some((set.as_ref(), ordinal?))
    })
}

/// Whether the set's controller gives up the volumes of an ordinal in this step.
pub(crate) fn gives_up(step: &Step<'_>, set: &StatefulSet, ordinal: Ordinal) -> bool {
    let claims = step.before.claims_of(set, ordinal);
    claims.iter().any(|claim| !claim.is_terminating() && is_asked_to_go(step, claim))
}

fn is_asked_to_go(step: &Step<'_>, claim: &PersistentVolumeClaim) -> bool {
    let after = step.after.claims.get(&key(claim)).filter(|after| after.uid() == claim.uid());
    after.is_none_or(|after| after.is_terminating())
}

/// Why the set's controller may not give up a claim; None if the policy says so and all is given up together.
pub(crate) fn wrongly_given_up(step: &Step<'_>, claim: &PersistentVolumeClaim) -> Option<String> {
    let wrong = |what: &str| Some(what.to_owned());
    let Some((set, due)) = by_name(step.before, claim) else { return wrong("it belongs to no set") };
    let policy = spec(set).and_then(|spec| spec.volume_policy.clone()).unwrap_or_default();
    if policy.on_node_lost != "Recreate" {
        return wrong("volumePolicy.onNodeLost is not Recreate");
    }
    let claims = step.before.claims_of(set, due);
    if let Some(kept) = claims.iter().find(|claim| !is_asked_to_go(step, claim)) {
        return Some(format!("{} of the same ordinal was kept", kept.name()));
    }
    if let Some(held) = claims.iter().find(|claim| is_held(claim)) {
        return Some(format!("{} is held by an operation", held.name()));
    }
    let after = i64::from(policy.recreate_after_seconds.unwrap_or(RECREATE_AFTER));
    let lost_for = |claim: &&PersistentVolumeClaim| {
        let lost = condition(claim, "VolumeLost").filter(|lost| lost.status == "True")?;
        let since = lost.last_transition_time.as_ref()?.timestamp();
        Some(step.before.now.duration_since(since).as_secs())
    };
    if claims.iter().filter_map(lost_for).max().is_none_or(|lost| lost < after) {
        return wrong("no volume of its ordinal was lost for so long");
    }
    let pods = step.before.pods_of(set);
    let available = |pod: &Pod| step.before.is_available(set, pod);
    if pods.get(&due).is_some_and(|pod| available(pod)) {
        return wrong("its pod was available");
    }
    let others = pods.iter().filter(|(place, pod)| **place != due && in_range(set, **place) && available(pod)).count();
    let wanted = replicas(set).saturating_sub(1);
    if others * 2 <= wanted {
        return Some(format!("only {others} of {wanted} other pods were available"));
    }
    let pod = step.after.pods_of(set).get(&due).is_some_and(|pod| !pod.is_terminating());
    pod.then(|| "its pod was kept".to_owned())
}

/// With snapshotBeforeUpdate a pod of another revision gets a claim only when what was in it is in a snapshot, or was
/// taken back.
pub(crate) fn kept_between_revisions(step: &Step<'_>, findings: &mut Findings) {
    for pod in step.created_pods().filter(|_| step.by == Actor::SetController) {
        let Some(set) = step.before.set_of(pod) else { continue };
        let Some(due) = ordinal(set, pod) else { continue };
        let takes =
            spec(set).and_then(|spec| spec.volume_policy.as_ref()).is_some_and(|one| one.snapshot_before_update);
        let Some(revision) = pod.meta().labels.get(crate::revisions::REVISION_LABEL).filter(|_| takes) else {
            continue;
        };
        for claim in step.before.claims_of(set, due) {
            let Some(last) = claim.meta().annotations.get(DATA_REVISION).filter(|last| *last != revision) else {
                continue;
            };
            let failed = set.status.as_ref().is_some_and(|status| status.failed_revision == *last);
            if is_bound(claim) && !failed && !has_snapshot(step.before, claim, revision) {
                let what = format!("was created with claim {} of {last}, of which there is no snapshot", claim.name());
                findings.add(title(pod), what);
            }
        }
    }
}

fn has_snapshot(world: &World, claim: &PersistentVolumeClaim, before: &str) -> bool {
    world.snapshots.values().any(|snapshot| {
        let source = snapshot.spec.as_ref().and_then(|spec| spec.source.as_ref());
        snapshot.namespace() == claim.namespace()
            && source.is_some_and(|source| source.persistent_volume_claim_name == claim.name())
            && snapshot.meta().annotations.get(DATA_REVISION).is_some_and(|revision| revision == before)
            && snapshot.status.as_ref().is_some_and(|status| status.ready_to_use)
    })
}
