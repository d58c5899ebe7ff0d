//! What the drivers of all nodes know: files in one folder.
//!
//! `volumes/ID/data` is a volume's data and `volumes/ID/size` its size, `snapshots/ID/` the same of a snapshot,
//! `attached/ID` says to which node a volume is attached. `broken` has a line for each rule that a caller broke.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

/// The folder.
#[derive(Clone, Debug)]
pub struct State {
    folder: PathBuf,
}

impl State {
    /// The state in a folder, made if there is none.
    pub fn open(folder: &Path) -> io::Result<Self> {
        for below in ["volumes", "snapshots", "attached", "struck", "busy", "trash"] {
            fs::create_dir_all(folder.join(below))?;
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ids of what there is of a kind (volumes, snapshots, attached).
    pub fn ids(&self, kind: &str) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(self.folder.join(kind))?;
        let mut ids: Vec<String> =
            entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<io::Result<_>>()?;
        ids.retain(|id| !id.starts_with('.'));
        ids.sort();
        Ok(ids)
    }

    /// Where the data of a volume is.
    pub fn data(&self, volume: &str) -> PathBuf {
        self.folder.join("volumes").join(volume).join("data")
    }

    /// The size of a volume or a snapshot; None if there is none.
    pub fn size(&self, kind: &str, id: &str) -> io::Result<Option<i64>> {
        let text = absent(fs::read_to_string(self.folder.join(kind).join(id).join("size")))?;
        text.map(|text| text.trim().parse().map_err(io::Error::other)).transpose()
    }

    /// Makes a volume or a snapshot with the files of another folder.
    pub fn make(&self, kind: &str, id: &str, size: i64, from: Option<&Path>) -> io::Result<()> {
        let place = self.folder.join(kind).join(id);
        let draft = self.folder.join("trash").join(format!("{kind}.{id}.{}", std::process::id()));
        drop(fs::remove_dir_all(&draft));
        fs::create_dir_all(draft.join("data"))?;
        if let Some(from) = from {
            for entry in fs::read_dir(from)? {
                let entry = entry?;
                fs::copy(entry.path(), draft.join("data").join(entry.file_name()))?;
            }
        }
        fs::write(draft.join("size"), size.to_string())?;
        fs::rename(draft, place)
    }

    /// Makes a volume larger.
    pub fn grow(&self, volume: &str, size: i64) -> io::Result<()> {
        let place = self.folder.join("volumes").join(volume);
        fs::write(place.join(".size"), size.to_string())?;
        fs::rename(place.join(".size"), place.join("size"))
    }

    /// Where the data of a snapshot is.
    pub fn snapshot_data(&self, snapshot: &str) -> PathBuf {
        self.folder.join("snapshots").join(snapshot).join("data")
    }

    /// Removes a volume or a snapshot, if it is there.
    pub fn remove(&self, kind: &str, id: &str) -> io::Result<()> {
        absent(fs::remove_dir_all(self.folder.join(kind).join(id))).map(drop)
    }

    /// The node that a volume is attached to.
    pub fn attached(&self, volume: &str) -> io::Result<Option<String>> {
        absent(fs::read_to_string(self.folder.join("attached").join(volume)))
    }

    /// Attaches a volume to a node.
    pub fn attach(&self, volume: &str, node: &str) -> io::Result<()> {
        let draft = self.folder.join("attached").join(format!(".{volume}"));
        fs::write(&draft, node)?;
        fs::rename(draft, self.folder.join("attached").join(volume))
    }

    /// Detaches a volume, if it is attached.
    pub fn detach(&self, volume: &str) -> io::Result<()> {
        absent(fs::remove_file(self.folder.join("attached").join(volume))).map(drop)
    }

    /// Writes down that a caller broke a rule.
    pub fn broken(&self, what: &str) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(self.folder.join("broken"))?;
        writeln!(file, "{what}")
    }

    /// The rules that callers broke.
    pub fn all_broken(&self) -> io::Result<Vec<String>> {
        let text = absent(fs::read_to_string(self.folder.join("broken")))?.unwrap_or_default();
        Ok(text.lines().map(str::to_owned).collect())
    }
}

/// What is not there is None.
fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
