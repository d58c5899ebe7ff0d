//! `berth why`: why a set, a pod or a claim is not there yet.

use std::process::ExitCode;

use anyhow::{Result, bail};
use jiff::Timestamp;
use pb::{
    Kind,
    api::v1::{WhyRequest, WhyResponse},
};

use crate::{age, client::Client, target};

/// Flags of `berth why`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A pod such as web-2, also one that does not exist yet, a set such as web, or a claim such as pvc/www-web-0
    #[arg(required = true, value_name = "NAME | KIND/NAME")]
    what: Vec<String>,
}

/// Explains.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let name = asked(&args.what)?;
    let request = WhyRequest { namespace: client.namespace.clone(), name };
    let answer = client.api.clone().why(request).await.map_err(|status| client.refused(&status))?.into_inner();
    print!("{}", told(&answer, Timestamp::now()));
    Ok(ExitCode::SUCCESS)
}

/// What is asked about: a bare name may be that of a pod, a set or a claim.
fn asked(what: &[String]) -> Result<String> {
    let (kind, name) = target::one(what, Some(Kind::Pod))?;
    if !matches!(kind, Kind::Pod | Kind::StatefulSet | Kind::PersistentVolumeClaim) {
        bail!("only pods, sets and claims can be explained, not a {kind}; try `berth describe`");
    }
    let bare = what.len() == 1 && what.iter().all(|one| !one.contains('/'));
    Ok(if bare { name } else { format!("{}/{name}", kind.name()) })
}

fn told(answer: &WhyResponse, now: Timestamp) -> String {
    let mut out = format!("{}\n", answer.summary);
    for reason in &answer.reasons {
        let since = match &reason.since {
            Some(since) => format!(", for {}", age::since(Some(since), now)),
            None => String::new(),
        };
        out.push_str(&format!("  {}: {} ({}{since})\n", reason.object, reason.message, reason.reason));
        if !reason.advice.is_empty() {
            out.push_str(&format!("    -> {}\n", reason.advice));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use pb::api::v1::WhyReason;

    use super::*;

    #[test]
    fn a_kind_is_handed_on() {
        let asked = |what: &[&str]| asked(&what.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(asked(&["web"]).unwrap(), "web");
        assert_eq!(asked(&["pvc", "www-web-0"]).unwrap(), "PersistentVolumeClaim/www-web-0");
        assert_eq!(asked(&["sts/web"]).unwrap(), "StatefulSet/web");
        assert!(asked(&["svc/web"]).is_err());
    }

    #[test]
    fn reads_well() {
        let reason = WhyReason {
            object: "pod/web-1".into(),
            reason: "NotReady".into(),
            message: "its readiness probe fails".into(),
            since: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            advice: "berth logs web-1".into(),
        };
        let answer = WhyResponse { summary: "web-2 waits for web-1".into(), reasons: vec![reason] };
        assert_eq!(
            told(&answer, "2026-01-01T00:00:40Z".parse().unwrap()),
            "web-2 waits for web-1\n  pod/web-1: its readiness probe fails (NotReady, for 40s)\n    -> berth logs web-1\n"
        );
    }
}
