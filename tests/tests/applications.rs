//! The applications of `examples/` live through what happens to them, and hold at the end every write that they
//! acknowledged.
//!
//! `APPLICATIONS=etcd,zookeeper` says which, `APPLICATIONS=all` has all of them; etcd alone is part of `make test`.

use anyhow::{Result, ensure};
use tests::{
    LabGuard,
    applications::{ALL, Application, stage, story::Story},
};

/// What `make test` has time for.
const USUALLY: &str = "etcd";

#[tokio::test(flavor = "multi_thread")]
async fn applications_hold_what_they_acknowledged() -> Result<()> {
    for application in chosen()? {
        let images = stage::images(application, &ALL)?;
        let lab = LabGuard::up_with(&[("BERTH_IMAGES", &images.path().display().to_string())])?;
        Story::new(&lab, application, &ALL)?.tell().await?;
        drop(lab);
        tests::nothing_is_left()?;
    }
    Ok(())
}

fn chosen() -> Result<Vec<Application>> {
    let asked = std::env::var("APPLICATIONS").unwrap_or_else(|_| USUALLY.to_owned());
    let names: Vec<&str> = asked.split(',').collect();
    let found: Vec<_> = ALL.into_iter().filter(|one| asked == "all" || names.contains(&one.name)).collect();
    let known: Vec<_> = ALL.iter().map(|one| one.name).collect();
    ensure!(asked == "all" || found.len() == names.len(), "APPLICATIONS={asked}: there are {}", known.join(", "));
    Ok(found)
}
