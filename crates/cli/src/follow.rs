//! A watch that goes on: it resumes where it was when the API service goes away and comes back, and gives up only when
//! the service stays away.

use std::time::{Duration, Instant};

use anyhow::Result;
use pb::api::v1::{EventType, Object as AnyObject, WatchRequest, WatchResponse};
use runtime::backoff::Backoff;
use tonic::{Code, Status, Streaming};

use crate::client::Client;

/// How long the service may stay away.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a watch tells.
#[derive(Debug)]
pub enum Told {
    /// New or changed.
    Is(AnyObject),
    /// Gone; as it was last.
    Gone(AnyObject),
    /// All that is so up to now has been told.
    Current,
    /// Forget everything: it is told anew from here.
    Anew,
}

/// A watch.
pub struct Follow {
    client: Client,
    request: WatchRequest,
    stream: Option<Streaming<WatchResponse>>,
    /// Whether something was told since the start or since the last [`Told::Anew`].
    begun: bool,
    failures: u32,
    lost: Option<Instant>,
}

impl Follow {
    /// A watch that starts with the request's revision, or with all that is there.
    pub fn new(client: &Client, request: WatchRequest) -> Self {
        let request = WatchRequest { allow_bookmarks: true, ..request };
        Self { client: client.clone(), request, stream: None, begun: false, failures: 0, lost: None }
    }

    /// What happens next.
    pub async fn next(&mut self) -> Result<Told> {
        loop {
            let Some(stream) = &mut self.stream else {
                // Without a revision the service tells everything again.
                if self.begun && self.request.resource_version.is_empty() {
                    self.begun = false;
                    return Ok(Told::Anew);
                }
                self.open().await?;
                continue;
            };
            match stream.message().await {
                Ok(Some(event)) => {
                    if let Some(told) = self.take(event) {
                        return Ok(told);
                    }
                }
                Ok(None) => self.interrupted(&Status::unavailable("the API service ended the watch")).await?,
                Err(status) => self.interrupted(&status).await?,
            }
        }
    }

    fn take(&mut self, event: WatchResponse) -> Option<Told> {
        (self.failures, self.lost, self.begun) = (0, None, true);
        let kind = event.r#type();
        if !event.resource_version.is_empty() {
            self.request.resource_version = event.resource_version;
        }
        match (kind, event.object) {
            (EventType::Added | EventType::Modified, Some(object)) => Some(Told::Is(object)),
            (EventType::Deleted, Some(object)) => Some(Told::Gone(object)),
            (EventType::Bookmark, _) => Some(Told::Current),
            _ => None,
        }
    }

    async fn open(&mut self) -> Result<()> {
        match self.client.streams.clone().watch(self.request.clone()).await {
            Ok(answer) => self.stream = Some(answer.into_inner()),
            Err(status) => self.interrupted(&status).await?,
        }
        Ok(())
    }

    /// Waits before the next try, or gives up.
    async fn interrupted(&mut self, status: &Status) -> Result<()> {
        self.stream = None;
        if status.code() == Code::OutOfRange && !self.request.resource_version.is_empty() {
            // The changes since are no longer remembered.
            self.request.resource_version.clear();
            self.begun = true;
            return Ok(());
        }
        let passing = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal);
        let lost = *self.lost.get_or_insert_with(Instant::now);
        if !passing || lost.elapsed() > PATIENCE {
            return Err(self.client.refused(status));
        }
        self.failures += 1;
        tokio::time::sleep(Backoff::RECONNECT.after(self.failures)).await;
        Ok(())
    }
}
