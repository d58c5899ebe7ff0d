//! What is under way for the containers of one pod: hooks, and stops.
//!
//! The pod's worker goes on meanwhile and is woken by every end. When what is due is decided by `plan::node`. That a
//! postStart hook has succeeded is noted in the pod's folder, so that the next agent does not run it again. Of a hook
//! that an agent did not see the end of, the next one knows nothing and runs it once more, as Kubernetes does.

use std::{collections::BTreeMap, fs, future::Future, io, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use parking_lot::Mutex;
use pb::objects::{Container as ContainerSpec, LifecycleHandler};
use plan::node::{Action, ContainerState, Effort, Hook, Runtime};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    act::Failed,
    cri::Cri,
    http::{self, Target},
};

/// The folder of notes in a pod's folder: a file for each run whose postStart hook has succeeded.
const NOTES: &str = "post-start";

/// A postStart hook has no time limit of its own; this one keeps the agent from waiting for ever.
const POST_START_LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Output of a failed command that is kept for people.
const OUTPUT_KEPT: usize = 512;

/// What one worker has under way. Dropping it ends it; a container that was sent its stop signal is not taken back.
pub struct Hooks {
    cri: Cri,
    changed: Arc<Notify>,
    shared: Arc<Mutex<Shared>>,
    tasks: BTreeMap<(String, Kind), AbortOnDropHandle<()>>,
    notes: PathBuf,
}

#[derive(Default)]
struct Shared {
    efforts: BTreeMap<String, Effort>,
    /// Stops that have ended.
    ended: Vec<(Action, Result<(), Failed>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    PostStart,
    PreStop,
    Stop,
}

/// A container, and how its hooks reach it.
#[derive(Clone, Debug)]
pub struct Place {
    /// The container's spec.
    pub spec: ContainerSpec,
    /// The pod's address.
    pub ip: String,
}

impl Hooks {
    /// Nothing under way. `folder` is the pod's; every end notifies `changed`.
    pub fn new(cri: Cri, changed: Arc<Notify>, folder: PathBuf) -> Self {
        Self { cri, changed, shared: Arc::default(), tasks: BTreeMap::new(), notes: folder.join(NOTES) }
    }

    /// Looks at what has become of the containers: what was under way for one that has ended is over.
    pub fn sync(&mut self, runtime: &Runtime) {
        let running = |id: &String| runtime.containers.iter().any(|run| run.id == *id && run.may_run());
        self.tasks.retain(|(id, kind), task| !task.is_finished() && (*kind == Kind::Stop || running(id)));
        let mut shared = self.shared.lock();
        shared.efforts.retain(|id, _| runtime.containers.iter().any(|run| run.id == *id));
        for run in runtime.containers.iter().filter(|run| matches!(run.state, ContainerState::Running { .. })) {
            if !shared.efforts.contains_key(&run.id) && self.notes.join(&run.id).exists() {
                let post_start = Hook::Ended { since: Timestamp::now(), failure: None };
                shared.efforts.insert(run.id.clone(), Effort { post_start, ..Effort::default() });
            }
        }
    }

    /// What is under way, by container.
    pub fn efforts(&self) -> BTreeMap<String, Effort> {
        self.shared.lock().efforts.clone()
    }

    /// Stops that have ended since this was last asked.
    pub fn ended(&self) -> Vec<(Action, Result<(), Failed>)> {
        std::mem::take(&mut self.shared.lock().ended)
    }

    /// Begins an action if it is a hook or a stop; gives it back if it is none.
    pub fn begin(&mut self, action: Action, place: impl FnOnce(&str) -> Option<Place>) -> Option<Action> {
        match &action {
            Action::RunPostStart { id, name } => self.post_start(id, place(name)),
            Action::RunPreStop { id, name, limit, why } => {
                tracing::info!(container = name, why, "running the preStop hook");
                self.pre_stop(id, place(name), *limit);
            }
            Action::StopContainer { id, name, grace, why } => {
                tracing::info!(container = name, why, grace_seconds = grace.as_secs(), "stopping container");
                self.stop(id.clone(), *grace, action.clone());
            }
            _ => return Some(action),
        }
        None
    }

    fn post_start(&mut self, id: &str, place: Option<Place>) {
        let handler = place.as_ref().and_then(|place| place.spec.lifecycle.clone()).and_then(|hooks| hooks.post_start);
        let (notes, container) = (self.notes.clone(), id.to_owned());
        let hook = run(self.cri.clone(), id.to_owned(), handler, place, POST_START_LONGEST);
        let noted = async move {
            hook.await?;
            let note = || fs::create_dir_all(&notes).and_then(|()| fs::write(notes.join(&container), []));
            // Without the note the next agent runs the hook again: no reason to end the container now.
            note().unwrap_or_else(|error| tracing::warn!(%error, "cannot note that the postStart hook has succeeded"));
            Ok(())
        };
        self.hook(Kind::PostStart, id, |effort| &mut effort.post_start, noted);
    }

    fn pre_stop(&mut self, id: &str, place: Option<Place>, limit: Duration) {
        let handler = place.as_ref().and_then(|place| place.spec.lifecycle.clone()).and_then(|hooks| hooks.pre_stop);
        let hook = run(self.cri.clone(), id.to_owned(), handler, place, limit);
        self.hook(Kind::PreStop, id, |effort| &mut effort.pre_stop, hook);
    }

    fn hook(
        &mut self,
        kind: Kind,
        id: &str,
        which: fn(&mut Effort) -> &mut Hook,
        hook: impl Future<Output = Result<(), String>> + Send + 'static,
    ) {
        let since = Timestamp::now();
        *which(self.shared.lock().efforts.entry(id.to_owned()).or_default()) = Hook::Running { since };
        let (shared, changed, container) = (self.shared.clone(), self.changed.clone(), id.to_owned());
        let task = async move {
            let failure = hook.await.err();
            if let Some(problem) = &failure {
                tracing::warn!(container, hook = ?kind, problem, "hook failed");
            }
            if let Some(effort) = shared.lock().efforts.get_mut(&container) {
                *which(effort) = Hook::Ended { since, failure };
            }
            changed.notify_one();
        };
        self.tasks.insert((id.to_owned(), kind), AbortOnDropHandle::new(tokio::spawn(task)));
    }

    fn stop(&mut self, id: String, grace: Duration, action: Action) {
        let kill_at = Timestamp::now().checked_add(grace).unwrap_or(Timestamp::MAX);
        self.shared.lock().efforts.entry(id.clone()).or_default().kill_at = Some(kill_at);
        let (cri, shared, changed, container) =
            (self.cri.clone(), self.shared.clone(), self.changed.clone(), id.clone());
        let task = async move {
            let result = cri.stop_container(&container, grace).await;
            let result = result.map_err(Failed::status("FailedKillContainer"));
            let mut shared = shared.lock();
            if let Some(effort) = shared.efforts.get_mut(&container) {
                effort.kill_at = None;
            }
            shared.ended.push((action, result));
            drop(shared);
            changed.notify_one();
        };
        // An earlier one gives way: the runtime sends the stop signal only once.
        self.tasks.insert((id, Kind::Stop), AbortOnDropHandle::new(tokio::spawn(task)));
    }

    /// Removes the note of a run that is gone.
    pub fn forget(&self, id: &str) {
        match fs::remove_file(self.notes.join(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "cannot remove the note of a run that is gone");
            }
            _ => {}
        }
    }
}

/// Runs one hook to its end.
async fn run(
    cri: Cri,
    id: String,
    handler: Option<LifecycleHandler>,
    place: Option<Place>,
    limit: Duration,
) -> Result<(), String> {
    let (Some(handler), Some(place)) = (handler, place) else { return Ok(()) };
    let late = || format!("it did not end within {limit:?}");
    if let Some(exec) = &handler.exec {
        let answer = tokio::time::timeout(limit, cri.exec(&id, &exec.command, limit)).await;
        let output = answer.map_err(|_| late())?.map_err(|status| status.message().to_owned())?;
        return match output.exit_code {
            0 => Ok(()),
            code => Err(format!("exit code {code}: {}", beginning(&output.stdout, &output.stderr))),
        };
    }
    let other = async {
        if let Some(get) = &handler.http_get {
            let target = Target { spec: &place.spec, ip: &place.ip };
            // Whatever the server answers: it was told.
            http::get(target, get).await.map(drop)
        } else if let Some(sleep) = &handler.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
            Ok(())
        } else {
            Err("it has no exec, httpGet or sleep".to_owned())
        }
    };
    tokio::time::timeout(limit, other).await.map_err(|_| late())?
}

/// What a failed command said, as much as people read.
pub fn beginning(stdout: &[u8], stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(if stderr.is_empty() { stdout } else { stderr }).trim().to_owned();
    text.chars().take(OUTPUT_KEPT).collect()
}
