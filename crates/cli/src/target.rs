//! What a command is about: `pods`, `pods,pvc`, `pod web-0`, `sts/web svc/nginx`.

use std::str::FromStr;

use anyhow::{Result, bail};
use pb::Kind;

/// A kind, and the name of one of its objects or none for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The kind.
    pub kind: Kind,
    /// The object; all of the kind if there is none.
    pub name: Option<String>,
    /// The view of sets that is asked for: `apps/v1`, `berth/v1`, or empty for the one that shows all that is set.
    pub view: &'static str,
}

/// Reads a kind as people write it, also with its group behind a dot: `statefulset.apps`.
pub fn kind(text: &str) -> Result<Kind> {
    let bare = text.split('.').next().unwrap_or(text);
    Ok(Kind::from_str(bare).map_err(|_| pb::UnknownKind(text.to_owned()))?)
}

/// Reads the view of a set out of its kind: `statefulsets.apps` is without what Berth adds, `statefulsets.berth` with
/// it. A version may stand before the group, as in `sts.v1.apps`.
fn view(text: &str) -> Result<&'static str> {
    if kind(text)? != Kind::StatefulSet {
        return Ok("");
    }
    match text.split_once('.').map(|(_, group)| group.strip_prefix("v1.").unwrap_or(group)) {
        None => Ok(""),
        Some("apps") => Ok(model::view::APPS),
        Some("berth") => Ok(model::view::BERTH),
        Some(_) => bail!("there is no {text:?}: write statefulsets, statefulsets.apps or statefulsets.berth"),
    }
}

/// Reads the positional arguments of a command.
pub fn targets(args: &[String]) -> Result<Vec<Target>> {
    let slashed = args.iter().filter(|arg| arg.contains('/')).count();
    if slashed > 0 {
        if slashed < args.len() {
            bail!("write either KIND/NAME for each, or one KIND and then names");
        }
        return args.iter().map(|arg| one_slashed(arg)).collect();
    }
    let Some((kinds, names)) = args.split_first() else {
        bail!("name a kind, such as pods, or an object, such as pod/web-0; `berth api-resources` lists the kinds");
    };
    let kinds = kinds.split(',').filter(|kind| !kind.is_empty()).map(expand).collect::<Result<Vec<_>>>()?.concat();
    if !names.is_empty() && kinds.len() > 1 {
        bail!("names can be given for one kind only; write pod/web-0 pvc/www-web-0 for several");
    }
    if names.is_empty() {
        return Ok(kinds.into_iter().map(|(kind, view)| Target { kind, name: None, view }).collect());
    }
    let of = |(kind, view)| names.iter().map(move |name| Target { kind, name: Some(name.clone()), view });
    Ok(kinds.into_iter().flat_map(of).collect())
}

/// Reads exactly one object: `web-0` of the kind that the command is about, `pod/web-0` or `pod web-0`.
pub fn one(args: &[String], usual: Option<Kind>) -> Result<(Kind, String)> {
    if let ([name], Some(kind)) = (args, usual)
        && !name.contains('/')
    {
        return Ok((kind, name.clone()));
    }
    match targets(args)?.as_slice() {
        [Target { kind, name: Some(name), .. }] => Ok((*kind, name.clone())),
        _ => bail!("name one object, such as sts/web"),
    }
}

fn expand(text: &str) -> Result<Vec<(Kind, &'static str)>> {
    match text {
        "all" => Ok(vec![(Kind::Pod, ""), (Kind::Service, ""), (Kind::StatefulSet, "")]),
        one => Ok(vec![(kind(one)?, view(one)?)]),
    }
}

fn one_slashed(arg: &str) -> Result<Target> {
    match arg.split_once('/') {
        Some((of, name)) if !of.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Target { kind: kind(of)?, name: Some(name.to_owned()), view: view(of)? })
        }
        _ => bail!("{arg:?} is not of the form KIND/NAME"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Vec<Target>> {
        targets(&args.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn forms() {
        let named = |kind, name: &str| Target { kind, name: Some(name.to_owned()), view: "" };
        let all = |kind| Target { kind, name: None, view: "" };
        assert_eq!(read(&["pods,pvc"]).unwrap(), [all(Kind::Pod), all(Kind::PersistentVolumeClaim)]);
        assert_eq!(read(&["po", "a", "b"]).unwrap(), [named(Kind::Pod, "a"), named(Kind::Pod, "b")]);
        assert_eq!(
            read(&["sts/web", "Service/x"]).unwrap(),
            [named(Kind::StatefulSet, "web"), named(Kind::Service, "x")]
        );
        for (text, view) in [("statefulsets.apps", "apps/v1"), ("sts.v1.apps", "apps/v1"), ("sts.berth", "berth/v1")] {
            assert_eq!(read(&[text, "web"]).unwrap(), [Target { view, ..named(Kind::StatefulSet, "web") }]);
        }
        assert_eq!(read(&["sc.storage.k8s.io/x"]).unwrap(), [named(Kind::StorageClass, "x")]);
        for bad in [&[][..], &["pods,pvc", "a"], &["pod/a", "b"], &["pod/"], &["deployments"], &["sts.batch"]] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        assert_eq!(one(&["web".to_owned()], Some(Kind::StatefulSet)).unwrap(), (Kind::StatefulSet, "web".to_owned()));
    }
}
