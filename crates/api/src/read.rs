//! Reading: one object, and pages of many that all show one revision.
//!
//! A list that fits one page comes from the cache, once that shows everything this process wrote. A longer one comes
//! from the store, all pages at the first one's revision: a list is never a mix of two moments.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use model::view::View;
use pb::{
    Kind,
    api::v1::{GetRequest, GetResponse, ListRequest, ListResponse, Object as AnyObject},
};
use prost::Message;
use store::{Key, PageRequest, Prefix, Revision};

use crate::{
    Shared,
    caches::Stored,
    error::{Error, Result, Violation, parse_kind},
    select::Selection,
    view,
    write::DEFAULT_NAMESPACE,
};

/// Objects a page when the client names no bound, and at most.
const PAGE: usize = 500;
/// Bytes after which a page is full: clients take messages of 4 MiB, and one object has at most 1.5 MiB.
const PAGE_BYTES: usize = 2 << 20;
/// Pages of the store that one request may read while it looks for objects that the selectors let through.
const STORE_PAGES: usize = 8;

/// Where a list goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Continue {
    revision: Revision,
    after: Key,
}

impl Continue {
    fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{} {}", self.revision, self.after))
    }

    /// The token, if it goes on within the prefix that it is given for.
    fn parse(text: &str, prefix: &Prefix) -> Result<Self> {
        let read = || {
            let plain = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
            let (revision, after) = plain.split_once(' ')?;
            Some(Self { revision: revision.parse().ok()?, after: Key::from_raw(after) })
        };
        let why = "must be the token of the page before, with the same kind and namespace";
        let token = read().filter(|token| prefix.contains(&token.after) && token.revision > 0);
        token.ok_or_else(|| Error::Invalid(vec![Violation::value("continue", text, why)]))
    }
}

impl Shared {
    /// Reads one object.
    pub async fn get(&self, request: GetRequest) -> Result<GetResponse> {
        let kind = parse_kind(&request.kind)?;
        let view = view::parse(kind, &request.api_version)?;
        let namespace = if request.namespace.is_empty() { DEFAULT_NAMESPACE } else { &request.namespace };
        let stored = self.caches.get(kind, namespace, &request.name).await?;
        let stored = stored.ok_or_else(|| Error::not_found(kind, namespace, &request.name))?;
        Ok(GetResponse { object: Some(view::shown(view, stored.object.clone())) })
    }

    /// Reads a page of objects.
    pub async fn list(&self, request: ListRequest) -> Result<ListResponse> {
        let kind = parse_kind(&request.kind)?;
        let view = view::parse(kind, &request.api_version)?;
        let selection = Selection::parse(kind, &request.label_selector, &request.field_selector)?;
        let limit = match usize::try_from(request.limit) {
            Ok(0) => PAGE,
            Ok(limit) => limit.min(PAGE),
            Err(_) => {
                let why = Violation::value("limit", request.limit, "must be greater than or equal to 0");
                return Err(Error::Invalid(vec![why]));
            }
        };
        let prefix = Prefix::namespace(kind, &request.namespace);
        if !request.r#continue.is_empty() {
            let Continue { revision, after } = Continue::parse(&request.r#continue, &prefix)?;
            return self.list_stored(kind, &prefix, &selection, Page::new(limit, view), Some((revision, after))).await;
        }
        let (all, revision) = self.caches.list(kind, &request.namespace).await?;
        let mut page = Page::new(limit, view);
        for stored in all.iter().filter(|stored| selection.matches(&stored.object)) {
            if page.is_full() {
                // The cache may show a revision that the store will not remember for long: more than one page is read
                // from the store, at its present revision, from the start.
                return self.list_stored(kind, &prefix, &selection, Page::new(limit, view), None).await;
            }
            page.push(stored.object.clone());
        }
        Ok(answer(page.items, revision, None))
    }

    /// A page as the store had it at one revision; at the present one if none is given.
    async fn list_stored(
        &self,
        kind: Kind,
        prefix: &Prefix,
        selection: &Selection,
        mut page: Page,
        from: Option<(Revision, Key)>,
    ) -> Result<ListResponse> {
        let (mut revision, mut after) = from.unzip();
        for _ in 0..STORE_PAGES {
            let request = PageRequest { limit: PAGE, after: after.clone(), revision };
            let read = self.store.list(prefix, request).await?;
            let pinned = *revision.get_or_insert(read.revision);
            for kv in &read.items {
                if page.is_full() {
                    return Ok(answer(page.items, pinned, after));
                }
                let stored = Stored::decode(kind, kv)?;
                after = Some(stored.key);
                if selection.matches(&stored.object) {
                    page.push(stored.object);
                }
            }
            if !read.more {
                return Ok(answer(page.items, pinned, None));
            }
        }
        // What was looked at let nothing more through; the client goes on from here.
        Ok(answer(page.items, revision.unwrap_or_default(), after))
    }
}

/// Objects on their way to a client.
struct Page {
    items: Vec<AnyObject>,
    limit: usize,
    bytes: usize,
    view: View,
}

impl Page {
    fn new(limit: usize, view: View) -> Self {
        Self { items: Vec::new(), limit, bytes: 0, view }
    }

    fn is_full(&self) -> bool {
        self.items.len() >= self.limit || self.bytes >= PAGE_BYTES
    }

    fn push(&mut self, object: AnyObject) {
        self.bytes += object.encoded_len();
        self.items.push(view::shown(self.view, object));
    }
}

fn answer(items: Vec<AnyObject>, revision: Revision, after: Option<Key>) -> ListResponse {
    ListResponse {
        items,
        resource_version: revision.to_string(),
        r#continue: after.map(|after| Continue { revision, after }.to_text()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_on_only_where_it_was_made_for() {
        let token = Continue { revision: 7, after: Key::object(Kind::Pod, "default", "web-0") };
        let parse = |prefix: Prefix| Continue::parse(&token.to_text(), &prefix);
        assert_eq!(parse(Prefix::kind(Kind::Pod)).unwrap(), token);
        assert!(parse(Prefix::kind(Kind::Secret)).is_err());
        assert!(parse(Prefix::namespace(Kind::Pod, "other")).is_err());
        assert!(Continue::parse("nonsense", &Prefix::kind(Kind::Pod)).is_err());
    }
}
