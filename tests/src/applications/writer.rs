//! Somebody who writes to an application without end, with its own client, whatever happens to its members.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Result, bail};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};

use super::{Application, ledger::Ledger, stage::Stage};

/// Numbers that one run of the client writes.
const BATCH: u64 = 8;
/// What one run of the client may take: each of its writes has a limit of its own.
const LIMIT: Duration = Duration::from_secs(60);
/// After a run that acknowledged nothing.
const AGAIN: Duration = Duration::from_millis(200);

/// A writer in the background.
pub struct Writer {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    book: Mutex<Book>,
    /// Something was acknowledged.
    news: Notify,
}

struct Book {
    ledger: Ledger,
    last: Instant,
    /// The longest time without an acknowledgement since it was last asked for.
    gap: Duration,
    /// What the client last complained of.
    complaint: String,
}

impl Writer {
    /// Begins to write.
    pub fn start(stage: &Stage, application: Application) -> Self {
        let book =
            Book { ledger: Ledger::default(), last: Instant::now(), gap: Duration::ZERO, complaint: String::new() };
        let shared = Arc::new(Shared { book: Mutex::new(book), news: Notify::new() });
        let task = tokio::spawn(write(stage.clone(), application, Arc::clone(&shared)));
        Self { shared, task }
    }

    /// What must be there.
    pub fn acknowledged(&self) -> BTreeSet<u64> {
        self.shared.book().ledger.acknowledged().clone()
    }

    /// The longest time without an acknowledgement since this was last asked for.
    pub fn longest_gap(&self) -> Duration {
        let mut book = self.shared.book();
        let gap = book.gap.max(book.last.elapsed());
        book.gap = Duration::ZERO;
        gap
    }

    /// Waits until `count` more writes are acknowledged.
    pub async fn goes_on(&self, count: usize, deadline: Instant) -> Result<()> {
        let goal = self.shared.book().ledger.acknowledged().len() + count;
        loop {
            let news = self.shared.news.notified();
            if self.shared.book().ledger.acknowledged().len() >= goal {
                return Ok(());
            }
            if timeout_at(deadline, news).await.is_err() {
                bail!("no write is acknowledged any more; the client says: {}", self.shared.book().complaint);
            }
        }
    }

    /// Writes no more, and gives the ledger.
    pub async fn stop(self) -> Ledger {
        self.task.abort();
        // What it was cancelled in the middle of is not acknowledged.
        drop(self.task.await);
        self.shared.book().ledger.clone()
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes until the task is ended.
async fn write(stage: Stage, application: Application, shared: Arc<Shared>) {
    loop {
        let (first, last) = shared.book().ledger.issue(BATCH);
        let numbers = [first.to_string(), last.to_string()];
        let ran = stage.run_client(application.commands.write, &[&numbers[0], &numbers[1]], LIMIT).await;
        let (printed, complaint) = match ran {
            Ok(ran) => (ran.printed, ran.complained),
            Err(error) => (String::new(), format!("{error:#}")),
        };
        let acknowledged = {
            let mut book = shared.book();
            let count = book.ledger.acknowledge(&printed);
            if count > 0 {
                book.gap = book.gap.max(book.last.elapsed());
                book.last = Instant::now();
            }
            if !complaint.is_empty() {
                book.complaint = complaint;
            }
            count
        };
        if acknowledged > 0 {
            shared.news.notify_waiters();
        } else {
            sleep(AGAIN).await;
        }
    }
}
