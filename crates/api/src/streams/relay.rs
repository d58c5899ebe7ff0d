//! Handing a stream on, in either direction, without keeping more of it than one message.
//!
//! A call to an agent lives within the user's call: it ends with it, and when this service is stopped. The way there has to
//! be told ([`Over`]): a call whose answers nobody reads any more stays open for as long as something may still be sent.

use std::time::Duration;

use futures::{Stream, StreamExt, future, stream};
use runtime::CancellationToken;
use tokio::time::timeout;
use tokio_util::sync::DropGuard;
use tonic::{Status, Streaming};

use crate::error::Error;

/// How long the first message of a stream may take, which says what is wanted.
const FIRST: Duration = Duration::from_secs(10);

/// Held by the way back; the way there ends when it is dropped.
pub type Over = DropGuard;

/// Both ends of the knowledge that a call is over.
pub fn over() -> (Over, CancellationToken) {
    let token = CancellationToken::new();
    (token.clone().drop_guard(), token)
}

/// The first message of a stream.
pub async fn first<T>(requests: &mut Streaming<T>) -> Result<T, Status> {
    match timeout(FIRST, requests.message()).await {
        Ok(first) => first?.ok_or_else(no_start),
        Err(_) => Err(Status::deadline_exceeded(format!("the first message, start, did not come within {FIRST:?}"))),
    }
}

/// The answer to a stream that begins with something else.
pub fn no_start() -> Status {
    Error::field("start", "Required value: the first message must say what is wanted").into()
}

/// What a user sends, for an agent: `first`, then the rest as it comes, until the call is over.
pub fn onward<T: Send + 'static, M: Send + 'static>(
    first: M,
    rest: Streaming<T>,
    over: CancellationToken,
    wrap: fn(T) -> M,
) -> impl Stream<Item = M> + Send + 'static {
    let rest = stream::unfold(rest, move |mut rest| async move {
        match rest.message().await {
            Ok(Some(message)) => Some((wrap(message), rest)),
            Ok(None) => None,
            // The user is gone, which is not the end of the input: the call is over in a moment.
            Err(_) => future::pending().await,
        }
    });
    stream::once(future::ready(first)).chain(rest).take_until(over.cancelled_owned())
}

/// What an agent answers, for the user: `node` says which one, `stop` ends it.
pub fn back<T, M>(
    answers: Streaming<T>,
    node: String,
    stop: CancellationToken,
    over: Over,
    unwrap: fn(T) -> M,
) -> impl Stream<Item = Result<M, Status>> + Send + 'static
where
    T: Send + 'static,
    M: Send + 'static,
{
    let answers = answers.map(move |answer| {
        // Dropped with the answers.
        let _over = &over;
        answer.map(unwrap).map_err(|status| broken(&node, status))
    });
    let stopped = stop.clone();
    let last = stream::once(async move { stopped.is_cancelled().then(|| Err(stopping())) });
    answers.take_until(stop.cancelled_owned()).chain(last.filter_map(future::ready))
}

/// The end of a stream whose service is stopped.
pub fn stopping() -> Status {
    Status::unavailable("this API service is being stopped, and its streams end with it: ask again")
}

/// Why a stream broke, if that was not the agent's own word.
pub fn broken(node: &str, status: Status) -> Status {
    if std::error::Error::source(&status).is_none() {
        return status;
    }
    Status::unavailable(format!(
        "the agent of node {node} went away in the midst of the stream ({}); its pods may run on: see `berth get node \
         {node}`, and try again when the agent is back",
        status.message()
    ))
}
