//! Changes a part of an object that is there: read, changed, written back unless others were faster.

use anyhow::{Result, bail};
use pb::{
    Kind,
    api::v1::{Object as AnyObject, UpdateRequest},
};
use tonic::Code;

use crate::{client::Client, output};

/// How often a change is made again when others change the object at the same time.
const ATTEMPTS: u32 = 5;

/// Changes an object; false if there was nothing to change.
pub async fn object(
    client: &Client,
    kind: Kind,
    name: &str,
    dry_run: bool,
    change: impl Fn(&mut AnyObject) -> Result<()>,
) -> Result<bool> {
    for _ in 0..ATTEMPTS {
        let old = client.get(kind, name).await?;
        let mut new = old.clone();
        change(&mut new)?;
        if new == old {
            return Ok(false);
        }
        let request = UpdateRequest { object: Some(new), dry_run, ..UpdateRequest::default() };
        match client.api.clone().update(request).await {
            Ok(_) => return Ok(true),
            Err(status) if status.code() == Code::Aborted => {}
            Err(status) => return Err(client.refused(&status)),
        }
    }
    bail!("{} is changed by others all the time; try again", output::called(kind, name))
}

/// What stands behind an answer that only checked.
pub fn dry(dry_run: bool) -> &'static str {
    if dry_run { " (dry run)" } else { "" }
}
