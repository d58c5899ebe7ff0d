//! `berth cp`: files into and out of containers. Their images need no program for it.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, IsTerminal},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use agent::archive::{
    Arriving, Leaving,
    pack::pack,
    unpack::{How, Written, unpack},
};
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use pb::{
    ObjectExt,
    api::v1::{CopyFromRequest, CopyToRequest, CopyToResponse, CopyToStart, copy_to_request::Input},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::{client::Client, pick::Choice};

/// Flags of `berth cp`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A local path, or POD:/PATH
    from: String,
    /// A local path, or POD:/PATH; a folder that is there is copied into
    to: String,
    /// The container; may be left out if the pod has one
    #[arg(short, long, default_value = "", hide_default_value = true)]
    container: String,
}

/// Bytes in one message.
const PIECE: usize = 128 * 1024;

/// Messages that may wait.
const AHEAD: usize = 8;

/// How long the other side may not read.
const IDLE: Duration = Duration::from_secs(60);

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Local(PathBuf),
    Pod { pod: String, path: String },
}

impl End {
    /// `POD:/PATH`, where the pod may be `sts/web`; anything else is local. A local path with a colon begins with `./`.
    fn read(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some((pod, path)) if !pod.is_empty() && !pod.starts_with(['.', '/']) => {
                if !path.starts_with('/') {
                    bail!("{text:?}: the path in the pod must be absolute, as in {pod}:/{path}");
                }
                Ok(Self::Pod { pod: pod.to_owned(), path: path.to_owned() })
            }
            _ => Ok(Self::Local(PathBuf::from(text))),
        }
    }
}

/// Copies.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    match (End::read(&args.from)?, End::read(&args.to)?) {
        (End::Pod { pod, path }, End::Local(to)) => {
            let pod = name(&client, &pod).await?;
            fetch(
                &client,
                CopyFromRequest { namespace: client.namespace.clone(), pod, container: args.container, path },
                &to,
            )
            .await?;
        }
        (End::Local(from), End::Pod { pod, path }) => {
            let pod = name(&client, &pod).await?;
            send(
                &client,
                &from,
                CopyToStart { namespace: client.namespace.clone(), pod, container: args.container, path },
            )
            .await?;
        }
        (End::Local(_), End::Local(_)) => bail!("one side must be in a pod: POD:/PATH"),
        (End::Pod { .. }, End::Pod { .. }) => bail!("one side must be local: copy from the one pod, then to the other"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn name(client: &Client, text: &str) -> Result<String> {
    match Choice::read(text)? {
        Choice::Pod(name) => Ok(name),
        choice => Ok(choice.one(client).await?.name().to_owned()),
    }
}

/// Where something goes: into a folder that is there under its own name, else under the name that is given.
fn place(to: &Path) -> Result<(OwnedFd, Option<OsString>)> {
    let slash = to.as_os_str().as_encoded_bytes().ends_with(b"/");
    if to.is_dir() || slash {
        let folder = File::open(to).with_context(|| format!("open the folder {}", to.display()))?;
        return Ok((folder.into(), None));
    }
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = File::open(parent).with_context(|| format!("open the folder {}", parent.display()))?;
    let name = to.file_name().with_context(|| format!("{} is not the name of a file", to.display()))?;
    Ok((folder.into(), Some(name.to_owned())))
}

/// Tells how much has come, on a terminal, once that takes a while.
fn progress() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {bytes} {bytes_per_sec}") {
        bar.set_style(style);
    }
    bar
}

async fn fetch(client: &Client, request: CopyFromRequest, to: &Path) -> Result<()> {
    let (folder, top) = place(to)?;
    let refused = |status: Status| client.refused(&status);
    let mut answers = client.streams.clone().copy_from(request).await.map_err(refused)?.into_inner();
    let (sender, pieces) = mpsc::channel(AHEAD);
    let how = How { owner: None, top };
    let unpacking = tokio::task::spawn_blocking(move || unpack(&folder, &how, Arriving::new(pieces), |_| ()));
    let bar = progress();
    let fetched = loop {
        match answers.message().await {
            Ok(Some(piece)) => {
                bar.inc(piece.data.len() as u64);
                if sender.send(Ok(piece.data)).await.is_err() {
                    // Why nothing more is taken is the other half's to say.
                    break Ok(());
                }
            }
            Ok(None) => break Ok(()),
            Err(status) => {
                // The end of the channel alone could pass for the end of the archive.
                drop(sender.send(Err(io::Error::other("the copy broke off"))).await);
                break Err(status);
            }
        }
    };
    drop(sender);
    let unpacked = unpacking.await?;
    bar.finish_and_clear();
    fetched.map_err(refused)?;
    let Written { .. } = unpacked.context("write what was copied")?;
    Ok(())
}

async fn send(client: &Client, from: &Path, start: CopyToStart) -> Result<()> {
    let from = from.canonicalize().with_context(|| format!("read {}", from.display()))?;
    let own = from.file_name().map_or_else(|| OsString::from("root"), OsString::from);
    match send_into(client, &from, own, start.clone()).await {
        Ok(_) => Ok(()),
        Err(status) if !start.path.ends_with('/') && is_no_folder(&status) => {
            // No folder is there: what is above it is, and this is its new name.
            let path = Path::new(&start.path);
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(client.refused(&status));
            };
            let start = CopyToStart { path: parent.display().to_string(), ..start };
            let sent = send_into(client, &from, name.to_owned(), start).await;
            sent.map(drop).map_err(|status| client.refused(&status))
        }
        Err(status) => Err(client.refused(&status)),
    }
}

fn is_no_folder(status: &Status) -> bool {
    matches!(status.code(), Code::NotFound | Code::FailedPrecondition)
}

async fn send_into(client: &Client, from: &Path, top: OsString, start: CopyToStart) -> Result<CopyToResponse, Status> {
    let (sender, requests) = mpsc::channel(AHEAD);
    let leaving = Leaving::new(sender.clone(), |data| message(Input::Data(data)), PIECE, IDLE);
    let call = client.streams.clone();
    drop(sender.send(message(Input::Start(start))).await);
    drop(sender);
    let path = from.to_owned();
    let bar = progress();
    let counted = Counted { inner: leaving, bar: bar.clone() };
    let packing = tokio::task::spawn_blocking(move || pack(&File::open("/")?.into(), &path, Path::new(&top), counted));
    let mut call = call;
    let answered = call.copy_to(ReceiverStream::new(requests)).await;
    bar.finish_and_clear();
    // Whoever refuses stops reading, and packing ends with that: what it says counts only if nobody refused.
    let answered = answered?.into_inner();
    match packing.await {
        Ok(Ok(())) => Ok(answered),
        Ok(Err(error)) => Err(Status::aborted(format!("read {}: {error}", from.display()))),
        Err(error) => Err(Status::internal(error.to_string())),
    }
}

fn message(input: Input) -> CopyToRequest {
    CopyToRequest { input: Some(input) }
}

/// Tells what goes through.
struct Counted<W> {
    inner: W,
    bar: ProgressBar,
}

impl<W: io::Write> io::Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.bar.inc(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends() {
        let pod = |pod: &str, path: &str| End::Pod { pod: pod.to_owned(), path: path.to_owned() };
        assert_eq!(End::read("web-0:/etc/hosts").unwrap(), pod("web-0", "/etc/hosts"));
        assert_eq!(End::read("sts/web:/data").unwrap(), pod("sts/web", "/data"));
        for local in ["file", "./a:b", "/a:b", "dir/"] {
            assert_eq!(End::read(local).unwrap(), End::Local(PathBuf::from(local)));
        }
        assert!(End::read("web-0:etc").unwrap_err().to_string().contains("web-0:/etc"));
    }

    #[test]
    fn a_folder_that_is_there_is_copied_into() {
        let dir = std::env::temp_dir();
        assert_eq!(place(&dir).unwrap().1, None);
        assert_eq!(place(&dir.join("new-name")).unwrap().1, Some(OsString::from("new-name")));
        assert!(place(&dir.join("not-there/new-name")).is_err());
        assert!(place(Path::new("/not-there/")).is_err());
    }
}
