//! The way to the API service, and its refusals in words for people.

use anyhow::{Context, Result};
use pb::{
    Kind,
    api::v1::{GetRequest, ListRequest, Object as AnyObject, api_service_client::ApiServiceClient},
};
use runtime::channel::{self, Channel};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Where the cluster is, and which part of it is meant.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Cluster")]
pub struct ClientArgs {
    /// The API service
    #[arg(long, global = true, value_name = "URL", env = "BERTH_SERVER", default_value = "http://127.0.0.1:7440")]
    pub server: String,
    /// The namespace
    #[arg(short, long, global = true, value_name = "NAME", env = "BERTH_NAMESPACE", default_value = "default")]
    pub namespace: String,
}

impl ClientArgs {
    /// A client; nothing is sent yet.
    pub fn connect(&self) -> Result<Client> {
        let api = ApiServiceClient::new(channel::connect(&self.server).context("--server")?);
        let streams = ApiServiceClient::new(channel::connect_streaming(&self.server).context("--server")?);
        Ok(Client { api, streams, namespace: self.namespace.clone(), server: self.server.clone() })
    }
}

/// A client of the API service.
#[derive(Clone, Debug)]
pub struct Client {
    /// For calls that answer at once.
    pub api: ApiServiceClient<Channel>,
    /// For calls that take as long as they take.
    pub streams: ApiServiceClient<Channel>,
    /// The namespace that is meant.
    pub namespace: String,
    server: String,
}

/// Objects in one page of a list.
const PAGE: i32 = 500;

impl Client {
    /// The namespace for objects of a kind: none for those of the whole cluster.
    pub fn namespace_of(&self, kind: Kind) -> String {
        if kind.namespaced() { self.namespace.clone() } else { String::new() }
    }

    /// Reads one object.
    pub async fn get(&self, kind: Kind, name: &str) -> Result<AnyObject> {
        let request = GetRequest {
            kind: kind.name().to_owned(),
            namespace: self.namespace_of(kind),
            name: name.to_owned(),
            ..GetRequest::default()
        };
        let answer = self.api.clone().get(request).await.map_err(|status| self.refused(&status))?;
        answer.into_inner().object.context("the API service answered without an object")
    }

    /// Reads one object in a view; None if there is none.
    pub async fn find(&self, kind: Kind, name: &str, view: &str) -> Result<Option<AnyObject>> {
        let request = GetRequest {
            kind: kind.name().to_owned(),
            namespace: self.namespace_of(kind),
            name: name.to_owned(),
            api_version: view.to_owned(),
        };
        match self.api.clone().get(request).await {
            Ok(answer) => Ok(answer.into_inner().object),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.refused(&status)),
        }
    }

    /// Reads all pages of a list; the revision that they show comes with them.
    pub async fn list(&self, mut request: ListRequest) -> Result<(Vec<AnyObject>, String)> {
        let mut items = Vec::new();
        request.limit = PAGE;
        loop {
            let page =
                self.api.clone().list(request.clone()).await.map_err(|status| self.refused(&status))?.into_inner();
            items.extend(page.items);
            if page.r#continue.is_empty() {
                return Ok((items, page.resource_version));
            }
            request.r#continue = page.r#continue;
        }
    }

    /// A refusal as an error.
    pub fn refused(&self, status: &Status) -> anyhow::Error {
        self.refused_in(status, "")
    }

    /// A refusal of something that came from a file.
    pub fn refused_in(&self, status: &Status, source: &str) -> anyhow::Error {
        anyhow::anyhow!(explain(status, &self.server, source))
    }
}

/// A refusal in words: one line for each field that is wrong.
fn explain(status: &Status, server: &str, source: &str) -> String {
    let details = status.get_error_details();
    if let Some(bad) = details.bad_request().filter(|bad| !bad.field_violations.is_empty()) {
        let problems = match bad.field_violations.len() {
            1 => "1 problem".to_owned(),
            many => format!("{many} problems"),
        };
        let place = if source.is_empty() { "in the request" } else { "in" };
        let lines = bad.field_violations.iter().map(|violation| match violation.field.as_str() {
            "" => format!("\n  {}", violation.description),
            field => format!("\n  {field}: {}", violation.description),
        });
        return format!("{problems} {}:{}", format!("{place} {source}").trim(), lines.collect::<String>());
    }
    match status.code() {
        Code::Unavailable if unreachable(status) => format!(
            "cannot reach the API service at {server}: {}\nis it up? `berth lab up` starts one here; --server or BERTH_SERVER names another",
            deepest(status)
        ),
        Code::DeadlineExceeded | Code::Cancelled => {
            format!("the API service at {server} took too long to answer ({}); try again", status.message())
        }
        Code::Unimplemented => format!(
            "the API service at {server}, or the node that it asked, does not know this call; is it an older version? {}",
            status.message()
        ),
        _ if unreachable(status) => {
            format!("the connection to the API service at {server} broke ({}); try again", deepest(status))
        }
        _ if status.message().is_empty() => format!("{:?} from the API service at {server}", status.code()),
        _ => status.message().to_owned(),
    }
}

/// Whether no answer came at all, as opposed to an answer that says "unavailable".
fn unreachable(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// The cause under all wrappers: "Connection refused (os error 111)" rather than "transport error".
fn deepest(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, FieldViolation};

    use super::*;

    #[test]
    fn every_field_has_its_line() {
        let violations = vec![
            FieldViolation::new("spec.replicas", "Invalid value: -1: must be greater than or equal to 0"),
            FieldViolation::new("spec.serviceNam", "Unknown field: did you mean \"serviceName\"?"),
        ];
        let details = ErrorDetails::with_bad_request(violations);
        let status = Status::with_error_details(Code::InvalidArgument, "bad", details);
        assert_eq!(
            explain(&status, "http://x", "web.yaml"),
            "2 problems in web.yaml:\n  spec.replicas: Invalid value: -1: must be greater than or equal to 0\n  spec.serviceNam: Unknown field: did you mean \"serviceName\"?"
        );
    }

    #[test]
    fn a_plain_refusal_is_its_message() {
        assert_eq!(explain(&Status::not_found("pod default/x not found"), "http://x", ""), "pod default/x not found");
    }
}
