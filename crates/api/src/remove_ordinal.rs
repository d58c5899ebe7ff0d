//! Takes one ordinal out of a set for good: one replica less, and the ordinal reserved, in one write.
//!
//! With two writes there would be a moment at which the set asks for another pod in the place of the one that goes, or
//! has lost a pod at the wrong end.

use model::{identity::Ordinal, ordinals::Ordinals};
use pb::{
    Kind, Object as _,
    api::v1::{Object as AnyObject, RemoveOrdinalRequest, RemoveOrdinalResponse, object::Object as Variant},
    objects::{IntOrString, StatefulSet, StatefulSetSpec},
};

use crate::{
    Shared,
    error::{Error, Result, Violation, called},
    object::meta_mut,
    scale::namespace_or_default,
    view,
    write::{Part, updated},
};

/// Ordinals that an error names.
const SHOWN: usize = 10;

/// Takes an ordinal out of what is wanted.
fn remove(spec: &mut StatefulSetSpec, set: &str, ordinal: i32) -> Result<()> {
    let ordinals = Ordinals::of(spec);
    if !u32::try_from(ordinal).is_ok_and(|ordinal| ordinals.contains(Ordinal(ordinal))) {
        let why = format!("{set} has {}: only one of these can be removed", listed(&ordinals));
        return Err(Error::Invalid(vec![Violation::value("ordinal", ordinal, why)]));
    }
    spec.replicas = Some(spec.replicas.unwrap_or(1) - 1);
    spec.ordinals.get_or_insert_default().reserved.push(IntOrString::int(ordinal));
    Ok(())
}

/// The ordinals that a set has, in few words.
fn listed(ordinals: &Ordinals) -> String {
    let mut texts: Vec<_> = ordinals.iter().take(SHOWN).map(|ordinal| ordinal.to_string()).collect();
    if let (Some(last), true) = (ordinals.iter().next_back(), usize::try_from(ordinals.count).is_ok_and(|n| n > SHOWN))
    {
        texts.push(format!("... {last}"));
    }
    match texts.as_slice() {
        [] => "no ordinals".to_owned(),
        [one] => format!("the ordinal {one}"),
        many => format!("the ordinals {}", many.join(", ")),
    }
}

impl Shared {
    /// Takes an ordinal out of a set.
    pub async fn remove_ordinal(&self, request: RemoveOrdinalRequest) -> Result<RemoveOrdinalResponse> {
        let RemoveOrdinalRequest { name, ordinal, resource_version, dry_run, .. } = &request;
        let namespace = namespace_or_default(&request.namespace);
        let decide = |old: &AnyObject| {
            let mut new = old.clone();
            view::declare_whole(&mut new);
            meta_mut(&mut new)?.resource_version.clone_from(resource_version);
            if let Some(Variant::StatefulSet(set)) = &mut new.object {
                remove(set.spec.get_or_insert_default(), name, *ordinal)?;
            }
            updated(old, new, Part::Main)
        };
        let outcome = self.modify(Kind::StatefulSet, namespace, name, *dry_run, decide).await?;
        let set = StatefulSet::from_any(outcome.object());
        let set = set.map_err(|_| Error::Bug(format!("{} is no set", called(Kind::StatefulSet, namespace, name))))?;
        Ok(RemoveOrdinalResponse { set: Some(set) })
    }
}

#[cfg(test)]
mod tests {
    use pb::objects::StatefulSetOrdinals;

    use super::*;

    fn spec(start: i32, replicas: i32, reserved: &[&str]) -> StatefulSetSpec {
        let reserved = reserved.iter().map(|text| IntOrString::text(*text)).collect();
        StatefulSetSpec {
            replicas: Some(replicas),
            ordinals: Some(StatefulSetOrdinals { start, reserved }),
            ..StatefulSetSpec::default()
        }
    }

    #[test]
    fn one_pod_goes_and_all_others_stay() {
        for start in 0..3 {
            for reserved in [&[][..], &["1"], &["0", "3-4"]] {
                let before = spec(start, 5, reserved);
                let pods = |spec: &StatefulSetSpec| Ordinals::of(spec).iter().collect::<Vec<_>>();
                for gone in pods(&before) {
                    let mut after = before.clone();
                    remove(&mut after, "web", i32::try_from(gone.0).unwrap()).unwrap();
                    let expected: Vec<_> = pods(&before).into_iter().filter(|ordinal| *ordinal != gone).collect();
                    assert_eq!(pods(&after), expected);
                }
            }
        }
    }

    #[test]
    fn what_the_set_does_not_have_cannot_go() {
        let refused =
            |spec: &StatefulSetSpec, ordinal| remove(&mut spec.clone(), "web", ordinal).unwrap_err().to_string();
        assert_eq!(
            refused(&spec(1, 3, &["2"]), 2),
            "ordinal: Invalid value: 2: web has the ordinals 1, 3, 4: only one of these can be removed"
        );
        assert!(refused(&spec(0, 50, &[]), -1).contains("0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... 49:"));
        assert!(refused(&spec(0, 0, &[]), 0).contains("no ordinals"));
        assert!(refused(&spec(0, 1, &[]), 1).contains("the ordinal 0:"));
    }
}
