//! To which nodes a volume is attached.
//!
//! An attachment object is written before a driver is called for it, and ends after the driver has said that it is
//! undone: while one exists, the volume may be attached there. A volume for one node at a time has at most one.
//!
//! Must never: want a volume for one node on two; detach one while a pod object on the node uses it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pb::{
    Object, ObjectExt,
    objects::{
        ObjectMeta, PersistentVolume, VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec,
        VolumeAttachmentStatus, VolumeError,
    },
};

use super::is_single_node;

/// A pod that has a node and uses the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User<'a> {
    /// Its name.
    pub pod: &'a str,
    /// The node.
    pub node: &'a str,
    /// Whether it still starts: it neither terminates nor has it ended.
    pub starts: bool,
}

/// What is known around a volume.
#[derive(Clone, Debug)]
pub struct Around<'a> {
    /// Whether the driver wants its volumes attached.
    pub required: bool,
    /// All pods that have a node and use the volume.
    pub users: Vec<User<'a>>,
    /// All its attachments.
    pub attachments: Vec<&'a VolumeAttachment>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step<'a> {
    /// Write an attachment to this node; nothing has been called yet.
    Want(&'a str),
    /// Call the driver to attach.
    Publish(&'a VolumeAttachment),
    /// Write that the attachment ends.
    Retract(&'a VolumeAttachment),
    /// See that the node has let go, call the driver to detach, then end the attachment.
    Unpublish(&'a VolumeAttachment),
    /// A pod waits.
    Wait(String),
}

/// What to do about a volume, in this order.
pub fn attach<'a>(volume: &PersistentVolume, around: &Around<'a>) -> Vec<Step<'a>> {
    let mut steps = Vec::new();
    // By node: what there is.
    let there: BTreeMap<&str, &VolumeAttachment> =
        around.attachments.iter().map(|attachment| (node_of(attachment), *attachment)).collect();
    for attachment in &around.attachments {
        let used = around.users.iter().any(|user| user.node == node_of(attachment));
        if attachment.is_terminating() {
            steps.push(Step::Unpublish(attachment));
        } else if !used {
            steps.push(Step::Retract(attachment));
        } else if !is_attached(attachment) {
            steps.push(Step::Publish(attachment));
        }
    }
    if !around.required || volume.is_terminating() {
        return steps;
    }
    let spec = volume.spec.clone().unwrap_or_default();
    let single = is_single_node(&spec.access_modes);
    let mut taken = there.keys().next().copied();
    let mut wanted: Vec<&str> = Vec::new();
    let starting = around.users.iter().filter(|user| user.starts && !there.contains_key(user.node));
    for user in starting {
        if wanted.contains(&user.node) {
            continue;
        }
        match taken.filter(|_| single) {
            Some(node) => {
                let by: Vec<&str> = around.users.iter().filter(|u| u.node == node).map(|user| user.pod).collect();
                let by = if by.is_empty() {
                    "being detached from it".to_owned()
                } else {
                    format!("used there by {}", by.join(", "))
                };
                steps.push(Step::Wait(format!(
                    "Multi-Attach error for volume {:?}: pod {} waits for it on node {}; it is attached to node {node} \
                     and {by}",
                    volume.name(),
                    user.pod,
                    user.node
                )));
            }
            None => {
                taken = Some(user.node);
                wanted.push(user.node);
                steps.push(Step::Want(user.node));
            }
        }
    }
    steps
}

/// The node of an attachment.
pub fn node_of(attachment: &VolumeAttachment) -> &str {
    attachment.spec.as_ref().map_or("", |spec| spec.node_name.as_str())
}

/// The volume of an attachment.
pub fn volume_of(attachment: &VolumeAttachment) -> &str {
    let source = attachment.spec.as_ref().and_then(|spec| spec.source.as_ref());
    source.map_or("", |source| source.persistent_volume_name.as_str())
}

/// Whether the driver has said that the volume is attached.
pub fn is_attached(attachment: &VolumeAttachment) -> bool {
    attachment.status.as_ref().is_some_and(|status| status.attached)
}

/// The attachment of a volume to a node, before anyone is called.
pub fn attachment(volume: &str, driver: &str, node: &str, uid: &str, now: Timestamp) -> VolumeAttachment {
    VolumeAttachment {
        metadata: Some(ObjectMeta {
            name: name(volume, driver, node),
            uid: uid.to_owned(),
            generation: 1,
            creation_timestamp: Some(now.into()),
            ..ObjectMeta::default()
        }),
        spec: Some(VolumeAttachmentSpec {
            attacher: driver.to_owned(),
            node_name: node.to_owned(),
            source: Some(VolumeAttachmentSource { persistent_volume_name: volume.to_owned() }),
        }),
        status: Some(VolumeAttachmentStatus::default()),
        ..VolumeAttachment::default()
    }
}

/// The name of the attachment of a volume to a node: the same for every try.
pub fn name(volume: &str, driver: &str, node: &str) -> String {
    let text = [volume, driver, node].join("\n");
    format!("csi-{}", super::digest(&text))
}

/// The attachment after the driver has answered.
pub fn attached(attachment: &VolumeAttachment, metadata: BTreeMap<String, String>) -> VolumeAttachment {
    let mut attachment = attachment.clone();
    attachment.status = Some(VolumeAttachmentStatus {
        attached: true,
        attachment_metadata: metadata,
        attach_error: None,
        detach_error: None,
    });
    attachment
}

/// The attachment on its way to end.
pub fn retracted(attachment: &VolumeAttachment, now: Timestamp) -> VolumeAttachment {
    let mut attachment = attachment.clone();
    attachment.meta_mut().deletion_timestamp = Some(now.into());
    attachment
}

/// The attachment with what went wrong; None if it says so already.
pub fn with_error(attachment: &VolumeAttachment, why: &str, now: Timestamp) -> Option<VolumeAttachment> {
    let mut with = attachment.clone();
    let ends = attachment.is_terminating();
    let status = with.status.get_or_insert_default();
    let place = if ends { &mut status.detach_error } else { &mut status.attach_error };
    if place.as_ref().is_some_and(|error| error.message == why) {
        return None;
    }
    *place = Some(VolumeError { time: Some(now.into()), message: why.to_owned() });
    Some(with)
}
