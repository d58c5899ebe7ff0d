//! The scale of a set: how many replicas there are and shall be (rules SC).

use pb::{
    Kind, Object, ObjectExt,
    api::v1::{
        GetScaleRequest, GetScaleResponse, Object as AnyObject, Scale, UpdateScaleRequest, UpdateScaleResponse,
        object::Object as Variant,
    },
    objects::{LabelSelector, ObjectMeta, StatefulSet},
};

use crate::{
    Shared,
    error::{Error, Result, called},
    view,
    write::{DEFAULT_NAMESPACE, Part, updated},
};

/// The namespace that a request means.
pub fn namespace_or_default(namespace: &str) -> &str {
    if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace }
}

/// The scale of a set.
fn scale_of(set: &StatefulSet) -> Scale {
    let meta = set.meta();
    let spec = set.spec.as_ref();
    Scale {
        metadata: Some(ObjectMeta {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            creation_timestamp: meta.creation_timestamp,
            ..Default::default()
        }),
        spec_replicas: spec.and_then(|spec| spec.replicas).unwrap_or(1),
        status_replicas: set.status.as_ref().map_or(0, |status| status.replicas),
        selector: spec.and_then(|spec| spec.selector.as_ref()).map(selector_text).unwrap_or_default(),
    }
}

/// A selector in text form, such as `app=nginx,tier notin (a,b)`.
fn selector_text(selector: &LabelSelector) -> String {
    let equal = selector.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
    let other = selector.match_expressions.iter().map(|requirement| {
        let (key, values) = (&requirement.key, requirement.values.join(","));
        match requirement.operator.as_str() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.clone(),
        }
    });
    equal.chain(other).collect::<Vec<_>>().join(",")
}

impl Shared {
    /// Reads the scale of a set.
    pub async fn get_scale(&self, request: GetScaleRequest) -> Result<GetScaleResponse> {
        let namespace = namespace_or_default(&request.namespace);
        let set: StatefulSet = self.caches.get_typed(namespace, &request.name).await?;
        Ok(GetScaleResponse { scale: Some(scale_of(&set)) })
    }

    /// Says how many replicas a set shall have.
    pub async fn update_scale(&self, request: UpdateScaleRequest) -> Result<UpdateScaleResponse> {
        let namespace = namespace_or_default(&request.namespace);
        let decide = |old: &AnyObject| {
            let mut new = old.clone();
            view::declare_whole(&mut new);
            new.meta_mut().ok_or_else(|| Error::field("object", "Required value"))?.resource_version =
                request.resource_version.clone();
            if let Some(Variant::StatefulSet(set)) = &mut new.object {
                set.spec.get_or_insert_default().replicas = Some(request.replicas);
            }
            updated(old, new, Part::Main)
        };
        let outcome = self.modify(Kind::StatefulSet, namespace, &request.name, false, decide).await?;
        let set = StatefulSet::from_any(outcome.object()).map_err(|other| {
            let found = other.kind().map_or("nothing", Kind::name);
            Error::Bug(format!("{} is a {found}", called(Kind::StatefulSet, namespace, &request.name)))
        })?;
        debug_assert_eq!(set.name(), request.name);
        Ok(UpdateScaleResponse { scale: Some(scale_of(&set)) })
    }
}

#[cfg(test)]
mod tests {
    use pb::objects::LabelSelectorRequirement;

    use super::*;

    #[test]
    fn a_selector_reads_as_users_write_it() {
        let expression = |key: &str, operator: &str, values: &[&str]| LabelSelectorRequirement {
            key: key.into(),
            operator: operator.into(),
            values: values.iter().map(|value| (*value).to_owned()).collect(),
        };
        let selector = LabelSelector {
            match_labels: [("app".to_owned(), "nginx".to_owned())].into(),
            match_expressions: vec![
                expression("zone", "In", &["a", "b"]),
                expression("tier", "NotIn", &["web"]),
                expression("new", "Exists", &[]),
                expression("old", "DoesNotExist", &[]),
            ],
        };
        assert_eq!(selector_text(&selector), "app=nginx,zone in (a,b),tier notin (web),new,!old");
    }
}
