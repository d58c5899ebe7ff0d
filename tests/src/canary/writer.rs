//! Somebody who writes to one pod of the set without end, whatever happens to it, and keeps the [`Ledger`].

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use pb::objects::Pod;
use tokio::{
    sync::{Mutex, watch},
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    ledger::{Found, Ledger, Mark},
    line::Line,
};
use crate::client::Client;

/// Between two records: enough of them to be in the middle of something at every moment, few enough to read them all
/// again and again.
const PACE: Duration = Duration::from_millis(30);
/// Between two attempts to reach a pod.
const AGAIN: Duration = Duration::from_millis(100);

/// A writer in the background.
pub struct Writer {
    pod: String,
    client: Client,
    shared: Arc<Mutex<Ledger>>,
    /// Whether it writes; a writer that was told to pause writes nothing once [`Writer::pause`] returned.
    active: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Writer {
    /// Begins to write to a pod.
    pub fn start(client: &Client, pod: &str) -> Self {
        let shared = Arc::new(Mutex::new(Ledger::new(pod)));
        let (active, told) = watch::channel(true);
        let task = tokio::spawn(write(client.clone(), pod.to_owned(), Arc::clone(&shared), told));
        Self { pod: pod.to_owned(), client: client.clone(), shared, active, task }
    }

    /// The pod.
    pub fn pod(&self) -> &str {
        &self.pod
    }

    /// Stops writing. When this returns, no record is on its way.
    pub async fn pause(&self) {
        self.active.send_replace(false);
        // The writer holds the ledger while a record is on its way.
        drop(self.shared.lock().await);
    }

    /// Goes on writing.
    pub fn resume(&self) {
        self.active.send_replace(true);
    }

    /// Records that must be there.
    pub async fn acknowledged(&self) -> usize {
        self.shared.lock().await.acknowledged()
    }

    /// What a snapshot that is asked for now must hold.
    pub async fn mark(&self) -> Mark {
        self.shared.lock().await.mark()
    }

    /// Says that a snapshot is ready.
    pub async fn seal(&self, mark: &mut Mark) {
        self.shared.lock().await.seal(mark);
    }

    /// A copy of what is known.
    pub async fn ledger(&self) -> Ledger {
        self.shared.lock().await.clone()
    }

    /// Waits until a record is acknowledged that was not sent before.
    pub async fn writes_again(&self, deadline: Instant) -> Result<()> {
        let next = self.shared.lock().await.next();
        while Instant::now() < deadline {
            if self.shared.lock().await.last_acknowledged().is_some_and(|last| last >= next) {
                return Ok(());
            }
            sleep(PACE).await;
        }
        bail!("{} acknowledges nothing more", self.pod)
    }

    /// Reads the whole volume through the pod, and checks it.
    pub async fn check(&self) -> Result<Found> {
        // The ledger first: what is acknowledged now must be in what is read later.
        let before = self.ledger().await;
        let log = self.read().await?;
        // What was sent in between may be there, too.
        let mut ledger = before;
        ledger.sent_until(self.shared.lock().await.next());
        ledger.check(&log).map_err(|wrong| self.tell(&wrong, &log))
    }

    /// Reads the volume of a pod whose data was taken back to a snapshot, and goes on from there. The writer must have
    /// been paused since before the restore.
    pub async fn restored(&self, mark: &Mark) -> Result<Found> {
        let log = self.read().await?;
        self.shared.lock().await.restore(mark, &log).map_err(|wrong| self.tell(&wrong, &log))
    }

    /// The whole log, through the pod.
    pub async fn read(&self) -> Result<Vec<u8>> {
        let mut last = None;
        for _ in 0..50 {
            match self.try_read().await {
                Ok(log) => return Ok(log),
                Err(error) => last = Some(error),
            }
            sleep(AGAIN).await;
        }
        Err(last.context("never tried")?).with_context(|| format!("read the volume of {}", self.pod))
    }

    async fn try_read(&self) -> Result<Vec<u8>> {
        Line::connect(&self.pod, address(&self.client, &self.pod).await?).await?.read().await
    }

    fn tell(&self, wrong: &[String], log: &[u8]) -> anyhow::Error {
        let kept = std::env::temp_dir().join(format!("berth-canary-{}.log", self.pod));
        let kept = match std::fs::write(&kept, log) {
            Ok(()) => format!("what was read is in {}", kept.display()),
            Err(error) => format!("what was read could not be kept: {error}"),
        };
        let shown: Vec<&str> = wrong.iter().take(10).map(String::as_str).collect();
        anyhow::anyhow!("{}: {} things are wrong; {kept}\n  {}", self.pod, wrong.len(), shown.join("\n  "))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The address that a pod has now.
pub async fn address(client: &Client, pod: &str) -> Result<IpAddr> {
    let found = client.get::<Pod>(pod).await?.with_context(|| format!("there is no {pod}"))?;
    let status = found.status.unwrap_or_default();
    status.pod_ip.parse().with_context(|| format!("{pod} has no address yet"))
}

/// Writes until the task is ended.
async fn write(client: Client, pod: String, shared: Arc<Mutex<Ledger>>, mut active: watch::Receiver<bool>) {
    let mut line = None;
    loop {
        if active.wait_for(|active| *active).await.is_err() {
            return;
        }
        let Some(open) = &mut line else {
            let connected = async { Line::connect(&pod, address(&client, &pod).await?).await };
            match connected.await {
                Ok(open) => line = Some(open),
                Err(_) => sleep(AGAIN).await,
            }
            continue;
        };
        let mut ledger = shared.lock().await;
        // It may have been told to pause while it waited.
        if !*active.borrow() {
            continue;
        }
        let (token, payload) = ledger.issue();
        match open.append(&payload).await {
            Ok(place) => ledger.acknowledge(token, place),
            // Whether it is there is not known: it may be, once.
            Err(_) => line = None,
        }
        drop(ledger);
        sleep(PACE).await;
    }
}
