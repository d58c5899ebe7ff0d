//! Volumes as sets see them: claims that grow, and data that is kept between two revisions.

use pb::{ObjectExt, objects::*};
use sim::script::{Stage, Story};

use crate::hold;

fn resize(spec: &mut StatefulSetSpec, size: &str) {
    for template in &mut spec.volume_claim_templates {
        let resources = template.spec.get_or_insert_default().resources.get_or_insert_default();
        resources.requests.insert("storage".to_owned(), Quantity { value: size.to_owned() });
    }
}

/// The sizes of all volumes, in the order of their claims.
fn sizes(stage: &Stage) -> String {
    let size = |claim: &PersistentVolumeClaim| {
        let capacity = claim.status.as_ref().and_then(|status| status.capacity.get("storage"));
        capacity.map(|size| size.value.clone()).unwrap_or_default()
    };
    stage.all::<PersistentVolumeClaim>().iter().map(size).collect::<Vec<_>>().join(" ")
}

fn sized(name: &'static str) -> Story {
    Story::new(name).create_with("3 with 1Gi each", |spec| {
        spec.replicas = Some(3);
        resize(spec, "1Gi");
    })
}

fn have(story: Story, wanted: &'static str) -> Story {
    story.expect(&format!("volumes of {wanted}"), move |stage| {
        let have = sizes(stage);
        if have == wanted { Ok(()) } else { Err(format!("volumes have {have}, not {wanted}")) }
    })
}

/// VCT-1, VCT-2: the template grows, the claims follow, and no pod is touched.
#[test]
fn claims_follow_their_template() {
    let story = sized("grow").settle().mark().change("2Gi each", |spec| resize(spec, "2Gi")).settle();
    hold(&have(story, "2Gi 2Gi 2Gi").kept("web-0 web-1 web-2"));
}

/// VCT-3: with a new template of pods at the same time.
#[test]
fn claims_grow_with_an_update() {
    let story = sized("grow and update").settle().change("2Gi each and version 2", |spec| {
        resize(spec, "2Gi");
        sim::script::set_image(spec, "2");
    });
    hold(&have(story.settle(), "2Gi 2Gi 2Gi").pods("web-0:2 web-1:2 web-2:2"));
}

/// VOL-4: each ordinal's data is in a snapshot of its own when the update is through, and in one alone.
#[test]
fn data_is_in_snapshots_before_an_update() {
    let story = sized("snapshots").settle().change("snapshots from now on", |spec| {
        spec.volume_policy =
            Some(StatefulSetVolumePolicy { snapshot_before_update: true, ..StatefulSetVolumePolicy::default() });
    });
    hold(&story.settle().image("2").settle().pods("web-0:2 web-1:2 web-2:2").expect("a snapshot of each", |stage| {
        let source = |one: &VolumeSnapshot| {
            let source = one.spec.as_ref().and_then(|spec| spec.source.as_ref());
            source.map(|source| source.persistent_volume_claim_name.clone()).unwrap_or_default()
        };
        let all = stage.all::<VolumeSnapshot>();
        let of: Vec<_> = all.iter().map(source).collect();
        if of == ["data-web-0", "data-web-1", "data-web-2"] {
            Ok(())
        } else {
            Err(format!("{:?}", all.iter().map(ObjectExt::name).collect::<Vec<_>>()))
        }
    }));
}
