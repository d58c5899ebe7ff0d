//! Where an application plays: the lab with its images, its manifests, and the pod of its client.

use std::{
    collections::BTreeSet,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use pb::{
    Kind, Object, ObjectExt,
    api::v1::ExecRequest,
    objects::{PersistentVolumeClaim, Pod, StatefulSet},
};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::{Application, ledger::numbers};
use crate::{
    client::{Client, NAMESPACE, is_ready},
    process::berth_bin,
};

/// The client's pod.
const CLIENT: &str = "client";
/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(250);
/// What is read may take so long.
const READ: Duration = Duration::from_secs(40);

/// A user of the cluster who runs an application.
#[derive(Clone)]
pub struct Stage {
    /// The API service.
    pub client: Client,
    server: String,
}

/// What a command in a pod did.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// Standard output.
    pub printed: String,
    /// Standard error.
    pub complained: String,
}

impl Stage {
    /// A user of the API service at `http://HOST:PORT`.
    pub fn new(server: &str) -> Result<Self> {
        Ok(Self { client: Client::new(server)?, server: server.to_owned() })
    }

    /// Runs the client program and gives what it printed.
    pub async fn berth(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(berth_bin()?);
        command.args(args).env("BERTH_SERVER", &self.server);
        let ran = tokio::task::spawn_blocking(move || command.output()).await??;
        let printed = String::from_utf8_lossy(&ran.stdout).into_owned();
        ensure!(ran.status.success(), "berth {args:?}: {printed}{}", String::from_utf8_lossy(&ran.stderr));
        Ok(printed)
    }

    /// Applies an example and waits until its set is whole.
    pub async fn bring_up(&self, application: Application, deadline: Instant) -> Result<()> {
        self.berth(&["apply", "-f", &manifest(application)]).await?;
        self.whole(application, deadline).await
    }

    /// Waits until the set is what its spec says, and says so itself.
    pub async fn whole(&self, application: Application, deadline: Instant) -> Result<()> {
        let replicas = i32::try_from(application.members)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let whole = |set: &StatefulSet| {
            let status = set.status.clone().unwrap_or_default();
            status.observed_generation == set.meta().generation
                && [status.replicas, status.updated_replicas, status.ready_replicas] == [replicas; 3]
                && status.current_revision == status.update_revision
        };
        self.client.until(application.set, left, whole).await.context("the set is not whole")?;
        Ok(())
    }

    /// Starts the pod of the client and has it prepare what it writes to.
    pub async fn start_client(&self, application: Application, deadline: Instant) -> Result<()> {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": CLIENT},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "client",
                    "image": application.client_image,
                    "command": ["sh", "-c", "exec tail -f /dev/null"],
                }],
            },
        });
        self.client.apply(&[pod]).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        self.client.until::<Pod>(CLIENT, left, is_ready).await?;
        loop {
            let ran = self.run_client(application.commands.prepare, &[], READ).await?;
            if ran.code == 0 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the client cannot begin: {ran:?}");
            sleep(LOOK).await;
        }
    }

    /// Runs a script in the pod of the client.
    pub async fn run_client(&self, script: &str, args: &[&str], limit: Duration) -> Result<Ran> {
        let mut command = vec!["sh", "-c", script, "sh"];
        command.extend_from_slice(args);
        let request = ExecRequest {
            namespace: NAMESPACE.to_owned(),
            pod: CLIENT.to_owned(),
            container: String::new(),
            command: command.into_iter().map(str::to_owned).collect(),
            timeout_seconds: i32::try_from(limit.as_secs())?,
        };
        let response = self.client.exec(request, limit).await?;
        Ok(Ran {
            code: response.exit_code,
            printed: String::from_utf8_lossy(&response.stdout).into_owned(),
            complained: String::from_utf8_lossy(&response.stderr).into_owned(),
        })
    }

    /// Reads numbers with a script until `enough` of them are there; says what was there instead after the deadline.
    pub async fn read_until(
        &self,
        script: &str,
        args: &[&str],
        deadline: Instant,
        enough: impl Fn(&BTreeSet<u64>) -> Vec<String>,
    ) -> Result<BTreeSet<u64>> {
        loop {
            let ran = self.run_client(script, args, READ).await;
            let wrong = match &ran {
                Ok(ran) if ran.code == 0 => {
                    let found = numbers(&ran.printed);
                    let wrong = enough(&found);
                    if wrong.is_empty() {
                        return Ok(found);
                    }
                    wrong
                }
                Ok(ran) => vec![format!("{ran:?}")],
                Err(error) => vec![format!("{error:#}")],
            };
            if Instant::now() >= deadline {
                let shown: Vec<_> = wrong.iter().take(10).map(String::as_str).collect();
                bail!("{} things are wrong: {}", wrong.len(), shown.join("; "));
            }
            sleep(LOOK).await;
        }
    }

    /// A pod of the set.
    pub async fn member(&self, name: &str) -> Result<Pod> {
        self.client.get::<Pod>(name).await?.with_context(|| format!("there is no pod {name}"))
    }

    /// Deletes an example, with its claims, as its user would.
    pub async fn take_down(&self, application: Application) -> Result<()> {
        self.berth(&["delete", "-f", &manifest(application)]).await?;
        let (claims, _) = self.client.list::<PersistentVolumeClaim>(application.selector).await?;
        ensure!(claims.len() >= application.members, "{} claims of {} members", claims.len(), application.members);
        for claim in claims {
            self.client.delete(Kind::PersistentVolumeClaim, claim.name()).await?;
        }
        Ok(())
    }

    /// Deletes the pod of the client.
    pub async fn stop_client(&self) -> Result<()> {
        self.berth(&["delete", "pod", CLIENT]).await?;
        Ok(())
    }

    /// What a user would look at if something were wrong.
    pub async fn explain(&self, application: Application) -> String {
        let mut told = String::new();
        let members = (0..application.members).map(|ordinal| format!("{}-{ordinal}", application.set));
        let mut looks = vec![vec!["get".to_owned(), "pods".into(), "-o".into(), "wide".into()]];
        for pod in members.chain([CLIENT.to_owned()]) {
            looks.push(vec!["why".to_owned(), pod.clone()]);
            looks.push(vec!["logs".to_owned(), pod, "--tail=30".to_owned()]);
        }
        for look in &looks {
            let args: Vec<&str> = look.iter().map(String::as_str).collect();
            let said = self.berth(&args).await.unwrap_or_else(|error| format!("{error:#}"));
            told.push_str(&format!("--- berth {}\n{said}\n", look.join(" ")));
        }
        told
    }
}

/// The images of an application and those that every lab needs, in a folder of their own: a node takes in no other.
pub fn images(application: Application, all: &[Application]) -> Result<TempDir> {
    let built = PathBuf::from(std::env::var_os("BERTH_IMAGES").context("BERTH_IMAGES names no folder of images")?);
    let folder = tempfile::tempdir()?;
    let needed = all.iter().filter(|one| application.needs.contains(&one.name)).flat_map(|one| one.images);
    let names: BTreeSet<&str> = ["pause", "nginx"].iter().chain(application.images).chain(needed).copied().collect();
    for name in names {
        let archive = format!("{name}.tar");
        let beside = [built.join(&archive), built.join("applications").join(&archive)];
        let found = beside.iter().find(|path| path.is_file());
        let found = found.with_context(|| {
            format!("no {archive} in {}: build it with `make images-applications`", built.display())
        })?;
        symlink(std::fs::canonicalize(found)?, folder.path().join(&archive))?;
    }
    Ok(folder)
}

/// The path of an example's manifest.
fn manifest(application: Application) -> String {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    examples.join(application.name).join("manifest.yaml").display().to_string()
}
