//! How a volume is used, in CSI's words.

use pb::{
    csi::v1::{
        VolumeCapability,
        volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
    },
    objects::PersistentVolumeSpec,
};

/// Whether a volume is for one pod at a time.
pub fn is_for_one_pod(access_modes: &[String]) -> bool {
    !access_modes.is_empty() && access_modes.iter().all(|mode| mode == "ReadWriteOncePod")
}

/// The capability with which a volume is staged and published. A driver that does not know the newer modes for a single
/// node (`multi_writer`) gets the old one.
pub fn capability(spec: &PersistentVolumeSpec, multi_writer: bool) -> VolumeCapability {
    let fs_type = spec.csi.as_ref().map(|csi| csi.fs_type.clone()).unwrap_or_default();
    let mount = MountVolume { fs_type, mount_flags: spec.mount_options.clone(), ..Default::default() };
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode(&spec.access_modes, multi_writer).into() }),
        access_type: Some(AccessType::Mount(mount)),
    }
}

/// The widest of the volume's modes.
fn mode(access_modes: &[String], multi_writer: bool) -> Mode {
    let has = |wanted: &str| access_modes.iter().any(|mode| mode == wanted);
    if has("ReadWriteMany") {
        return Mode::MultiNodeMultiWriter;
    }
    let once = has("ReadWriteOnce") || access_modes.is_empty();
    match (once, has("ReadWriteOncePod"), multi_writer) {
        (true, _, true) => Mode::SingleNodeMultiWriter,
        (false, true, true) => Mode::SingleNodeSingleWriter,
        (true, _, false) | (false, true, false) => Mode::SingleNodeWriter,
        (false, false, _) => Mode::MultiNodeReaderOnly,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_said_as_the_driver_knows_them() {
        for (modes, multi_writer, says) in [
            (&["ReadWriteOnce"][..], false, Mode::SingleNodeWriter),
            (&["ReadWriteOnce"], true, Mode::SingleNodeMultiWriter),
            (&["ReadWriteOncePod"], false, Mode::SingleNodeWriter),
            (&["ReadWriteOncePod"], true, Mode::SingleNodeSingleWriter),
            (&["ReadWriteOnce", "ReadOnlyMany"], false, Mode::SingleNodeWriter),
            (&["ReadOnlyMany"], true, Mode::MultiNodeReaderOnly),
            (&["ReadWriteOnce", "ReadWriteMany"], true, Mode::MultiNodeMultiWriter),
            (&[], false, Mode::SingleNodeWriter),
        ] {
            let modes: Vec<String> = modes.iter().map(|mode| (*mode).to_owned()).collect();
            assert_eq!(mode(&modes, multi_writer), says, "{modes:?} {multi_writer}");
        }
    }
}
