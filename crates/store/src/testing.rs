//! A real etcd for tests: its own process, ports and folder, gone when dropped.

use std::{
    fs::File,
    io,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{EtcdConfig, EtcdStore, Key, Store};

/// How long a member may take to answer.
const START: Duration = Duration::from_secs(30);

/// One member of an etcd, or a whole one.
///
/// The process also ends with the thread that started it (a killed test leaves nothing behind), so start it from the
/// test's own thread.
#[derive(Debug)]
pub struct EtcdProcess {
    /// Where clients find it: `http://127.0.0.1:PORT`.
    pub url: String,
    name: String,
    peer_url: String,
    cluster: String,
    child: Option<Child>,
    folder: TempDir,
}

impl EtcdProcess {
    /// Starts an etcd of one member and waits until it answers.
    ///
    /// # Errors
    /// If there is no `etcd` to run (Debian: `apt-get install etcd-server`) or it does not answer in time; the end
    /// of its log is part of the error.
    pub async fn start() -> io::Result<Self> {
        let mut cluster = Self::start_cluster(1).await?;
        cluster.pop().ok_or_else(|| io::Error::other("an etcd of one member has one member"))
    }

    /// Starts an etcd of several members and waits until each answers.
    ///
    /// # Errors
    /// As [`EtcdProcess::start`].
    pub async fn start_cluster(size: usize) -> io::Result<Vec<Self>> {
        let mut members = Vec::new();
        for index in 0..size {
            members.push(Self {
                url: format!("http://127.0.0.1:{}", free_port()?),
                peer_url: format!("http://127.0.0.1:{}", free_port()?),
                name: format!("m{index}"),
                cluster: String::new(),
                child: None,
                folder: tempfile::Builder::new().prefix("etcd-test-").tempdir()?,
            });
        }
        let cluster: Vec<String> =
            members.iter().map(|member| format!("{}={}", member.name, member.peer_url)).collect();
        for member in &mut members {
            member.cluster = cluster.join(",");
            member.spawn()?;
        }
        for member in &mut members {
            member.wait_ready().await?;
        }
        Ok(members)
    }

    /// Starts it again with its old data and ports, and waits until it answers.
    ///
    /// # Errors
    /// As [`EtcdProcess::start`].
    pub async fn restart(&mut self) -> io::Result<()> {
        self.kill9();
        self.spawn()?;
        self.wait_ready().await
    }

    /// Ends it without warning. Nothing happens if it does not run.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only for a process that is gone, which is what is wanted.
            if let Err(error) = child.kill().and_then(|()| child.wait().map(drop)) {
                tracing::warn!(%error, "cannot end an etcd of a test");
            }
        }
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The address clients use, as `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// A store in it.
    ///
    /// # Errors
    /// As [`EtcdStore::connect`].
    pub async fn store(&self) -> crate::Result<EtcdStore> {
        EtcdStore::connect([self.url.as_str()]).await
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn spawn(&mut self) -> io::Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = etcd_command();
        command
            .args(["--name", &self.name])
            .arg("--data-dir")
            .arg(self.folder.path().join("data"))
            .args(["--listen-client-urls", &self.url, "--advertise-client-urls", &self.url])
            .args(["--listen-peer-urls", &self.peer_url, "--initial-advertise-peer-urls", &self.peer_url])
            .args(["--initial-cluster", &self.cluster, "--initial-cluster-token", &self.cluster])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.child = Some(command.spawn().map_err(|error| {
            io::Error::other(format!("cannot run etcd ({error}); on Debian: apt-get install etcd-server"))
        })?);
        Ok(())
    }

    async fn wait_ready(&mut self) -> io::Result<()> {
        let until = Instant::now() + START;
        let mut config = EtcdConfig::new([self.url.clone()]);
        config.attempt = Duration::from_millis(500);
        config.deadline = Duration::from_secs(1);
        let store = EtcdStore::lazy(config).await.map_err(io::Error::other)?;
        loop {
            let error = match store.get(&Key::from_raw("/ready")).await {
                Ok(_) => return Ok(()),
                Err(error) => error.to_string(),
            };
            let ended = match &mut self.child {
                Some(child) => child.try_wait()?,
                None => None,
            };
            if ended.is_some() || Instant::now() > until {
                return Err(io::Error::other(format!("etcd did not start: {error}\n{}", tail(&self.log()))));
            }
        }
    }
}

impl Drop for EtcdProcess {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// etcd, tied to the life of this thread where the tool for that is there.
fn etcd_command() -> Command {
    let setpriv = Path::new("/usr/bin/setpriv");
    if setpriv.exists() {
        let mut command = Command::new(setpriv);
        command.args(["--pdeathsig", "KILL", "etcd"]);
        command
    } else {
        Command::new("etcd")
    }
}

/// A port that is free now. Another process may take it before it is used; then etcd says so.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_else(|error| format!("no log: {error}"));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
