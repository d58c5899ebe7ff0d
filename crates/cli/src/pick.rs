//! Which pods are meant by `web-0`, `sts/web` or `svc/nginx`.

use anyhow::{Context, Result, bail};
use model::identity::PodName;
use pb::{
    Kind, Object, ObjectExt,
    api::v1::{GetScaleRequest, ListRequest},
    objects::{Pod, Service},
};

use crate::{client::Client, commands::holds, target};

/// What a pod is chosen by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Its name.
    Pod(String),
    /// Its set.
    Set(String),
    /// A Service that it stands behind.
    Service(String),
}

impl Choice {
    /// Reads `web-0`, `pod/web-0`, `sts/web` or `svc/nginx`.
    pub fn read(text: &str) -> Result<Self> {
        match target::one(&[text.to_owned()], Some(Kind::Pod))? {
            (Kind::Pod, name) => Ok(Self::Pod(name)),
            (Kind::StatefulSet, name) => Ok(Self::Set(name)),
            (Kind::Service, name) => Ok(Self::Service(name)),
            (kind, name) => bail!("{kind} {name} has no pods: name a pod, sts/SET or svc/SERVICE"),
        }
    }

    /// Labels that all its pods have, as a selector.
    pub async fn selector(&self, client: &Client) -> Result<String> {
        match self {
            Self::Pod(_) => Ok(String::new()),
            Self::Set(name) => {
                let request = GetScaleRequest { namespace: client.namespace.clone(), name: name.clone() };
                let scale = client.api.clone().get_scale(request).await.map_err(|status| client.refused(&status))?;
                Ok(scale.into_inner().scale.unwrap_or_default().selector)
            }
            Self::Service(name) => {
                let service: Service = get(client, name).await?;
                let selector = service.spec.map(|spec| spec.selector).unwrap_or_default();
                if selector.is_empty() {
                    bail!("service {name} selects no pods: name a pod");
                }
                let terms: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
                Ok(terms.join(","))
            }
        }
    }

    /// Whether a pod that the selector lets through is one of its pods.
    pub fn owns(&self, pod: &Pod) -> bool {
        let Self::Set(set) = self else { return true };
        let owners = pod.metadata.iter().flat_map(|meta| &meta.owner_references);
        owners
            .into_iter()
            .any(|owner| owner.controller == Some(true) && owner.kind == "StatefulSet" && owner.name == *set)
    }

    /// Its pods, in order of their ordinals.
    pub async fn pods(&self, client: &Client) -> Result<Vec<Pod>> {
        if let Self::Pod(name) = self {
            return Ok(vec![get(client, name).await?]);
        }
        let mut pods = selected(client, &self.selector(client).await?).await?;
        pods.retain(|pod| self.owns(pod));
        Ok(pods)
    }

    /// One of its pods: one that is ready, if there is one. Which of several it is, is said on standard error.
    pub async fn one(&self, client: &Client) -> Result<Pod> {
        let mut pods = self.pods(client).await?;
        let many = pods.len();
        pods.sort_by_key(|pod| (!is_ready(pod), !is_running(pod)));
        let Some(pod) = pods.into_iter().next() else {
            bail!("there is no pod of {} now; `berth why` says what a set waits for", self.name());
        };
        if many > 1 {
            eprintln!("note: {many} pods, this is pod/{}", pod.name());
        }
        Ok(pod)
    }

    fn name(&self) -> &str {
        match self {
            Self::Pod(name) | Self::Set(name) | Self::Service(name) => name,
        }
    }
}

/// The pods that labels select, in order of their ordinals.
pub async fn selected(client: &Client, selector: &str) -> Result<Vec<Pod>> {
    let request = ListRequest {
        kind: Kind::Pod.name().to_owned(),
        namespace: client.namespace.clone(),
        label_selector: selector.to_owned(),
        ..ListRequest::default()
    };
    let (objects, _) = client.list(request).await?;
    let mut pods: Vec<Pod> = objects.into_iter().filter_map(|object| Pod::from_any(object).ok()).collect();
    // web-10 comes after web-9.
    pods.sort_by_key(|pod| {
        let name = PodName::from(pod.name());
        let split = name.split().map(|(set, ordinal)| (set.as_str().to_owned(), Some(ordinal)));
        split.unwrap_or_else(|| (pod.name().to_owned(), None))
    });
    Ok(pods)
}

/// One object by its name.
pub async fn get<T: Object>(client: &Client, name: &str) -> Result<T> {
    let object = client.get(T::KIND, name).await?;
    T::from_any(object).ok().context("the API service answered with an object of another kind")
}

/// Whether a pod is ready.
pub fn is_ready(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| holds(&status.conditions, "Ready"))
}

fn is_running(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| status.phase == "Running")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_pods_can_be_named() {
        assert_eq!(Choice::read("web-0").unwrap(), Choice::Pod("web-0".to_owned()));
        assert_eq!(Choice::read("sts/web").unwrap(), Choice::Set("web".to_owned()));
        assert_eq!(Choice::read("svc/nginx").unwrap(), Choice::Service("nginx".to_owned()));
        assert!(Choice::read("pvc/www").unwrap_err().to_string().contains("sts/SET"));
    }
}
