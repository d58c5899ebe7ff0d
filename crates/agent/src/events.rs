//! containerd's events: who ended, who started.
//!
//! They only say where to look; what is so is asked from CRI. While they cannot be had, workers look by themselves.

use pb::containerd::events::v1::{Envelope, SubscribeRequest, TaskEvent, TaskExit, events_client::EventsClient};
use prost::Message;
use runtime::channel::{BadAddress, Channel};
use tokio_util::sync::CancellationToken;

use crate::stream::{Feed, follow};

/// Events about processes in CRI's own namespace: any of these.
const FILTERS: [&str; 4] = [
    r#"namespace=="k8s.io",topic=="/tasks/exit""#,
    r#"namespace=="k8s.io",topic=="/tasks/start""#,
    r#"namespace=="k8s.io",topic=="/tasks/oom""#,
    r#"namespace=="k8s.io",topic=="/tasks/delete""#,
];

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    /// The events begin; what happened before may have been missed.
    Listening,
    /// The events have stopped.
    Deaf,
    /// The container's first process has ended. The runtime may not yet say so.
    Ended(String),
    /// Something else about the container.
    Other(String),
}

/// Listens at the runtime's socket until `shutdown`.
pub async fn listen(url: &str, shutdown: CancellationToken, mut tell: impl FnMut(Happened)) -> Result<(), BadAddress> {
    let client = EventsClient::new(runtime::channel::connect_streaming(url)?);
    let open = || subscribe(client.clone());
    follow("containerd events", shutdown, open, |feed| match feed {
        Feed::Opened => tell(Happened::Listening),
        Feed::Closed => tell(Happened::Deaf),
        Feed::Message(envelope) => {
            if let Some(happened) = read(&envelope) {
                tell(happened);
            }
        }
    })
    .await;
    Ok(())
}

async fn subscribe(mut client: EventsClient<Channel>) -> Result<tonic::Streaming<Envelope>, tonic::Status> {
    // The answer's headers come with the first event: there is nothing to wait for with a deadline.
    Ok(client.subscribe(SubscribeRequest { filters: FILTERS.map(str::to_owned).into() }).await?.into_inner())
}

/// None for what says nothing about a container.
fn read(envelope: &Envelope) -> Option<Happened> {
    let bytes = envelope.event.as_ref()?.value.as_slice();
    if envelope.topic == "/tasks/exit" {
        let exit = TaskExit::decode(bytes).ok()?;
        // The end of a command run by exec carries another id.
        return (exit.id.is_empty() || exit.id == exit.container_id).then_some(Happened::Ended(exit.container_id));
    }
    let event = TaskEvent::decode(bytes).ok()?;
    Some(Happened::Other(event.container_id))
}

#[cfg(test)]
mod tests {
    use pb::containerd::events::v1::Any;

    use super::*;

    #[test]
    fn the_end_of_an_exec_is_not_the_end_of_the_container() {
        let event = |id: &str| Envelope {
            topic: "/tasks/exit".into(),
            event: Some(Any {
                value: TaskExit { container_id: "c".into(), id: id.into() }.encode_to_vec(),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(read(&event("c")), Some(Happened::Ended("c".into())));
        assert_eq!(read(&event("exec-1")), None);
    }
}
