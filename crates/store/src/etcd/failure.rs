//! What an error of the client library says about a request: whether it can have taken effect, and whether another
//! member or another moment would help.
//!
//! Anything that is not known to be harmless counts as [`Failure::Lost`].

use std::error::Error as _;

use tonic::Code;

/// Why a request has no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// No member has seen it: there was no connection.
    NotSent(String),
    /// A member turned it away before it took effect; it may take it later.
    Busy(String),
    /// It may or may not have taken effect.
    Lost(String),
    /// A revision that is gone.
    Compacted,
    /// A revision that there is not yet.
    Future,
    /// A lease that is gone.
    LeaseEnded,
    /// A lease of that id is there.
    LeaseExists,
    /// Refused for good.
    Refused(String),
}

impl Failure {
    /// A request that was not answered in time.
    pub(super) fn timeout(endpoint: &str) -> Self {
        Self::Lost(format!("no answer from {endpoint} in time"))
    }

    /// From an error of the client library.
    pub(super) fn of(error: etcd_client::Error, endpoint: &str) -> Self {
        match error {
            etcd_client::Error::GRpcStatus(status) => Self::of_status(&status, endpoint),
            etcd_client::Error::InvalidArgs(why) => Self::Refused(why),
            etcd_client::Error::LeaseKeepAliveError(why) if why.contains("lease not found") => Self::LeaseEnded,
            other => Self::Lost(format!("{endpoint}: {other}")),
        }
    }

    pub(super) fn of_status(status: &tonic::Status, endpoint: &str) -> Self {
        let message = status.message();
        let why = || format!("{endpoint}: {message}");
        match status.code() {
            Code::Unavailable if never_connected(status) => Self::NotSent(format!("no connection to {endpoint}")),
            // Said by the member's front, before the request goes anywhere.
            Code::Unavailable if message == "etcdserver: no leader" => Self::Busy(why()),
            Code::ResourceExhausted if message == "etcdserver: too many requests" => Self::Busy(why()),
            Code::ResourceExhausted if message.contains("database space exceeded") => Self::Refused(format!(
                "{}; compact and defragment etcd or raise its quota, then disarm the alarm",
                why()
            )),
            Code::OutOfRange if message.contains("compacted") => Self::Compacted,
            Code::OutOfRange if message.contains("future revision") => Self::Future,
            Code::OutOfRange | Code::ResourceExhausted => Self::Refused(why()),
            Code::NotFound if message.contains("lease not found") => Self::LeaseEnded,
            Code::FailedPrecondition if message.contains("lease already exists") => Self::LeaseExists,
            Code::InvalidArgument
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented => Self::Refused(why()),
            code => Self::Lost(format!("{endpoint}: {message} ({code:?})")),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotSent(why) | Self::Busy(why) | Self::Lost(why) | Self::Refused(why) => f.write_str(why),
            Self::Compacted => f.write_str("the revision has been compacted"),
            Self::Future => f.write_str("the revision is in the future"),
            Self::LeaseEnded => f.write_str("the lease has ended"),
            Self::LeaseExists => f.write_str("the lease exists already"),
        }
    }
}

/// Whether the transport failed to connect, so that nothing was sent.
fn never_connected(status: &tonic::Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    fn of(code: Code, message: &str) -> Failure {
        Failure::of_status(&Status::new(code, message), "http://a")
    }

    #[test]
    fn what_may_have_taken_effect_is_lost() {
        for (code, message) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "error reading a body from connection"),
            (Code::Unknown, "raft proposal dropped"),
            (Code::Cancelled, "operation was canceled"),
            (Code::DeadlineExceeded, "context deadline exceeded"),
            (Code::Internal, "h2 protocol error"),
        ] {
            assert!(matches!(of(code, message), Failure::Lost(_)), "{code:?} {message}");
        }
    }

    #[test]
    fn what_cannot_have_taken_effect_is_not() {
        assert!(matches!(of(Code::Unavailable, "etcdserver: no leader"), Failure::Busy(_)));
        assert!(matches!(of(Code::ResourceExhausted, "etcdserver: too many requests"), Failure::Busy(_)));
        assert!(matches!(of(Code::InvalidArgument, "etcdserver: request is too large"), Failure::Refused(_)));
        assert!(matches!(of(Code::NotFound, "etcdserver: requested lease not found"), Failure::LeaseEnded));
        let compacted = "etcdserver: mvcc: required revision has been compacted";
        assert!(matches!(of(Code::OutOfRange, compacted), Failure::Compacted));
    }
}
