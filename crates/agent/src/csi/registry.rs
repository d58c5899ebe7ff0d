//! Which CSI drivers the node has: registration by a folder of sockets, as node agents of Kubernetes have it.
//!
//! A plugin opens a socket in `<csi-dir>/registry`; the agent sees it (inotify), asks it what it is and where it serves,
//! asks the driver there what it can do, and tells the plugin what became of it. A socket that is gone takes its driver
//! off the node, after a moment in which a restarted driver may come back. A plugin that does not answer is asked again
//! with growing waits for as long as its socket is there. Of two sockets that claim one name the first has it while it
//! answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use inotify::{EventMask, Inotify, WatchMask};
use pb::pluginregistration::{InfoRequest, RegistrationStatus, registration_client::RegistrationClient};
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tonic::Status;

use super::driver::{Driver, within};
use crate::stream::waits;

/// The first wait after a plugin did not answer, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// How long a driver whose socket is gone stays registered: about what a restart takes.
const GRACE: Duration = Duration::from_secs(3);

/// The drivers by name.
pub type Table = BTreeMap<String, Arc<Driver>>;

/// What is known of the node's drivers.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Every socket that was there when the agent started has been asked once.
    pub settled: bool,
    /// The registered drivers.
    pub drivers: Table,
}

/// The drivers of the node.
#[derive(Debug)]
pub struct Registry {
    folder: PathBuf,
    known: watch::Sender<Known>,
}

impl Registry {
    /// Over the sockets in `<csi_dir>/registry`, once [`Registry::run`] runs.
    pub fn new(csi_dir: &Path) -> Self {
        Self { folder: csi_dir.join("registry"), known: watch::channel(Known::default()).0 }
    }

    /// A registered driver.
    pub fn driver(&self, name: &str) -> Option<Arc<Driver>> {
        self.known.borrow().drivers.get(name).cloned()
    }

    /// Where drivers register.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Tells each change.
    pub fn watch(&self) -> watch::Receiver<Known> {
        self.known.subscribe()
    }

    /// Watches the sockets for as long as it is polled.
    pub async fn run(self: Arc<Self>) {
        let mut delays = waits();
        loop {
            let mut sockets = Sockets::default();
            if let Err(error) = self.follow(&mut sockets).await {
                tracing::error!(%error, folder = %self.folder.display(), "cannot watch for CSI drivers; trying again");
            }
            tokio::time::sleep(delays.next().unwrap_or(RETRY.1)).await;
        }
    }

    async fn follow(&self, sockets: &mut Sockets) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let inotify = Inotify::init()?;
        let news = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE | WatchMask::DELETE_SELF | WatchMask::ATTRIB;
        inotify.watches().add(&self.folder, news)?;
        let mut events = inotify.into_event_stream([0; 4096])?;
        loop {
            sockets.look(&self.folder, Instant::now())?;
            sockets.ask_what_is_due(Instant::now());
            self.tell(sockets);
            let wake = sockets.wake();
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) if event.mask.contains(EventMask::DELETE_SELF) => {
                        return Err(io::Error::other("the folder was removed"));
                    }
                    Some(event) => drop(event?),
                    None => return Err(io::Error::other("no more events")),
                },
                Some(done) = sockets.tries.join_next() => match done {
                    Ok(tried) => sockets.took(tried, Instant::now()),
                    Err(error) => tracing::error!(%error, "asking a CSI driver broke off"),
                },
                // Nothing to do when one ends; only, they must not pile up.
                Some(_) = sockets.notices.join_next() => {}
                () = sleep_until(wake) => {}
            }
        }
    }

    fn tell(&self, sockets: &Sockets) {
        let drivers = sockets.table();
        let settled = sockets.settled();
        self.known.send_if_modified(|known| {
            let same = known.drivers.len() == drivers.len()
                && known.drivers.values().zip(drivers.values()).all(|(a, b)| Arc::ptr_eq(a, b));
            let news = !same || (settled && !known.settled);
            known.settled |= settled;
            if !same {
                known.drivers = drivers;
            }
            news
        });
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Tells a socket from another that later has its path.
type Identity = (u64, u64, i64, i64);

#[derive(Debug)]
enum State {
    /// To be asked at this moment.
    Due(Instant),
    /// Being asked.
    Asking,
    /// Registered.
    Registered(Arc<Driver>),
    /// Another has the name: asked again when that one is gone.
    Second(String),
    /// Not a driver, as it says itself.
    Refused,
}

#[derive(Debug)]
struct Socket {
    identity: Identity,
    state: State,
    tries: u32,
}

struct Tried {
    path: PathBuf,
    identity: Identity,
    outcome: Result<Driver, Problem>,
}

/// Why a plugin was not taken.
enum Problem {
    /// It may be otherwise later.
    Later(Status),
    /// It will not.
    Never(String),
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        Problem::Later(status)
    }
}

/// All sockets that there are, and what is known of each.
#[derive(Debug, Default)]
struct Sockets {
    sockets: BTreeMap<PathBuf, Socket>,
    /// Drivers whose socket is gone, until when.
    leaving: BTreeMap<String, (Arc<Driver>, Instant)>,
    tries: JoinSet<Tried>,
    notices: JoinSet<()>,
}

impl Sockets {
    /// Compares with what is there.
    fn look(&mut self, folder: &Path, now: Instant) -> io::Result<()> {
        let present = list(folder)?;
        let gone: Vec<_> = self.sockets.keys().filter(|path| !present.contains_key(*path)).cloned().collect();
        for path in gone {
            if let Some(socket) = self.sockets.remove(&path) {
                self.leave(socket, now);
            }
        }
        for (path, identity) in present {
            let known = self.sockets.get(&path).is_some_and(|socket| socket.identity == identity);
            if !known {
                let socket = Socket { identity, state: State::Due(now), tries: 0 };
                if let Some(before) = self.sockets.insert(path, socket) {
                    self.leave(before, now);
                }
            }
        }
        self.leaving.retain(|name, (_, until)| {
            if *until <= now {
                tracing::warn!(driver = name, "the CSI driver is gone: its socket was removed");
            }
            *until > now
        });
        self.promote(now);
        Ok(())
    }

    fn leave(&mut self, socket: Socket, now: Instant) {
        if let State::Registered(driver) = socket.state {
            self.leaving.insert(driver.facts.name.clone(), (driver, now + GRACE));
        }
    }

    /// Who waited for a name that is free now is asked.
    fn promote(&mut self, now: Instant) {
        let taken: BTreeSet<String> = self.table().into_keys().collect();
        for socket in self.sockets.values_mut() {
            if matches!(&socket.state, State::Second(name) if !taken.contains(name)) {
                socket.state = State::Due(now);
            }
        }
    }

    fn ask_what_is_due(&mut self, now: Instant) {
        for (path, socket) in &mut self.sockets {
            if matches!(socket.state, State::Due(at) if at <= now) {
                socket.state = State::Asking;
                let (path, identity) = (path.clone(), socket.identity);
                self.tries.spawn(async move {
                    let outcome = ask(&path).await;
                    Tried { path, identity, outcome }
                });
            }
        }
    }

    /// When to look again if nothing happens.
    fn wake(&self) -> Option<Instant> {
        let due = self.sockets.values().filter_map(|socket| match socket.state {
            State::Due(at) => Some(at),
            _ => None,
        });
        due.chain(self.leaving.values().map(|(_, until)| *until)).min()
    }

    fn settled(&self) -> bool {
        self.sockets.values().all(|s| s.tries > 0 || !matches!(s.state, State::Due(_) | State::Asking))
    }

    /// The drivers that count as registered.
    fn table(&self) -> Table {
        let leaving = self.leaving.iter().map(|(name, (driver, _))| (name.clone(), driver.clone()));
        let mut table: Table = leaving.collect();
        table.extend(self.sockets.values().filter_map(|socket| match &socket.state {
            State::Registered(driver) => Some((driver.facts.name.clone(), driver.clone())),
            _ => None,
        }));
        table
    }

    fn took(&mut self, tried: Tried, now: Instant) {
        let Tried { path, identity, outcome } = tried;
        let Some(socket) = self.sockets.get_mut(&path).filter(|socket| socket.identity == identity) else { return };
        match outcome {
            Ok(driver) => self.register(path, driver, now),
            Err(Problem::Later(status)) => {
                let wait = RETRY.0.saturating_mul(1 << socket.tries.min(10)).min(RETRY.1);
                socket.tries = socket.tries.saturating_add(1);
                socket.state = State::Due(now + wait);
                tracing::warn!(socket = %path.display(), %status, again_in = ?wait, "cannot register the CSI driver");
            }
            Err(Problem::Never(why)) => {
                socket.state = State::Refused;
                tracing::warn!(socket = %path.display(), why, "not taken as a CSI driver");
                self.notify(&path, Err(why));
            }
        }
    }

    fn register(&mut self, path: PathBuf, driver: Driver, now: Instant) {
        let name = driver.facts.name.clone();
        let has_it = |socket: &Socket| matches!(&socket.state, State::Registered(other) if other.facts.name == name);
        let holder = self.sockets.iter().find(|(other, socket)| **other != path && has_it(socket));
        let holder = holder.map(|(path, _)| path.clone());
        let state = match &holder {
            Some(other) => {
                let why = format!("driver {name:?} is already registered by {}; stop one of the two", other.display());
                tracing::warn!(socket = %path.display(), why, "two CSI drivers claim one name");
                self.notify(&path, Err(why));
                // The first may be dead, its socket left behind: it is asked again, and keeps the name until it fails.
                if let Some(first) = self.sockets.get_mut(other) {
                    let before = std::mem::replace(&mut first.state, State::Due(now));
                    if let State::Registered(driver) = before {
                        self.leaving.insert(name.clone(), (driver, now + GRACE));
                    }
                }
                State::Second(name.clone())
            }
            None => State::Registered(Arc::new(driver)),
        };
        if let State::Registered(driver) = &state {
            let facts = &driver.facts;
            let endpoint = driver.endpoint.display();
            tracing::info!(driver = name, %endpoint, node_id = facts.node_id, "CSI driver registered");
            self.leaving.remove(&name);
            self.notify(&path, Ok(()));
        }
        if let Some(socket) = self.sockets.get_mut(&path) {
            socket.tries = 0;
            socket.state = state;
        }
    }

    /// Tells the plugin what became of it. It is told once; nothing hangs on its hearing it.
    fn notify(&mut self, path: &Path, outcome: Result<(), String>) {
        let path = path.to_owned();
        self.notices.spawn(async move {
            let status =
                RegistrationStatus { plugin_registered: outcome.is_ok(), error: outcome.err().unwrap_or_default() };
            let told = async {
                let mut client = registration(&path)?;
                within("NotifyRegistrationStatus", client.notify_registration_status(status)).await
            };
            if let Err(status) = told.await {
                tracing::debug!(socket = %path.display(), %status, "the plugin does not hear what became of it");
            }
        });
    }
}

/// The sockets of a folder, under whatever name; hidden ones are not finished.
fn list(folder: &Path) -> io::Result<BTreeMap<PathBuf, Identity>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if !hidden && meta.file_type().is_socket() {
            found.insert(path, (meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec()));
        }
    }
    Ok(found)
}

fn registration(socket: &Path) -> Result<RegistrationClient<runtime::channel::Channel>, Status> {
    let channel = runtime::channel::connect(&format!("unix://{}", socket.display()));
    channel.map(RegistrationClient::new).map_err(|error| Status::invalid_argument(error.to_string()))
}

async fn ask(socket: &Path) -> Result<Driver, Problem> {
    let info = within("GetInfo", registration(socket)?.get_info(InfoRequest {})).await?;
    if info.r#type != "CSIPlugin" {
        return Err(Problem::Never(format!("type {:?} is not known here: only CSIPlugin is", info.r#type)));
    }
    let is_one = |version: &String| version.trim_start_matches('v').split('.').next() == Some("1");
    if !info.supported_versions.iter().any(is_one) {
        let versions = info.supported_versions.join(", ");
        return Err(Problem::Never(format!("versions [{versions}] of CSI: the agent speaks version 1")));
    }
    let endpoint = info.endpoint.strip_prefix("unix://").or(info.endpoint.strip_prefix("unix:"));
    let endpoint = match endpoint.unwrap_or(&info.endpoint) {
        "" => socket.to_owned(),
        path if path.starts_with('/') => PathBuf::from(path),
        path => return Err(Problem::Never(format!("endpoint {path:?} is not an absolute path of a socket"))),
    };
    let driver = Driver::ask(&endpoint).await?;
    if driver.facts.name != info.name {
        let (name, endpoint) = (&driver.facts.name, endpoint.display());
        return Err(Problem::Never(format!("registered as {:?}, but the driver at {endpoint} is {name:?}", info.name)));
    }
    Ok(driver)
}
