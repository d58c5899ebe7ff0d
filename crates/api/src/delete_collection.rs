//! Asking for many objects to go: a page of a list, each object under its own guards (DEL-5).
//!
//! A page is deleted as a client would delete it object by object, with the uid that the list showed: what was made
//! again under the name in the meantime is another object and stays. One call takes one page, so that no call is
//! longer than its bound; the next one goes on where it ended, in the same list.

use futures::{StreamExt, TryStreamExt, stream};
use pb::{
    Kind,
    api::v1::{
        DeleteCollectionRequest, DeleteCollectionResponse, DeleteRequest, DeletedObject, ListRequest, ListResponse,
        Object as AnyObject,
    },
};

use crate::{
    Shared,
    error::{Error, Result, parse_kind},
};

/// Objects that are deleted at the same time.
const AT_ONCE: usize = 8;

impl Shared {
    /// Deletes a page of the objects that selectors match, or starts to. What was done when one of them fails stays
    /// done: asking again does the rest.
    pub async fn delete_collection(&self, request: DeleteCollectionRequest) -> Result<DeleteCollectionResponse> {
        let kind = parse_kind(&request.kind)?;
        let list = ListRequest {
            kind: request.kind.clone(),
            namespace: request.namespace.clone(),
            label_selector: request.label_selector.clone(),
            field_selector: request.field_selector.clone(),
            limit: request.limit,
            r#continue: request.r#continue.clone(),
            ..ListRequest::default()
        };
        let ListResponse { items, r#continue, .. } = self.list(list).await?;
        let deletions: Vec<_> = items.iter().map(|object| self.delete_listed(kind, object, &request)).collect();
        let deleted: Vec<_> = stream::iter(deletions).buffered(AT_ONCE).try_collect().await?;
        let items: Vec<_> = deleted.into_iter().flatten().collect();
        let count = i32::try_from(items.len()).unwrap_or(i32::MAX);
        Ok(DeleteCollectionResponse { items, count, r#continue })
    }

    /// Deletes one object of a list; None if it went, or made room for another, since it was listed.
    async fn delete_listed(
        &self,
        kind: Kind,
        object: &AnyObject,
        request: &DeleteCollectionRequest,
    ) -> Result<Option<DeletedObject>> {
        let meta = object.meta();
        let one = DeleteRequest {
            kind: kind.name().to_owned(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            propagation: request.propagation,
            grace_period_seconds: request.grace_period_seconds,
            uid: meta.uid.clone(),
            dry_run: request.dry_run,
            ..DeleteRequest::default()
        };
        match self.delete(one).await {
            Ok(answer) => Ok(Some(DeletedObject {
                namespace: meta.namespace.clone(),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
                gone: answer.gone,
            })),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(Error::Conflict(why)) => {
                let now = self.read(kind, &meta.namespace, &meta.name).await?;
                let same = now.is_some_and(|now| now.object.meta().uid == meta.uid);
                if same { Err(Error::Conflict(why)) } else { Ok(None) }
            }
            Err(error) => Err(error),
        }
    }
}
