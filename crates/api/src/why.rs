//! Why a set or a pod is not there yet.

use pb::api::v1::{WhyRequest, WhyResponse};

use crate::{Shared, error::Result};

impl Shared {
    /// Explains why a set or a pod is not there yet.
    pub async fn why(&self, _request: WhyRequest) -> Result<WhyResponse> {
        Ok(WhyResponse::default())
    }
}
