//! Writes the files of a volume so that who reads them sees the old ones or the new ones, never some of each.
//!
//! As in Kubernetes: the files lie in a folder of their own, `..<time>`; the link `..data` leads to it; what users see are
//! links through `..data`. An update makes a new folder and moves the link, which is one step of the file system. Only the
//! agent writes here: containers get these volumes read-only.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use super::content::{File, Files};

/// The link to the folder that holds the files now.
const DATA: &str = "..data";
/// The link before it takes that name.
const DATA_NEW: &str = "..data_tmp";
/// A name that users see, before it takes its own.
const NAME_NEW: &str = "..name_tmp";

/// Makes `files`, and nothing else, what is seen at `target`; they belong to `group` if there is one. Tells whether
/// anything had to be written. What a writer before this one left half done is finished or removed.
pub fn write(target: &Path, files: &Files, group: Option<u32>) -> io::Result<bool> {
    let now = current(target)?;
    let same = now.as_ref().is_some_and(|folder| holds(folder, files, group));
    if !same {
        let new = make_folder(target, files, group)?;
        remove_file(&target.join(DATA_NEW))?;
        symlink(new.file_name().unwrap_or_default(), target.join(DATA_NEW))?;
        fs::rename(target.join(DATA_NEW), target.join(DATA))?;
    }
    let tops: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for top in &tops {
        show(target, top)?;
    }
    remove_others(target, &tops)?;
    Ok(!same)
}

/// The folder that is seen now.
fn current(target: &Path) -> io::Result<Option<PathBuf>> {
    match fs::read_link(target.join(DATA)) {
        Ok(name) => Ok(Some(target.join(name))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a folder holds these files and no others.
fn holds(folder: &Path, files: &Files, group: Option<u32>) -> bool {
    let as_wanted = |(path, file): (&String, &File)| {
        let path = folder.join(path);
        let fits = |found: fs::Metadata| {
            found.permissions().mode() & 0o777 == mode_of(file, group) && group.is_none_or(|gid| found.gid() == gid)
        };
        fs::symlink_metadata(&path).is_ok_and(fits) && fs::read(&path).is_ok_and(|bytes| bytes == file.bytes)
    };
    files.iter().all(as_wanted) && count(folder).is_ok_and(|count| count == files.len())
}

fn count(folder: &Path) -> io::Result<usize> {
    let mut files = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files += if entry.file_type()?.is_dir() { count(&entry.path())? } else { 1 };
    }
    Ok(files)
}

fn make_folder(target: &Path, files: &Files, group: Option<u32>) -> io::Result<PathBuf> {
    let now = jiff::Timestamp::now();
    let folder = target.join(format!("{}{:09}", now.strftime("..%Y_%m_%d_%H_%M_%S."), now.subsec_nanosecond()));
    let make = |path: &Path| -> io::Result<()> {
        if !path.is_dir() {
            fs::DirBuilder::new().mode(0o755).create(path)?;
            own(path, group, 0o755)?;
        }
        Ok(())
    };
    make(&folder)?;
    for (path, file) in files {
        let mut parent = folder.clone();
        let above = Path::new(path).parent().into_iter().flat_map(Path::components);
        for part in above {
            parent.push(part);
            make(&parent)?;
        }
        let path = folder.join(path);
        let mut made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        io::Write::write_all(&mut made, &file.bytes)?;
        own(&path, group, mode_of(file, group))?;
    }
    Ok(folder)
}

/// A group that owns a file reads it.
fn mode_of(file: &File, group: Option<u32>) -> u32 {
    if group.is_some() { file.mode | 0o440 } else { file.mode }
}

/// Gives a file its group and its mode, past the umask.
fn own(path: &Path, group: Option<u32>, mode: u32) -> io::Result<()> {
    if group.is_some() {
        std::os::unix::fs::chown(path, None, group)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Makes a name lead through `..data`. Whatever else has the name gives way in one step.
fn show(target: &Path, name: &str) -> io::Result<()> {
    let (path, leads) = (target.join(name), Path::new(DATA).join(name));
    if fs::read_link(&path).is_ok_and(|now| now == leads) {
        return Ok(());
    }
    let new = target.join(NAME_NEW);
    remove_file(&new)?;
    symlink(&leads, &new)?;
    if path.is_dir() && !path.is_symlink() {
        fs::remove_dir_all(&path)?;
    }
    fs::rename(&new, &path)
}

/// Removes names that lead to nothing any more, and folders that are not seen.
fn remove_others(target: &Path, tops: &BTreeSet<&str>) -> io::Result<()> {
    let seen = current(target)?;
    for entry in fs::read_dir(target)? {
        let entry = entry?;
        let name = entry.file_name();
        let wanted = name.to_str().is_some_and(|name| name == DATA || tops.contains(name));
        if wanted || Some(entry.path()) == seen {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn files(all: &[(&str, &str, u32)]) -> Files {
        let file = |text: &str, mode| File { bytes: text.as_bytes().to_vec(), mode };
        all.iter().map(|(path, text, mode)| ((*path).to_owned(), file(text, *mode))).collect()
    }

    fn names(target: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(target).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| !name.starts_with(".."));
        names.sort();
        names
    }

    #[test]
    fn what_is_seen_is_what_was_written_and_the_same_is_not_written_twice() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path();
        // What an agent wrote that did not know this scheme.
        fs::write(target.join("a"), "plain").unwrap();
        assert!(write(target, &files(&[("a", "1", 0o644), ("d/b", "2", 0o400)]), None).unwrap());
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(target.join("d/b")).unwrap(), "2");
        assert_eq!(fs::metadata(target.join("d/b")).unwrap().permissions().mode() & 0o777, 0o400);
        assert!(!write(target, &files(&[("a", "1", 0o644), ("d/b", "2", 0o400)]), None).unwrap());
        assert!(write(target, &files(&[("c", "3", 0o600)]), Some(4711)).unwrap());
        assert_eq!(names(target), ["c"]);
        let seen = fs::metadata(target.join("c")).unwrap();
        assert_eq!((seen.permissions().mode() & 0o777, seen.gid()), (0o640, 4711), "the group reads it");
        assert_eq!(fs::read_dir(target).unwrap().count(), 3, "the file, the link and one folder");
    }

    #[test]
    fn what_was_left_half_done_is_taken_up() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path();
        write(target, &files(&[("a", "1", 0o644)]), None).unwrap();
        // The link was moved, the names not yet; another writer ended before it moved the link.
        fs::remove_file(target.join("a")).unwrap();
        symlink("..gone", target.join(DATA_NEW)).unwrap();
        fs::create_dir(target.join("..2020_01_01_00_00_00.000000000")).unwrap();
        assert!(!write(target, &files(&[("a", "1", 0o644)]), None).unwrap());
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "1");
        assert_eq!(fs::read_dir(target).unwrap().count(), 3);
    }

    #[test]
    fn a_reader_never_sees_some_old_and_some_new_files() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path();
        let version = |n: u32| files(&[("a", &n.to_string(), 0o644), ("b", &n.to_string(), 0o644)]);
        write(target, &version(0), None).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut looks = 0;
                while !done.load(Ordering::Relaxed) {
                    // One look through one folder: that is what the link is for.
                    // Where it led may be gone before it is opened: who reads looks again.
                    let Ok(folder) = fs::File::open(target.join(DATA)) else { continue };
                    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&folder));
                    let read = |name: &str| fs::read_to_string(Path::new(&path).join(name)).ok();
                    let (a, b) = (read("a"), read("b"));
                    // The folder may have been removed meanwhile, as a whole.
                    assert!(a == b || a.is_none() || b.is_none(), "{a:?} and {b:?}");
                    looks += 1;
                }
                looks
            });
            for n in 1..=100 {
                assert!(write(target, &version(n), None).unwrap());
            }
            done.store(true, Ordering::Relaxed);
            assert!(reader.join().unwrap() > 0);
        });
        assert_eq!(fs::read_to_string(target.join("b")).unwrap(), "100");
    }
}
