//! The life of sets in a lab with real containers: canaries, broken updates, retention, renumbering, undo, deletion.
//!
//! Each story applies manifests as a user would and listens: what pods did, in which order, is what a watching user
//! heard. One lab serves all stories, one after the other.

use std::{collections::BTreeMap, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use pb::{
    Kind, Object, ObjectExt,
    api::v1::EventType,
    objects::{ContainerStatus, ControllerRevision, PersistentVolumeClaim, Pod, StatefulSet},
};
use serde_json::{Value, json};
use tests::{
    LabGuard,
    client::{Client, Heard, is_ready, set_manifest},
    process::berth_bin,
};

/// For a set of three to become what it should be.
const PATIENCE: Duration = Duration::from_secs(60);

const IMAGE: &str = "registry.k8s.io/nginx-slim:0.24";
const OTHER_IMAGE: &str = "registry.k8s.io/nginx-slim:0.21";
/// No node has it, and no registry can be reached that it could be pulled from.
const BROKEN_IMAGE: &str = "registry.k8s.io/no-such-image:1";

#[tokio::test(flavor = "multi_thread")]
async fn stories_of_sets() -> Result<()> {
    let lab = LabGuard::up()?;
    let user = User { client: Client::new(&lab.lab.server())?, server: lab.lab.server() };
    a_canary_goes_first_and_the_rest_from_the_top(&user).await.context("canary")?;
    a_broken_update_heals_when_it_is_taken_back(&user).await.context("broken update")?;
    a_broken_update_is_reverted_by_itself(&user).await.context("revert")?;
    scaled_away_claims_go_by_policy(&user).await.context("retention")?;
    a_set_moves_to_other_ordinals(&user).await.context("start ordinal")?;
    undo_reuses_the_first_revision(&user).await.context("undo")?;
    one_ordinal_is_taken_out(&user).await.context("remove an ordinal")?;
    a_deleted_set_goes_from_the_top(&user).await.context("ordered deletion")?;
    drop(lab);
    tests::nothing_is_left()
}

async fn a_canary_goes_first_and_the_rest_from_the_top(user: &User) -> Result<()> {
    let mut set = Set::new("canary", 3);
    user.bring_up(&set).await?;
    let before = user.uids("canary").await?;

    set.spec("updateStrategy", json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}));
    set.image(OTHER_IMAGE);
    let told = user.tell(&set, |now| now.is_ready("canary-2") && now.image("canary-2") == OTHER_IMAGE).await?;
    ensure!(told == ["canary-2 is asked to go", "canary-2 is gone", "canary-2 comes", "canary-2 is ready"], "{told:?}");
    let after = user.uids("canary").await?;
    for name in ["canary-0", "canary-1"] {
        ensure!(before[name] == after[name], "{name} was replaced below the partition");
    }
    // What dies below the partition comes back as it was.
    let told = user.tell_deletion("canary-0", |now| now.is_ready("canary-0")).await?;
    ensure!(told.last().is_some_and(|last| last == "canary-0 is ready"), "{told:?}");
    let pod = user.client.get::<Pod>("canary-0").await?.context("canary-0")?;
    ensure!(image(&pod) == IMAGE, "canary-0 came back with {}", image(&pod));

    set.spec("updateStrategy", json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}));
    let told = user.tell(&set, |now| now.is_ready("canary-0") && now.image("canary-0") == OTHER_IMAGE).await?;
    ensure!(
        told == [
            "canary-1 is asked to go",
            "canary-1 is gone",
            "canary-1 comes",
            "canary-1 is ready",
            "canary-0 is asked to go",
            "canary-0 is gone",
            "canary-0 comes",
            "canary-0 is ready",
        ],
        "{told:?}"
    );
    user.complete("canary", 3).await?;
    println!("canary: the highest ordinal first, then the rest from the top, one at a time");
    user.remove(&set).await
}

/// Kubernetes' #67250: an update that never becomes ready, taken back, in OrderedReady. Nobody deletes a pod.
async fn a_broken_update_heals_when_it_is_taken_back(user: &User) -> Result<()> {
    let mut set = Set::new("stuck", 3);
    user.bring_up(&set).await?;
    let before = user.uids("stuck").await?;
    set.image(BROKEN_IMAGE);
    user.tell(&set, |now| now.image("stuck-2") == BROKEN_IMAGE && !now.is_ready("stuck-2")).await?;
    let blocked = |set: &StatefulSet| {
        let blocked = set.status.as_ref().and_then(|status| status.blocked_on.as_ref());
        blocked.is_some_and(|blocked| blocked.ordinal == Some(2))
    };
    user.client.until("stuck", PATIENCE, blocked).await?;
    let told_why = |pod: &Pod| {
        let containers = pod.status.iter().flat_map(|status| &status.container_statuses);
        let waiting = |one: &ContainerStatus| one.state.as_ref().and_then(|state| state.waiting.clone());
        containers.into_iter().filter_map(waiting).any(|waiting| waiting.message.contains(BROKEN_IMAGE))
    };
    user.client.until("stuck-2", PATIENCE, told_why).await?;
    let why = user.berth(&["why", "stuck-2"])?;
    ensure!(why.contains(BROKEN_IMAGE), "berth why does not name the image:\n{why}");

    set.image(IMAGE);
    let told = user.tell(&set, |now| now.is_ready("stuck-2")).await?;
    ensure!(told == ["stuck-2 is asked to go", "stuck-2 is gone", "stuck-2 comes", "stuck-2 is ready"], "{told:?}");
    user.complete("stuck", 3).await?;
    let after = user.uids("stuck").await?;
    for name in ["stuck-0", "stuck-1"] {
        ensure!(before[name] == after[name], "{name} was replaced for nothing");
    }
    println!("broken update: taken back, and the set healed by itself");
    user.remove(&set).await
}

async fn a_broken_update_is_reverted_by_itself(user: &User) -> Result<()> {
    let mut set = Set::new("revert", 3);
    set.spec("progressDeadlineSeconds", json!(6));
    set.spec("autoRevert", json!(true));
    user.bring_up(&set).await?;
    let first = user.complete("revert", 3).await?;
    let first = first.status.unwrap_or_default().current_revision;

    set.image(BROKEN_IMAGE);
    let told = user.tell(&set, |now| now.is_ready("revert-2") && now.image("revert-2") == IMAGE).await?;
    let of = |name: &str| told.iter().filter(|one| one.starts_with(name)).count();
    ensure!(of("revert-2") == told.len() && of("revert-0") == 0, "others were touched: {told:?}");
    let set_now = user.complete("revert", 3).await?;
    let status = set_now.status.clone().unwrap_or_default();
    ensure!(status.current_revision == first, "it came to {} instead of {first}", status.current_revision);
    ensure!(!status.failed_revision.is_empty() && status.failed_revision != first, "no failed revision is told");
    ensure!(template_image(&set_now) == IMAGE, "the template still asks for {}", template_image(&set_now));
    println!("broken update: reverted to the last complete revision after its deadline");
    user.remove(&set).await
}

async fn scaled_away_claims_go_by_policy(user: &User) -> Result<()> {
    let mut set = Set::new("shrink", 3);
    set.spec("persistentVolumeClaimRetentionPolicy", json!({"whenScaled": "Delete", "whenDeleted": "Retain"}));
    user.bring_up(&set).await?;
    set.spec("replicas", json!(1));
    let told = user.tell(&set, |now| now.names() == ["shrink-0"]).await?;
    ensure!(
        told == ["shrink-2 is asked to go", "shrink-2 is gone", "shrink-1 is asked to go", "shrink-1 is gone"],
        "{told:?}"
    );
    user.claims_are("shrink", &["www-shrink-0"]).await?;
    println!("retention: the claims of ordinals that were scaled away went, the others stayed");
    user.remove(&set).await
}

async fn a_set_moves_to_other_ordinals(user: &User) -> Result<()> {
    let mut set = Set::new("move", 2);
    user.bring_up(&set).await?;
    set.spec("ordinals", json!({"start": 2}));
    let told = user.tell(&set, |now| now.names() == ["move-2", "move-3"] && now.is_ready("move-3")).await?;
    ensure!(
        told == [
            "move-2 comes",
            "move-2 is ready",
            "move-3 comes",
            "move-3 is ready",
            "move-1 is asked to go",
            "move-1 is gone",
            "move-0 is asked to go",
            "move-0 is gone",
        ],
        "{told:?}"
    );
    user.claims_are("move", &["www-move-0", "www-move-1", "www-move-2", "www-move-3"]).await?;
    println!("start ordinal: new ordinals first, in order; the old ones went from the top, and their claims stay");
    user.remove(&set).await
}

async fn undo_reuses_the_first_revision(user: &User) -> Result<()> {
    let mut set = Set::new("undo", 2);
    user.bring_up(&set).await?;
    let first = user.complete("undo", 2).await?.status.unwrap_or_default().current_revision;
    set.image(OTHER_IMAGE);
    user.tell(&set, |now| now.is_ready("undo-0") && now.image("undo-0") == OTHER_IMAGE).await?;
    let second = user.complete("undo", 2).await?.status.unwrap_or_default().current_revision;
    ensure!(first != second, "no new revision");

    let history = user.berth(&["rollout", "history", "statefulset/undo"])?;
    ensure!(history.contains(&first) && history.contains(&second), "the history is not whole:\n{history}");
    let scene = user.look("undo").await?;
    user.berth(&["rollout", "undo", "statefulset/undo", "--to-revision", "1"])?;
    let told = user.listen(scene, |now| now.is_ready("undo-0") && now.image("undo-0") == IMAGE).await?;
    ensure!(told.first().is_some_and(|first| first == "undo-1 is asked to go"), "not from the top: {told:?}");
    let third = user.complete("undo", 2).await?.status.unwrap_or_default().current_revision;
    ensure!(third == first, "undo made {third} instead of going back to {first}");
    let (revisions, _) = user.client.list::<ControllerRevision>("app=undo").await?;
    ensure!(revisions.len() == 2, "{} revisions where two templates were", revisions.len());
    println!("undo: back to the first revision, from the top; the revision was used again");
    user.remove(&set).await
}

async fn one_ordinal_is_taken_out(user: &User) -> Result<()> {
    let set = Set::new("pick", 3);
    user.bring_up(&set).await?;
    let before = user.uids("pick").await?;
    let scene = user.look("pick").await?;
    user.berth(&["scale", "statefulset/pick", "--remove-ordinal", "1"])?;
    let told = user.listen(scene, |now| now.names() == ["pick-0", "pick-2"]).await?;
    ensure!(told == ["pick-1 is asked to go", "pick-1 is gone"], "{told:?}");
    user.complete("pick", 2).await?;
    let after = user.uids("pick").await?;
    ensure!(before["pick-0"] == after["pick-0"] && before["pick-2"] == after["pick-2"], "others were replaced");
    println!("remove an ordinal: the one in the middle went, the others stayed as they were");
    user.remove(&set).await
}

async fn a_deleted_set_goes_from_the_top(user: &User) -> Result<()> {
    let mut set = Set::new("last", 3);
    set.spec("deletionOrder", json!("Ordered"));
    user.bring_up(&set).await?;
    let scene = user.look("last").await?;
    user.client.delete(Kind::StatefulSet, "last").await?;
    let told = user.listen(scene, |now| now.names().is_empty()).await?;
    ensure!(
        told == [
            "last-2 is asked to go",
            "last-2 is gone",
            "last-1 is asked to go",
            "last-1 is gone",
            "last-0 is asked to go",
            "last-0 is gone",
        ],
        "{told:?}"
    );
    user.gone::<StatefulSet>("last").await?;
    user.claims_are("last", &["www-last-0", "www-last-1", "www-last-2"]).await?;
    println!("ordered deletion: from the top, each gone before the next");
    user.remove_claims("last").await
}

/// A manifest that changes.
struct Set {
    name: &'static str,
    replicas: i32,
    manifest: Value,
}

impl Set {
    fn new(name: &'static str, replicas: i32) -> Self {
        let mut manifest = set_manifest(name, replicas);
        manifest["apiVersion"] = json!("berth/v1");
        Self { name, replicas, manifest }
    }

    fn spec(&mut self, field: &str, value: Value) {
        self.manifest["spec"][field] = value;
    }

    fn image(&mut self, image: &str) {
        self.manifest["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
    }
}

/// Someone who works with a cluster.
struct User {
    client: Client,
    server: String,
}

impl User {
    /// Runs the client program and gives what it printed.
    fn berth(&self, args: &[&str]) -> Result<String> {
        let ran = Command::new(berth_bin()?).args(args).env("BERTH_SERVER", &self.server).output()?;
        let printed = String::from_utf8_lossy(&ran.stdout).into_owned();
        ensure!(ran.status.success(), "berth {args:?}: {}\n{printed}", String::from_utf8_lossy(&ran.stderr));
        Ok(printed)
    }

    /// Applies a set and waits until it is complete.
    async fn bring_up(&self, set: &Set) -> Result<()> {
        self.client.apply(std::slice::from_ref(&set.manifest)).await?;
        self.complete(set.name, set.replicas).await?;
        Ok(())
    }

    /// Waits until a set is what its spec says, and says so itself.
    async fn complete(&self, name: &str, replicas: i32) -> Result<StatefulSet> {
        let complete = |set: &StatefulSet| {
            let status = set.status.clone().unwrap_or_default();
            status.observed_generation == set.meta().generation
                && [status.replicas, status.updated_replicas, status.available_replicas] == [replicas; 3]
                && status.current_revision == status.update_revision
                && status.blocked_on.is_none()
        };
        self.client.until(name, PATIENCE, complete).await
    }

    /// Applies a set and tells what its pods do until `done`.
    async fn tell(&self, set: &Set, done: impl Fn(&Scene) -> bool) -> Result<Vec<String>> {
        let scene = self.look(set.name).await?;
        self.client.apply(std::slice::from_ref(&set.manifest)).await?;
        self.listen(scene, done).await
    }

    /// Deletes a pod and tells what the set's pods do until `done`.
    async fn tell_deletion(&self, pod: &str, done: impl Fn(&Scene) -> bool) -> Result<Vec<String>> {
        let (set, _) = pod.rsplit_once('-').context("no pod of a set")?;
        let scene = self.look(set).await?;
        self.client.delete(Kind::Pod, pod).await?;
        self.listen(scene, done).await
    }

    /// The pods of a set as they are now.
    async fn look(&self, set: &str) -> Result<Scene> {
        let selector = format!("app={set}");
        let (pods, since) = self.client.list::<Pod>(&selector).await?;
        let pods = pods.into_iter().map(|pod| (pod.name().to_owned(), pod)).collect();
        Ok(Scene { selector, since, pods })
    }

    /// What the pods of a set do from then on, until `done` says that the story is over.
    async fn listen(&self, mut scene: Scene, done: impl Fn(&Scene) -> bool) -> Result<Vec<String>> {
        let (selector, since) = (scene.selector.clone(), scene.since.clone());
        let mut told = Vec::new();
        let over = |one: &Heard| {
            told.extend(scene.hear(one));
            done(&scene)
        };
        match self.client.follow_pods(&selector, &since, PATIENCE, over).await {
            Ok(_) => Ok(told),
            Err(error) => bail!("{error}; so far: {told:?}"),
        }
    }

    async fn uids(&self, set: &str) -> Result<BTreeMap<String, String>> {
        let (pods, _) = self.client.list::<Pod>(&format!("app={set}")).await?;
        Ok(pods.iter().map(|pod| (pod.name().to_owned(), pod.uid().to_owned())).collect())
    }

    /// Waits until a set has exactly these claims.
    async fn claims_are(&self, set: &str, names: &[&str]) -> Result<()> {
        let (claims, _) = self.client.list::<PersistentVolumeClaim>(&format!("app={set}")).await?;
        for claim in claims.iter().filter(|claim| !names.contains(&claim.name())) {
            self.gone::<PersistentVolumeClaim>(claim.name()).await?;
        }
        let (claims, _) = self.client.list::<PersistentVolumeClaim>(&format!("app={set}")).await?;
        let found: Vec<_> = claims.iter().map(ObjectExt::name).collect();
        ensure!(found == names, "the claims are {found:?} and should be {names:?}");
        Ok(())
    }

    /// Waits until there is no object of this name.
    async fn gone<T: Object>(&self, name: &str) -> Result<()> {
        let gone = async {
            while self.client.get::<T>(name).await?.is_some() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, gone).await.with_context(|| format!("{} {name} is still there", T::KIND))?
    }

    /// Deletes a set with its claims and waits until all of it is gone.
    async fn remove(&self, set: &Set) -> Result<()> {
        let scene = self.look(set.name).await?;
        self.client.delete(Kind::StatefulSet, set.name).await?;
        if !scene.pods.is_empty() {
            self.listen(scene, |now| now.names().is_empty()).await?;
        }
        self.remove_claims(set.name).await
    }

    async fn remove_claims(&self, set: &str) -> Result<()> {
        let (claims, _) = self.client.list::<PersistentVolumeClaim>(&format!("app={set}")).await?;
        for claim in claims {
            self.client.delete(Kind::PersistentVolumeClaim, claim.name()).await?;
        }
        Ok(())
    }
}

/// The pods of a set as a watching user knows them.
struct Scene {
    selector: String,
    since: String,
    pods: BTreeMap<String, Pod>,
}

impl Scene {
    /// Takes one event in, and says in words what is new in it.
    fn hear(&mut self, one: &Heard) -> Option<String> {
        let name = one.pod.name();
        if one.event == EventType::Deleted {
            self.pods.remove(name);
            return Some(format!("{name} is gone"));
        }
        let before = self.pods.insert(name.to_owned(), one.pod.clone());
        match before {
            None => Some(format!("{name} comes")),
            Some(before) if !before.is_terminating() && one.pod.is_terminating() => {
                Some(format!("{name} is asked to go"))
            }
            Some(before) if !is_ready(&before) && is_ready(&one.pod) => Some(format!("{name} is ready")),
            Some(_) => None,
        }
    }

    fn names(&self) -> Vec<&str> {
        self.pods.keys().map(String::as_str).collect()
    }

    /// Ready, and not on its way out.
    fn is_ready(&self, name: &str) -> bool {
        self.pods.get(name).is_some_and(|pod| is_ready(pod) && !pod.is_terminating())
    }

    fn image(&self, name: &str) -> &str {
        self.pods.get(name).map_or("", image)
    }
}

fn image(pod: &Pod) -> &str {
    let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
    container.map_or("", |container| container.image.as_str())
}

fn template_image(set: &StatefulSet) -> &str {
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let container = template.and_then(|template| template.spec.as_ref()).and_then(|spec| spec.containers.first());
    container.map_or("", |container| container.image.as_str())
}
