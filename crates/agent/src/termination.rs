//! What a container says of its own end: Kubernetes' termination message.
//!
//! Each run has a file of its own in the pod's folder, mounted into the container. Where it is and what to do if it stays
//! empty stands in annotations of the container, so that the message is found whoever asks, and whenever.

use std::{
    collections::HashMap,
    fs, io,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use k8s_cri::v1 as cri;
use pb::objects::Container;

use crate::logs::parse;

/// Where the file is on the node.
const FILE: &str = "berth.io/termination-message-file";
/// What to do if it is empty.
const POLICY: &str = "berth.io/termination-message-policy";
/// Take the end of the log if the container failed.
const FROM_LOG: &str = "FallbackToLogsOnError";

/// The file in the container when the spec does not say.
const DEFAULT_PATH: &str = "/dev/termination-log";

/// The most that is taken of the file, from its end.
const LONGEST: u64 = 4096;
/// The most that is taken of the log, from its end.
const LOG_BYTES: usize = 2048;
/// The same in lines.
const LOG_LINES: usize = 80;
/// What is read of the log to find them: each line carries a time and a stream.
const LOG_WINDOW: u64 = 64 * 1024;

/// Makes the file of a run and adds it to what the runtime is asked to make. Files of runs that nobody asks for any more
/// are removed.
pub fn prepare(config: &mut cri::ContainerConfig, container: &Container, pod_dir: &Path) -> io::Result<()> {
    let attempt = config.metadata.as_ref().map_or(0, |metadata| metadata.attempt);
    let folder = pod_dir.join("termination").join(&container.name);
    fs::create_dir_all(&folder)?;
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        let of = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        if of.is_some_and(|of| of.saturating_add(1) < attempt) {
            fs::remove_file(entry.path())?;
        }
    }
    let path = match container.termination_message_path.as_str() {
        "" => DEFAULT_PATH,
        path => path,
    };
    if config.mounts.iter().any(|mount| mount.container_path == path) {
        return Ok(());
    }
    let file = folder.join(attempt.to_string());
    fs::write(&file, [])?;
    // Whoever the container runs as writes it.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666))?;
    config.annotations.insert(FILE.to_owned(), file.display().to_string());
    config.annotations.insert(POLICY.to_owned(), container.termination_message_policy.clone());
    config.mounts.push(cri::Mount {
        container_path: path.to_owned(),
        host_path: file.display().to_string(),
        ..Default::default()
    });
    Ok(())
}

/// The message of a run that ended with this exit code; None if it left none. What cannot be read says nothing.
pub fn message(annotations: &HashMap<String, String>, log: &str, code: i32) -> Option<String> {
    let file = annotations.get(FILE)?;
    let said = tail(Path::new(file), LONGEST).unwrap_or_default();
    if !said.is_empty() {
        return Some(String::from_utf8_lossy(&said).into_owned());
    }
    let fall_back = code != 0 && annotations.get(POLICY).is_some_and(|policy| policy == FROM_LOG);
    let log = fall_back.then(|| tail(Path::new(log), LOG_WINDOW).unwrap_or_default())?;
    Some(last_lines(&log)).filter(|text| !text.is_empty())
}

/// The last bytes of a file. Nothing but a file: the container may have put anything in its place.
fn tail(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    let metadata = file.metadata()?;
    let mut bytes = Vec::new();
    if metadata.is_file() {
        file.seek(SeekFrom::Start(metadata.len().saturating_sub(most)))?;
        file.take(most).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn last_lines(log: &[u8]) -> String {
    let mut text = Vec::new();
    for line in log.split(|byte| *byte == b'\n').filter_map(parse) {
        text.extend_from_slice(line.text);
        if !line.partial {
            text.push(b'\n');
        }
    }
    let lines: Vec<_> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let kept = lines.iter().skip(lines.len().saturating_sub(LOG_LINES)).copied().collect::<Vec<_>>().concat();
    let kept = kept.get(kept.len().saturating_sub(LOG_BYTES)..).unwrap_or_default();
    String::from_utf8_lossy(kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(policy: &str, attempt: u32, folder: &Path) -> cri::ContainerConfig {
        let container =
            Container { name: "main".into(), termination_message_policy: policy.into(), ..Default::default() };
        let metadata = Some(cri::ContainerMetadata { name: "main".into(), attempt });
        let mut config = cri::ContainerConfig { metadata, ..Default::default() };
        prepare(&mut config, &container, folder).unwrap();
        config
    }

    #[test]
    fn the_file_wins_and_the_log_stands_in_for_it_after_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("0.log");
        fs::write(
            &log,
            "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stderr P tw\n2026-01-01T00:00:00Z stderr F o\n",
        )
        .unwrap();
        let log = log.display().to_string();
        let config = prepared(FROM_LOG, 0, folder.path());
        assert_eq!(config.mounts[0].container_path, DEFAULT_PATH);
        assert_eq!(message(&config.annotations, &log, 0), None);
        assert_eq!(message(&config.annotations, &log, 1).as_deref(), Some("one\ntwo\n"));
        fs::write(&config.mounts[0].host_path, format!("{}end", "x".repeat(5000))).unwrap();
        let said = message(&config.annotations, &log, 1).unwrap();
        assert_eq!((said.len(), &said[4090..]), (4096, "xxxend"));
        let other = prepared("File", 1, folder.path());
        assert_eq!(message(&other.annotations, &log, 1), None, "each run has its own file");
    }

    #[test]
    fn files_of_runs_that_nobody_asks_for_go() {
        let folder = tempfile::tempdir().unwrap();
        for attempt in 0..4 {
            prepared("", attempt, folder.path());
        }
        let mut left: Vec<_> =
            fs::read_dir(folder.path().join("termination/main")).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["2", "3"]);
    }
}
