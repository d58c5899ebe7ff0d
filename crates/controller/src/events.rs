//! Events: what happened, for people. Nothing is decided from them, and nothing waits for them.
//!
//! The recorder hands notes to one writer through a bounded queue; a note that finds it full is dropped and counted.
//! The writer gathers what comes within a moment into one transaction, turns repetitions into counts, and hangs events
//! on leases, so that they go away by themselves after an hour or so.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use pb::{Object, ObjectExt, objects::*};
use store::{Guard, Key, LeaseId, Op, Store, Txn, TxnOutcome, objects::encode};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use crate::{host::Host, metrics};

/// Who tells.
const COMPONENT: &str = "statefulset-controller";
/// Notes that may wait to be written.
const WAITING: usize = 1024;
/// Notes that one transaction takes.
const BATCH: usize = 64;
/// How long the writer gathers before it writes.
const GATHER: Duration = Duration::from_millis(200);
/// How long an event stays after it was written last, at least.
const KEEP: Duration = Duration::from_secs(3600);
/// How long one lease takes new events.
const LEASE_SHARED_FOR: Duration = Duration::from_secs(600);
/// Events whose repetitions are counted.
const REMEMBERED: usize = 2048;

/// How an event is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Normal,
    /// Somebody may want to look.
    Warning,
}

/// Something that happened to an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    kind: &'static str,
    api_version: &'static str,
    namespace: String,
    name: String,
    uid: String,
    /// One word, such as SuccessfulCreate (EV).
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
    /// How it is meant.
    pub severity: Severity,
}

impl Note {
    /// As it should be.
    pub fn normal<T: Object>(object: &T, reason: &'static str, message: String) -> Self {
        Self::new(object, reason, message, Severity::Normal)
    }

    /// Somebody may want to look.
    pub fn warning<T: Object>(object: &T, reason: &'static str, message: String) -> Self {
        Self::new(object, reason, message, Severity::Warning)
    }

    fn new<T: Object>(object: &T, reason: &'static str, message: String, severity: Severity) -> Self {
        Self {
            kind: T::KIND.name(),
            api_version: T::KIND.api_version(),
            namespace: object.namespace().to_owned(),
            name: object.name().to_owned(),
            uid: object.uid().to_owned(),
            reason,
            message,
            severity,
        }
    }
}

/// Takes notes. Clones write to the same queue.
#[derive(Clone)]
pub struct Recorder {
    notes: mpsc::Sender<Note>,
}

impl Recorder {
    /// Takes a note, or drops it when too many are waiting.
    pub fn note(&self, note: Note) {
        if self.notes.try_send(note).is_err() {
            metrics::get().events_dropped.inc();
        }
    }
}

/// A recorder and its writer.
pub fn recorder(store: Arc<dyn Store>, host: Arc<dyn Host>, fence: Option<Guard>) -> (Recorder, Writer) {
    let (notes, receiver) = mpsc::channel(WAITING);
    let writer = Writer { store, host, fence, receiver, told: BTreeMap::new(), lease: None };
    (Recorder { notes }, writer)
}

/// Writes what recorders note.
pub struct Writer {
    store: Arc<dyn Store>,
    host: Arc<dyn Host>,
    fence: Option<Guard>,
    receiver: mpsc::Receiver<Note>,
    told: BTreeMap<Note, Event>,
    lease: Option<(LeaseId, Instant)>,
}

impl Writer {
    /// Writes until no recorder is left.
    pub async fn run(mut self) {
        while let Some(notes) = self.gather().await {
            if let Err(error) = self.write(notes).await {
                metrics::get().events_dropped.inc();
                tracing::debug!(%error, "events were not written");
                self.lease = None;
            }
        }
    }

    async fn gather(&mut self) -> Option<Vec<Note>> {
        let mut notes = vec![self.receiver.recv().await?];
        let until = Instant::now() + GATHER;
        while notes.len() < BATCH {
            match timeout_at(until, self.receiver.recv()).await {
                Ok(Some(note)) => notes.push(note),
                Ok(None) | Err(_) => break,
            }
        }
        Some(notes)
    }

    async fn write(&mut self, notes: Vec<Note>) -> store::Result<()> {
        let lease = self.lease().await?;
        let mut batch = BTreeMap::new();
        for note in notes {
            let event = self.count(note);
            batch.insert(Key::of(&event), event);
        }
        let ops = batch.into_iter().map(|(key, event)| Op::Put(key, encode(&event), Some(lease))).collect();
        let txn = Txn { guards: self.fence.iter().cloned().collect(), ops };
        match self.store.txn(txn).await? {
            TxnOutcome::Committed(_) => Ok(()),
            TxnOutcome::Conflict => Err(store::Error::Refused("no longer the leader".to_owned())),
        }
    }

    /// The event of a note: a new one, or the one before with a higher count.
    fn count(&mut self, note: Note) -> Event {
        let now = Time::from(self.host.now());
        if self.told.len() >= REMEMBERED {
            self.told.clear();
        }
        let event = self.told.entry(note).or_insert_with_key(|note| new_event(note, self.host.uid(), now));
        event.count += 1;
        event.last_timestamp = Some(now);
        event.clone()
    }

    async fn lease(&mut self) -> store::Result<LeaseId> {
        match self.lease {
            Some((lease, until)) if Instant::now() < until => Ok(lease),
            _ => {
                let lease = self.store.grant_lease(KEEP + LEASE_SHARED_FOR).await?;
                self.lease = Some((lease, Instant::now() + LEASE_SHARED_FOR));
                Ok(lease)
            }
        }
    }
}

fn new_event(note: &Note, uid: String, now: Time) -> Event {
    // Names are unique because uids are; the object's name in front lets people and prefixes find them.
    let tail: String = uid.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
    Event {
        metadata: Some(ObjectMeta {
            name: format!("{}.{tail}", note.name),
            namespace: note.namespace.clone(),
            uid,
            creation_timestamp: Some(now),
            ..ObjectMeta::default()
        }),
        involved_object: Some(ObjectReference {
            kind: note.kind.to_owned(),
            namespace: note.namespace.clone(),
            name: note.name.clone(),
            uid: note.uid.clone(),
            api_version: note.api_version.to_owned(),
            ..ObjectReference::default()
        }),
        reason: note.reason.to_owned(),
        message: note.message.clone(),
        source: Some(EventSource { component: COMPONENT.to_owned(), host: String::new() }),
        first_timestamp: Some(now),
        last_timestamp: Some(now),
        count: 0,
        r#type: match note.severity {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        }
        .to_owned(),
        ..Event::default()
    }
}
