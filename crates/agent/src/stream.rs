//! Keeps a server stream open for as long as the agent lives.
//!
//! A stream that ends, for whatever reason, is opened again after a back-off. The server starts every stream with all
//! there is, so nothing is resumed: the consumer is told that a new telling begins ([`Feed::Opened`]) and compares.
//! What was told before stays valid while the stream is down.

use std::{future::Future, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

/// What a stream delivers.
#[derive(Debug)]
pub enum Feed<M> {
    /// A stream was opened: all that there is follows, from the beginning.
    Opened,
    /// One message.
    Message(M),
    /// The stream has ended; it will be opened again.
    Closed,
}

/// The first wait after a failure, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// The waits between tries of anything that is tried for ever: doubling, with jitter, up to 5 s.
pub fn waits() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(WAITS.0)
        .with_max_delay(WAITS.1)
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Opens a stream with `open` and hands what it delivers to `take`, again and again until `shutdown`.
pub async fn follow<M, Opening, Open, Take>(
    what: &'static str,
    shutdown: CancellationToken,
    mut open: Open,
    mut take: Take,
) where
    Opening: Future<Output = Result<Streaming<M>, Status>>,
    Open: FnMut() -> Opening,
    Take: FnMut(Feed<M>),
{
    let mut delays = waits();
    while let Some(ended) = shutdown.run_until_cancelled(once(&mut open, &mut take)).await {
        match ended {
            Ended::Served(status) => {
                tracing::debug!(stream = what, %status, "stream ended; opening it again");
                delays = waits();
            }
            Ended::NotOpened(status) => {
                tracing::warn!(stream = what, %status, "cannot open the stream; trying again");
            }
        }
        let wait = delays.next().unwrap_or(WAITS.1);
        if shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
    }
}

enum Ended {
    /// It delivered something first.
    Served(Status),
    NotOpened(Status),
}

async fn once<M, Opening: Future<Output = Result<Streaming<M>, Status>>>(
    open: &mut impl FnMut() -> Opening,
    take: &mut impl FnMut(Feed<M>),
) -> Ended {
    let mut stream = match open().await {
        Ok(stream) => stream,
        Err(status) => return Ended::NotOpened(status),
    };
    take(Feed::Opened);
    let mut served = false;
    loop {
        let status = match stream.message().await {
            Ok(Some(message)) => {
                take(Feed::Message(message));
                served = true;
                continue;
            }
            Ok(None) => Status::ok("the server closed the stream"),
            Err(status) => status,
        };
        take(Feed::Closed);
        return if served { Ended::Served(status) } else { Ended::NotOpened(status) };
    }
}
