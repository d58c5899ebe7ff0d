//! Hands calls for a driver's identity and controller services through to the driver on this node.
//!
//! The volume manager names the driver in the metadata key `berth-csi-driver`. Messages go through as they are, and so
//! does the caller's deadline; the agent knows nothing of what is in them. Node calls are not handed through: they are
//! the agent's own.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tonic::{Status, body::Body, server::NamedService};
use tower::{Service, ServiceExt};

use super::registry::Registry;

/// Names the driver.
const DRIVER: &str = "berth-csi-driver";

/// Sent by callers that have a deadline.
const DEADLINE: &str = "grpc-timeout";

/// For calls of callers that set no deadline.
const LONGEST: Duration = Duration::from_secs(300);

/// The drivers' service `csi.v1.Identity`.
#[derive(Clone, Debug)]
pub struct Identity(pub Arc<Registry>);

/// The drivers' service `csi.v1.Controller`.
#[derive(Clone, Debug)]
pub struct Controller(pub Arc<Registry>);

impl NamedService for Identity {
    const NAME: &'static str = "csi.v1.Identity";
}

impl NamedService for Controller {
    const NAME: &'static str = "csi.v1.Controller";
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

macro_rules! proxy {
    ($service:ty) => {
        impl Service<Request<Body>> for $service {
            type Response = Response<Body>;
            type Error = Infallible;
            type Future = Answer;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: Request<Body>) -> Answer {
                let registry = self.0.clone();
                Box::pin(async move { Ok(forward(&registry, request).await.unwrap_or_else(Status::into_http)) })
            }
        }
    };
}

proxy!(Identity);
proxy!(Controller);

async fn forward(registry: &Registry, request: Request<Body>) -> Result<Response<Body>, Status> {
    let name = request.headers().get(DRIVER).and_then(|name| name.to_str().ok()).filter(|name| !name.is_empty());
    let name =
        name.ok_or_else(|| Status::invalid_argument(format!("metadata key {DRIVER}: must name a CSI driver")))?;
    let name = name.to_owned();
    let driver = registry.driver(&name).ok_or_else(|| {
        let folder = registry.folder().display();
        Status::unavailable(format!(
            "CSI driver {name:?} is not registered on this node: is it running, with its socket in {folder}?"
        ))
    })?;
    let limit = if request.headers().contains_key(DEADLINE) { Duration::MAX } else { LONGEST };
    let answer = tokio::time::timeout(limit, driver.channel.clone().oneshot(request)).await;
    match answer {
        Ok(Ok(response)) => Ok(response.map(Body::new)),
        Ok(Err(error)) => {
            let status = Status::from_error(error.into());
            let message = format!("CSI driver {name:?} does not answer on its socket: {}", status.message());
            Err(Status::unavailable(message))
        }
        Err(_) => Err(Status::deadline_exceeded(format!("CSI driver {name:?} did not answer within {LONGEST:?}"))),
    }
}
