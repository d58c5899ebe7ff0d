//! Stories: what users and nodes do, step by step, and what must have come of it.
//!
//! A story plays over the same parts as the simulation: the real planner, the real apply step and the real collector
//! of garbage, over the store's model of etcd. Nodes do at once what they are due unless the story says otherwise, and
//! nothing is left to chance. [`Story::hold`] plays a story
//!
//! - for both pod management policies and all four retention policies;
//! - without faults, and then again with every single call of the controller and of the collector going wrong in every
//!   way: an error before the call is done, an error after (it was done, and its answer is lost), a crash before, a
//!   crash after. Calls that write nothing have no after.
//!
//! After every commit all of `check` holds, and the laws of the private `law`. Where the story settles everything is
//! complete and processes that start anew write nothing. And one fault changes nothing about where the system comes to
//! rest: the portrait of what there is, without uids and times, is the one without the fault. So a story with a fault
//! need only be played to the next rest.
//!
//! The faults are many. [`Faults::Spread`] deals them out over the eight cases, each to one; [`Faults::Every`] plays all
//! of them in all cases.

mod hands;
mod kubelet;
mod law;
mod play;
mod print;
mod stage;

use std::{fmt, sync::Arc};

use pb::objects::{Pod, StatefulSetSpec};
use plan::gc::Propagation;
use store::Prefix;

use crate::wire::Trouble;
pub use stage::{Stage, Told};

/// The policies of the set that a story is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// podManagementPolicy is Parallel.
    pub parallel: bool,
    /// whenDeleted is Delete.
    pub delete_with_set: bool,
    /// whenScaled is Delete.
    pub delete_when_scaled: bool,
}

impl Case {
    /// OrderedReady, and all claims stay.
    pub const PLAIN: Self = Self { parallel: false, delete_with_set: false, delete_when_scaled: false };

    /// Parallel, and all claims stay.
    pub const PARALLEL: Self = Self { parallel: true, ..Self::PLAIN };

    /// Both policies with all four retention policies.
    pub fn all() -> impl Iterator<Item = Self> {
        let both = [false, true];
        let retention = both.into_iter().flat_map(move |set| both.map(|scaled| (set, scaled)));
        retention.flat_map(move |(delete_with_set, delete_when_scaled)| {
            both.map(|parallel| Self { parallel, delete_with_set, delete_when_scaled })
        })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |delete: bool| if delete { "Delete" } else { "Retain" };
        let policy = if self.parallel { "Parallel" } else { "OrderedReady" };
        let (deleted, scaled) = (word(self.delete_with_set), word(self.delete_when_scaled));
        write!(f, "{policy}, whenDeleted {deleted}, whenScaled {scaled}")
    }
}

/// Which faults a story is played with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    /// Each in one case.
    Spread,
    /// Each in every case.
    Every,
}

type Play = Arc<dyn Fn(&mut Stage) -> Told + Send + Sync>;

/// What a step of a story is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Something happens.
    Act,
    /// Something happens in the middle of what comes next.
    Meanwhile,
    /// Everybody works until nothing happens any more.
    Rest,
    /// Something must be so. Right after a rest, with a fault too; else only without one.
    Look,
}

struct Step {
    text: String,
    kind: Kind,
    play: Play,
}

/// A story.
pub struct Story {
    name: &'static str,
    cases: fn(Case) -> bool,
    blind_to: Option<Prefix>,
    steps: Vec<Step>,
}

/// How much was played.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Histories without and with a fault.
    pub histories: usize,
    /// Commits in them, each looked at.
    pub commits: usize,
}

/// Whose call goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Controller,
    Collector,
}

/// What makes one history other than the one that nothing disturbs.
#[derive(Clone, Copy, Debug)]
enum Mishap {
    /// A call goes wrong.
    Call(Who, u64, Trouble),
    /// What happens meanwhile happens after so many calls.
    Interrupted(u64),
}

impl fmt::Display for Mishap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(who, call, trouble) => write!(f, "with {trouble:?} at call {call} of the {who:?}"),
            Self::Interrupted(calls) => write!(f, "interrupted after {calls} calls"),
        }
    }
}

/// What went wrong, and where.
#[derive(Clone, Debug)]
pub struct Failure {
    story: &'static str,
    case: Case,
    mishap: Option<Mishap>,
    step: String,
    what: Vec<String>,
    history: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({})", self.story, self.case)?;
        if let Some(mishap) = self.mishap {
            writeln!(f, "{mishap}")?;
        }
        writeln!(f, "at: {}", self.step)?;
        self.what.iter().try_for_each(|what| writeln!(f, "  {what}"))?;
        writeln!(f, "history:")?;
        self.history.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl std::error::Error for Failure {}

/// The text of a step, and what was wrong with it.
type Broken = (String, Vec<String>);

impl Story {
    /// A story about a set named `web`. Its pods run `app:1` at first and have one claim each, `data-web-0` and so on.
    pub fn new(name: &'static str) -> Self {
        Self { name, cases: |_| true, blind_to: None, steps: Vec::new() }
    }

    /// Only for some policies.
    #[must_use]
    pub fn only(mut self, cases: fn(Case) -> bool) -> Self {
        self.cases = cases;
        self
    }

    /// With a mistake that the story should find: the controller leaves out guards on these keys.
    #[must_use]
    pub fn blind_to(self, keys: Prefix) -> Self {
        Self { blind_to: Some(keys), ..self }
    }

    fn step(mut self, kind: Kind, text: impl Into<String>, play: Play) -> Self {
        self.steps.push(Step { text: text.into(), kind, play });
        self
    }

    /// Anything happens.
    #[must_use]
    pub fn then(self, text: impl Into<String>, act: impl Fn(&mut Stage) + Send + Sync + 'static) -> Self {
        self.step(
            Kind::Act,
            text,
            Arc::new(move |stage| {
                act(stage);
                Ok(())
            }),
        )
    }

    /// Anything happens in the middle of what comes next: in one history before the controller makes its first call, in
    /// the next before its second, and so on.
    #[must_use]
    pub fn meanwhile(self, text: &str, act: impl Fn(&mut Stage) + Send + Sync + 'static) -> Self {
        let act = move |stage: &mut Stage| {
            act(stage);
            Ok(())
        };
        self.step(Kind::Meanwhile, format!("meanwhile {text}"), Arc::new(act))
    }

    /// The set is created with so many replicas.
    #[must_use]
    pub fn create(self, replicas: i32) -> Self {
        self.then(format!("create {replicas}"), move |stage| stage.create(|spec| spec.replicas = Some(replicas)))
    }

    /// The set is created.
    #[must_use]
    pub fn create_with(self, text: &str, change: impl Fn(&mut StatefulSetSpec) + Send + Sync + 'static) -> Self {
        self.then(format!("create {text}"), move |stage| stage.create(&change))
    }

    /// The set's spec is changed.
    #[must_use]
    pub fn change(self, text: &str, change: impl Fn(&mut StatefulSetSpec) + Send + Sync + 'static) -> Self {
        self.then(text, move |stage| stage.change(&change))
    }

    /// The set is scaled.
    #[must_use]
    pub fn scale(self, replicas: i32) -> Self {
        self.change(&format!("scale to {replicas}"), move |spec| spec.replicas = Some(replicas))
    }

    /// The template gets another version.
    #[must_use]
    pub fn image(self, version: &'static str) -> Self {
        self.change(&format!("image {version}"), move |spec| set_image(spec, version))
    }

    /// The set is deleted.
    #[must_use]
    pub fn delete_set(self, propagation: Propagation) -> Self {
        self.then(format!("delete the set, {propagation:?}"), move |stage| stage.delete_set(propagation))
    }

    /// Pods are deleted by a user.
    #[must_use]
    pub fn delete_pods(self, names: &'static [&'static str]) -> Self {
        self.then(format!("delete {}", names.join(", ")), |stage| names.iter().for_each(|name| stage.delete_pod(name)))
    }

    /// The containers of a pod end.
    #[must_use]
    pub fn end(self, name: &'static str, phase: &'static str) -> Self {
        self.then(format!("{name} ends: {phase}"), move |stage| stage.end(name, phase))
    }

    /// Versions whose containers never become ready.
    #[must_use]
    pub fn broken(self, version: &'static str) -> Self {
        self.then(format!("version {version} does not work"), move |stage| stage.broken(version, true))
    }

    /// A pod stops being ready until all are well again.
    #[must_use]
    pub fn unready(self, name: &'static str) -> Self {
        self.then(format!("{name} is not ready"), move |stage| stage.unready(name))
    }

    /// Every pod that can be ready is.
    #[must_use]
    pub fn ready(self) -> Self {
        self.then("all are well again", Stage::ready)
    }

    /// From here on nobody but the update takes pods away, and the template does not change in the middle of an update:
    /// revisions stand in order.
    #[must_use]
    pub fn orderly(self) -> Self {
        self.then("orderly from here on", |stage| stage.laws.orderly = true)
    }

    /// Claims do not go by one table all along: the policy changes, or somebody else owns some.
    #[must_use]
    pub fn unsteady_claims(self) -> Self {
        self.then("claims differ", |stage| stage.laws.steady_claims = false)
    }

    /// The controller makes one step.
    #[must_use]
    pub fn sync(self) -> Self {
        self.step(Kind::Act, "sync", Arc::new(Stage::sync))
    }

    /// The nodes do what is due.
    #[must_use]
    pub fn nodes(self) -> Self {
        self.step(Kind::Act, "nodes", Arc::new(Stage::nodes))
    }

    /// Garbage is collected.
    #[must_use]
    pub fn collect(self) -> Self {
        self.step(Kind::Act, "collect", Arc::new(Stage::collect))
    }

    /// Everybody works until all is as it should be and nothing happens any more.
    #[must_use]
    pub fn settle(self) -> Self {
        self.step(Kind::Rest, "settle", Arc::new(Stage::settle))
    }

    /// Everybody works until nothing happens any more, whatever is missing.
    #[must_use]
    pub fn rest(self) -> Self {
        self.step(Kind::Rest, "rest", Arc::new(Stage::rest))
    }

    /// Something must be so. Right after a rest it must be so with a fault too.
    #[must_use]
    pub fn expect(self, text: &str, look: impl Fn(&mut Stage) -> Result<(), String> + Send + Sync + 'static) -> Self {
        let look = move |stage: &mut Stage| look(stage).map_err(|wrong| vec![wrong]);
        self.step(Kind::Look, format!("expect {text}"), Arc::new(look))
    }

    fn expect_words(self, what: &'static str, wanted: &'static str, is: fn(&Stage) -> String) -> Self {
        self.expect(&format!("{what} {wanted}"), move |stage| same(what, &is(stage), wanted))
    }

    /// The pods are these, as name:version; `!` not ready, `x` ended, `~` to go.
    #[must_use]
    pub fn pods(self, wanted: &'static str) -> Self {
        self.expect_words("pods", wanted, Stage::pods)
    }

    /// The pods are these, depending on the policies.
    #[must_use]
    pub fn pods_if(self, wanted: fn(Case) -> &'static str) -> Self {
        self.expect("pods by policy", move |stage| same("pods", &stage.pods(), wanted(stage.case)))
    }

    /// Remembers which pods there are.
    #[must_use]
    pub fn mark(self) -> Self {
        self.then("remember the pods", Stage::mark)
    }

    /// Of the pods that were remembered these are still the same.
    #[must_use]
    pub fn kept(self, wanted: &'static str) -> Self {
        self.expect_words("kept", wanted, Stage::kept)
    }

    /// The claims are these.
    #[must_use]
    pub fn claims(self, wanted: &'static str) -> Self {
        self.expect_words("claims", wanted, Stage::claims)
    }

    /// The claims are these, depending on the policies.
    #[must_use]
    pub fn claims_if(self, wanted: fn(Case) -> &'static str) -> Self {
        self.expect("claims by policy", move |stage| same("claims", &stage.claims(), wanted(stage.case)))
    }

    /// The revisions are these, as number:version.
    #[must_use]
    pub fn revisions(self, wanted: &'static str) -> Self {
        self.expect_words("revisions", wanted, Stage::revisions)
    }
}

fn same(what: &str, is: &str, wanted: &str) -> Result<(), String> {
    if is == wanted { Ok(()) } else { Err(format!("{what} are {is:?}, expected {wanted:?}")) }
}

/// Gives the template another version.
pub fn set_image(spec: &mut StatefulSetSpec, version: &str) {
    let pod = spec.template.get_or_insert_default().spec.get_or_insert_default();
    if let Some(container) = pod.containers.first_mut() {
        container.image = format!("app:{version}");
    }
}

/// The image of a pod.
fn image(pod: &Pod) -> &str {
    let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
    container.map_or("", |container| container.image.as_str())
}

/// The version of an image.
fn version(image: &str) -> &str {
    image.rsplit_once(':').map_or(image, |(_, version)| version)
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().map_or("", |status| status.phase.as_str())
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| &status.conditions);
    phase(pod) == "Running" && conditions.into_iter().any(|known| known.r#type == "Ready" && known.status == "True")
}
