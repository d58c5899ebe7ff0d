//! Images for the nodes' container runtimes: found as OCI archives, imported, never pulled.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::system::{run, wait_until};

/// The archives that a lab needs; `deploy/images/build.sh` makes them.
const REQUIRED: [&str; 2] = ["pause.tar", "nginx.tar"];

/// How long the runtime may take to answer and to see what was imported.
const LIMIT: Duration = Duration::from_secs(30);

/// Finds the archives: in `given`, else beside the binary's build folder, else in `/var/lib/berth/images`. Every other
/// `*.tar` in the same folder is loaded too.
pub fn find(given: Option<&Path>, berth: &Path) -> Result<Vec<PathBuf>> {
    let candidates: Vec<PathBuf> = match given {
        Some(dir) => vec![dir.to_owned()],
        None => {
            let build = berth.parent().and_then(Path::parent);
            build.map(|dir| dir.join("images")).into_iter().chain([PathBuf::from("/var/lib/berth/images")]).collect()
        }
    };
    let Some(dir) = candidates.iter().find(|dir| REQUIRED.iter().all(|name| dir.join(name).is_file())) else {
        let places: Vec<String> = candidates.iter().map(|d| d.display().to_string()).collect();
        bail!(
            "no images ({}) in {}: build them with `deploy/images/build.sh DIR` and pass --images DIR",
            REQUIRED.join(", "),
            places.join(" or ")
        );
    };
    let mut archives: Vec<PathBuf> = std::fs::read_dir(dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "tar"))
        .collect();
    archives.sort();
    Ok(archives)
}

/// Imports archives into the runtime at `socket` and waits until CRI knows every image. An archive's images that are
/// there already cost one comparison.
pub async fn load(socket: &Path, snapshotter: &str, archives: &[PathBuf]) -> Result<()> {
    let socket = socket.display().to_string();
    let ctr = |args: &[&str]| run("ctr", &[&["--address", &socket, "--namespace", "k8s.io"], args].concat());
    wait_until("the container runtime answers", LIMIT, || ctr(&["version"])).await?;
    for archive in archives {
        let archive = archive.display().to_string();
        ctr(&["images", "import", "--snapshotter", snapshotter, &archive])?;
    }
    // CRI takes an image over from an event a moment after the import, and labels it then.
    wait_until("CRI knows the images", LIMIT, || {
        let listed = ctr(&["images", "list"])?;
        for line in listed.lines().skip(1) {
            if !line.contains("io.cri-containerd.image=managed") {
                let name = line.split_whitespace().next().unwrap_or(line);
                bail!("{name} is not labelled yet");
            }
        }
        Ok(())
    })
    .await
}
