//! What a set says of itself while it moves, and what happens when it does not: told as histories.

use check::Actor;
use pb::objects::StatefulSetSpec;
use plan::statefulset::{DeleteReason, Op, Plan, stamp};
use proptest::prelude::*;

use crate::{
    Event, Shape,
    cluster::Cluster,
    event, happen, settle, shape,
    stories::{PLAIN, settled},
};

/// Seconds that pass with every round of a story.
const ROUND: i64 = 10;

/// A cluster and what was told of it.
struct Story {
    cluster: Cluster,
    told: Vec<String>,
    state: String,
}

impl Story {
    fn new(cluster: Cluster) -> Self {
        let mut story = Self { cluster, told: Vec::new(), state: String::new() };
        story.rounds(1);
        story.told.clear();
        story
    }

    fn spec(&mut self, change: impl FnOnce(&mut StatefulSetSpec)) {
        self.cluster.commit(Actor::User, |cluster| {
            cluster.change_set(|set| change(set.spec.get_or_insert_default()));
        });
    }

    /// The controller works, then the nodes do, and time passes.
    fn rounds(&mut self, rounds: u32) {
        for _ in 0..rounds {
            let plan = self.cluster.sync(None);
            let deeds: Vec<_> = plan.actions.iter().filter_map(|action| self.deed(&action.op)).collect();
            self.told.extend(deeds);
            let state = self.describe(&plan);
            if state != self.state {
                self.told.push(state.clone());
            }
            self.state = state;
            happen(&mut self.cluster, &Event::Kubelets);
            self.cluster.pass(ROUND);
        }
    }

    fn deed(&self, op: &Op) -> Option<String> {
        let image = |revision: &model::identity::RevisionName| self.cluster.image_of(revision.as_str());
        match op {
            Op::CreatePod(new) => Some(format!("> create {} of {}", new.pod, image(&new.revision))),
            Op::DeletePod { pod, why: DeleteReason::Outdated { from, to }, .. } => {
                let from = from.as_ref().map(image).unwrap_or_default();
                Some(format!("> replace {pod}: {from} -> {}", image(to)))
            }
            Op::DeletePod { pod, why, .. } => Some(format!("> delete {pod}: {why}")),
            Op::RevertTemplate { from, to } => Some(format!("> REVERT {} -> {}", image(from), image(to))),
            Op::ReleaseSet => Some("> let the set go".to_owned()),
            _ => None,
        }
    }

    /// Conditions in short: a `!` before one that does not hold, the reason where it is not the everyday one.
    fn describe(&self, plan: &Plan) -> String {
        let status = &plan.status;
        let conditions = status.conditions.iter().map(|condition| {
            let holds = if condition.holds { "" } else { "!" };
            let everyday = ["MinimumReplicasAvailable", "MinimumReplicasUnavailable", "Progressing", "AsExpected"];
            let reason = Some(condition.reason.as_str()).filter(|reason| !everyday.contains(reason));
            format!("{holds}{}{}", condition.kind, reason.map(|reason| format!("({reason})")).unwrap_or_default())
        });
        let mut words: Vec<_> = conditions.collect();
        if let Some(blocked) = &status.blocked_on {
            let ordinal = blocked.ordinal.map_or("set".to_owned(), |ordinal| format!("web-{ordinal}"));
            words.push(format!("blocked on {ordinal} {}", blocked.reason));
        }
        words.join(" ")
    }

    /// Compares the history with what was expected, line by line.
    #[track_caller]
    fn is(&self, expected: &str) {
        let expected: Vec<_> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        assert_eq!(self.told, expected, "told:\n{}", self.told.join("\n"));
    }

    /// When a condition came to hold or not to hold.
    fn since(&self, kind: &str) -> Option<i64> {
        let status = self.cluster.set.status.as_ref()?;
        let condition = status.conditions.iter().find(|condition| condition.r#type == kind)?;
        condition.last_transition_time.map(|time| time.seconds)
    }

    /// Somebody asks for the set to go.
    fn delete(&mut self, order: &str) {
        self.cluster.commit(Actor::User, |cluster| {
            let now = cluster.now.into();
            cluster.change_set(|set| {
                order.clone_into(&mut set.spec.get_or_insert_default().deletion_order);
                let meta = set.metadata.get_or_insert_default();
                meta.deletion_timestamp = Some(now);
                meta.finalizers.push(stamp::ORDERED_DELETION.to_owned());
            });
        });
    }
}

const BROKEN: &str = "i:9";

fn image(spec: &mut StatefulSetSpec, image: &str) {
    let template = spec.template.get_or_insert_default().spec.get_or_insert_default();
    template.containers[0].image = image.to_owned();
}

#[test]
fn a_new_set_tells_how_it_comes_up() {
    let mut story = Story { cluster: Cluster::new(crate::set(&PLAIN)), told: Vec::new(), state: String::new() };
    story.rounds(12);
    story.is("
        > create web-0 of i
        !Available Progressing !Degraded
        !Available Progressing !Degraded blocked on web-0 NotReady
        > create web-1 of i
        !Available Progressing !Degraded
        !Available Progressing !Degraded blocked on web-1 NotReady
        > create web-2 of i
        Available Progressing !Degraded
        Available Progressing !Degraded blocked on web-2 NotReady
        Available Progressing(Complete) !Degraded
    ");
    // Available since the second pod, and that is not touched when the third one comes.
    let complete = story.cluster.set.status.as_ref().and_then(|status| status.last_progress_time);
    assert!(story.since("Available") < complete.map(|time| time.seconds));
    assert!(story.since("Available") > story.since("Progressing"));
}

#[test]
fn a_broken_template_is_reverted_and_the_set_heals() {
    let mut story = Story::new(settled(&PLAIN));
    story.spec(|spec| {
        (spec.progress_deadline_seconds, spec.auto_revert) = (Some(60), true);
        image(spec, BROKEN);
    });
    story.rounds(16);
    story.is("
        > replace web-2: i -> i:9
        Available Progressing !Degraded
        > create web-2 of i:9
        Available Progressing !Degraded blocked on web-2 NotReady
        > REVERT i:9 -> i
        Available !Progressing(ProgressDeadlineExceeded) Degraded(ProgressDeadlineExceeded) blocked on web-2 NotReady
        > replace web-2: i:9 -> i
        Available Progressing Degraded(RolloutReverted) blocked on web-2 NotReady
        > create web-2 of i
        Available Progressing Degraded(RolloutReverted)
        Available Progressing Degraded(RolloutReverted) blocked on web-2 NotReady
        Available Progressing(Complete) Degraded(RolloutReverted)
    ");
    let status = story.cluster.set.status.clone().expect("the set has a status");
    assert_eq!(story.cluster.image_of(&status.failed_revision), BROKEN);
    assert_eq!(status.complete_revision, status.update_revision);
    story.told.clear();

    // A new try takes the memory of the failure away.
    story.spec(|spec| image(spec, "i:3"));
    story.rounds(1);
    story.is("
        > replace web-2: i -> i:3
        Available Progressing !Degraded
    ");
}

#[test]
fn where_a_set_went_back_to_it_stays() {
    let mut story = Story::new(settled(&PLAIN));
    story.spec(|spec| {
        (spec.progress_deadline_seconds, spec.auto_revert) = (Some(60), true);
        image(spec, BROKEN);
    });
    story.rounds(4);
    // What was good is good no more.
    story.cluster.broken.push("i");
    story.rounds(40);
    let reverts = story.told.iter().filter(|line| line.contains("REVERT"));
    assert_eq!(reverts.collect::<Vec<_>>(), ["> REVERT i:9 -> i"]);
    assert!(story.state.contains("!Progressing(ProgressDeadlineExceeded)"), "{}", story.state);
    assert!(story.cluster.plan().actions.is_empty(), "a set that is stuck writes nothing either");
}

#[test]
fn without_a_way_back_the_deadline_is_told() {
    let mut story = Story::new(settled(&PLAIN));
    story.spec(|spec| {
        spec.progress_deadline_seconds = Some(60);
        image(spec, BROKEN);
    });
    story.rounds(16);
    assert!(story.cluster.plan().actions.is_empty(), "a set that is stuck writes nothing");
    assert_eq!(story.cluster.plan().requeue_after, None, "nor does it look again");
    story.told.push("> the user corrects the template".to_owned());
    story.spec(|spec| image(spec, "i:2"));
    story.rounds(10);
    story.is("
        > replace web-2: i -> i:9
        Available Progressing !Degraded
        > create web-2 of i:9
        Available Progressing !Degraded blocked on web-2 NotReady
        Available !Progressing(ProgressDeadlineExceeded) Degraded(ProgressDeadlineExceeded) blocked on web-2 NotReady
        > the user corrects the template
        > replace web-2: i:9 -> i:2
        Available Progressing !Degraded blocked on web-2 NotReady
        > create web-2 of i:2
        Available Progressing !Degraded
        Available Progressing !Degraded blocked on web-2 NotReady
        > replace web-1: i -> i:2
        Available Progressing !Degraded
        > create web-1 of i:2
        Available Progressing !Degraded blocked on web-1 NotReady
        > replace web-0: i -> i:2
        Available Progressing !Degraded
        > create web-0 of i:2
        Available Progressing !Degraded blocked on web-0 NotReady
        Available Progressing(Complete) !Degraded
    ");
}

#[test]
fn the_deadline_is_looked_at_when_it_comes_and_not_while_the_set_is_paused() {
    let mut story = Story::new(settled(&PLAIN));
    story.spec(|spec| {
        spec.progress_deadline_seconds = Some(60);
        image(spec, BROKEN);
    });
    story.rounds(4);
    let left = story.cluster.plan().requeue_after.expect("a deadline is near").as_secs();
    assert!((1..60).contains(&left), "{left}");
    story.spec(|spec| spec.paused = true);
    story.rounds(20);
    assert_eq!(story.state, "Available Progressing(Paused) !Degraded blocked on web-2 NotReady");
    assert_eq!(story.cluster.plan().requeue_after, None);
    story.spec(|spec| spec.paused = false);
    story.rounds(6);
    assert!(
        story.state.starts_with("Available Progressing !Degraded"),
        "it has all of its time again: {}",
        story.state
    );
    story.rounds(3);
    assert!(story.state.contains("!Progressing(ProgressDeadlineExceeded)"), "{}", story.state);
}

#[test]
fn a_set_that_was_complete_has_all_of_its_time_when_a_pod_breaks() {
    let mut story = Story::new(settled(&PLAIN));
    story.spec(|spec| spec.progress_deadline_seconds = Some(60));
    story.rounds(1);
    story.cluster.pass(10_000);
    story.cluster.broken.push("i");
    happen(&mut story.cluster, &Event::Unready(0));
    story.rounds(6);
    assert_eq!(story.state, "Available Progressing !Degraded blocked on web-0 NotReady");
    story.rounds(2);
    assert!(story.state.contains("!Progressing(ProgressDeadlineExceeded)"), "{}", story.state);
}

#[test]
fn a_pod_that_is_ready_for_moments_does_not_hold_off_the_deadline() {
    let mut story = Story::new(settled(&Shape { min_ready: 25, ..PLAIN }));
    story.rounds(3);
    story.spec(|spec| {
        spec.progress_deadline_seconds = Some(60);
        image(spec, BROKEN);
    });
    for _ in 0..8 {
        story.rounds(1);
        if story.cluster.pod_names().len() == 3 {
            story.cluster.commit(Actor::Other, |cluster| cluster.report("web-2", "Running", true));
            story.rounds(1);
            happen(&mut story.cluster, &Event::Unready(2));
        }
    }
    story.rounds(1);
    assert!(story.state.contains("!Progressing(ProgressDeadlineExceeded)"), "{}", story.state);

    // One that is ready and only has to stay so is not overdue, although the deadline is shorter.
    let mut story = Story::new(settled(&Shape { min_ready: 200, ..PLAIN }));
    story.rounds(60);
    story.spec(|spec| {
        spec.progress_deadline_seconds = Some(60);
        image(spec, "i:1");
    });
    story.rounds(80);
    assert!(story.state.contains("Complete"), "{}", story.state);
    assert!(!story.told.iter().any(|line| line.contains("Exceeded")), "{:#?}", story.told);
}

#[test]
fn pods_of_a_deleted_set_go_from_the_top_whether_well_or_not() {
    let mut story = Story::new(settled(&PLAIN));
    happen(&mut story.cluster, &Event::Unready(1));
    happen(&mut story.cluster, &Event::Scale(2));
    story.delete("Ordered");
    happen(&mut story.cluster, &Event::Sync);
    happen(&mut story.cluster, &Event::Template(2));
    story.rounds(6);
    story.is("
        Available Progressing(Deleting) !Degraded blocked on web-2 PodLeaving
        > delete web-1: the set is being deleted
        Available Progressing(Deleting) !Degraded blocked on web-0 SuccessorNotGone
        > delete web-0: the set is being deleted
        Available Progressing(Deleting) !Degraded
        > let the set go
        !Available Progressing(Deleting) !Degraded
        !Available Progressing(Deleting) !Degraded blocked on set SetDeleting
    ");
    assert_eq!(story.cluster.claim_names().len(), 3);
}

#[test]
fn who_no_longer_wants_an_order_need_not_wait_for_it() {
    let mut story = Story::new(settled(&PLAIN));
    story.delete("Ordered");
    story.rounds(1);
    story.spec(|spec| spec.deletion_order = "Parallel".to_owned());
    story.rounds(1);
    assert!(story.told.contains(&"> let the set go".to_owned()), "{:#?}", story.told);
    assert_eq!(story.cluster.pod_names().len(), 2, "the garbage collector takes the rest");
}

#[test]
fn claims_of_a_set_that_goes_in_order_get_the_owners_that_the_policy_says() {
    let mut story = Story::new(settled(&PLAIN));
    story.spec(|spec| {
        spec.persistent_volume_claim_retention_policy.get_or_insert_default().when_deleted = "Delete".to_owned();
    });
    story.delete("Ordered");
    story.rounds(6);
    let owned = story.cluster.snapshot().claims.into_values().all(|claim| claim.owners.len() == 1);
    assert!(owned, "the claims go with the set");
}

/// Two broken pods out of range wait for each other under OrderedReady, whatever the template (DN-4).
fn keeps_range(event: &Event) -> bool {
    match event {
        Event::Scale(_) | Event::Start(_) | Event::Reserve(_) => false,
        Event::Interrupted(_, event) => keeps_range(event),
        _ => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens before and meanwhile, a set that goes in order ends without pods; `check` holds the order.
    #[test]
    fn a_set_that_goes_in_order_ends_without_pods(
        shape in shape(),
        before in prop::collection::vec(event(), 0..20),
        meanwhile in prop::collection::vec(event(), 0..10),
    ) {
        let mut story = Story::new(settled(&shape));
        before.iter().for_each(|event| happen(&mut story.cluster, event));
        story.delete("Ordered");
        meanwhile.iter().for_each(|event| happen(&mut story.cluster, event));
        story.rounds(20);
        prop_assert_eq!(story.cluster.pod_names(), [""; 0]);
        prop_assert!(story.cluster.set.metadata.unwrap_or_default().finalizers.is_empty());
    }

    /// A set that was complete once and goes back by itself ends complete, whatever it was given.
    #[test]
    fn a_set_that_goes_back_heals(
        shape in shape(),
        events in prop::collection::vec(prop_oneof![4 => event(), 1 => Just(Event::Template(9))], 0..40),
    ) {
        // With OnDelete nothing is replaced unless somebody deletes it.
        let mut cluster = settled(&Shape { on_delete: false, ..shape });
        let retry = |set: &mut pb::objects::StatefulSet| {
            let spec = set.spec.get_or_insert_default();
            (spec.progress_deadline_seconds, spec.auto_revert) = (Some(30), true);
        };
        cluster.commit(Actor::User, |cluster| cluster.change_set(retry));
        for event in events.iter().filter(|event| keeps_range(event)) {
            happen(&mut cluster, event);
        }
        // What is behind a partition, or paused, is not given back.
        happen(&mut cluster, &Event::Pause(false));
        happen(&mut cluster, &Event::Partition(0));
        settle(&mut cluster);
        prop_assert!(cluster.plan().actions.is_empty());
    }
}
