//! `berth logs`: what containers wrote, of one pod or of many. Lines are never mixed.

mod lines;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use lines::Lines;
use pb::{
    Kind, Object, ObjectExt,
    api::v1::{LogsRequest, WatchRequest},
    objects::Pod,
};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    args::duration,
    client::Client,
    follow::{Follow, Told},
    pick::{Choice, selected},
};

/// Flags of `berth logs`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The pod: `web-0` or `pod/web-0`; `sts/web` is one of its pods, and with --all all of them
    #[arg(required_unless_present = "selector", conflicts_with = "selector")]
    pod: Option<String>,
    /// All pods with these labels
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// All pods of the set, each line with its pod and container before it; with -f also those to come
    #[arg(long, requires = "pod")]
    all: bool,
    /// The container; may be left out if the pod has one
    #[arg(short, long, default_value = "", hide_default_value = true, conflicts_with = "all_containers")]
    container: String,
    /// All containers of the pod
    #[arg(long)]
    all_containers: bool,
    /// Go on as the container writes
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines; 10 with -l unless this says otherwise, and -1 is all
    #[arg(long, value_name = "LINES", allow_negative_numbers = true)]
    tail: Option<i64>,
    /// The run before the present one
    #[arg(short, long)]
    previous: bool,
    /// Only what was written since, such as 5m
    #[arg(long, value_parser = duration, conflicts_with = "since_time")]
    since: Option<Duration>,
    /// Only what was written since this time, such as 2026-01-31T10:00:00Z
    #[arg(long, value_name = "TIME")]
    since_time: Option<Timestamp>,
    /// No more than this many bytes of each container
    #[arg(long, value_name = "BYTES")]
    limit_bytes: Option<i64>,
    /// Start each line with its time
    #[arg(long)]
    timestamps: bool,
    /// Start each line with its pod and container
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    prefix: Option<bool>,
}

/// Lines with -l when nothing is said: so many pods say a lot.
const FEW: i64 = 10;

/// Containers that are followed at the same time.
const STREAMS: usize = 200;

/// Pieces of output that may wait.
const AHEAD: usize = 16;

/// Prints.
pub async fn run(client: Client, args: Args) -> Result<ExitCode> {
    let choice = args.pod.as_deref().map(Choice::read).transpose()?;
    let selector = match (&args.selector, &choice) {
        (Some(labels), _) => Some(labels.clone()),
        (None, Some(choice @ (Choice::Set(_) | Choice::Service(_)))) if args.all => {
            Some(choice.selector(&client).await?)
        }
        _ => None,
    };
    let shown = Shown { client, prefix: args.prefix.unwrap_or(args.all), request: request(&args) };
    let Some(selector) = selector else {
        let choice = choice.context("name a pod, or labels with -l")?;
        return one_pod(&shown, &args, &choice).await;
    };
    let mine = |pod: &Pod| choice.as_ref().is_none_or(|choice| choice.owns(pod));
    if args.follow {
        return follow_many(&shown, &args, selector, mine).await;
    }
    let pods: Vec<Pod> = selected(&shown.client, &selector).await?.into_iter().filter(mine).collect();
    if pods.is_empty() {
        eprintln!("No pods are there that are meant.");
    }
    // One after the other: all of a pod stands together.
    let mut failed = false;
    for pod in &pods {
        for container in containers(pod, &args) {
            failed |= !shown.shown_or_told(pod.name(), &container).await?;
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn request(args: &Args) -> LogsRequest {
    let few = args.selector.as_ref().map(|_| FEW);
    LogsRequest {
        follow: args.follow,
        tail_lines: args.tail.or(few).filter(|lines| *lines >= 0),
        previous: args.previous,
        timestamps: args.timestamps,
        // Not less than was asked for.
        since_seconds: args.since.map(|ago| i64::try_from(ago.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(1)),
        since_time: args.since_time.map(Into::into),
        limit_bytes: args.limit_bytes,
        ..LogsRequest::default()
    }
}

/// The containers of a pod that are meant; the API service knows what an empty name means.
fn containers(pod: &Pod, args: &Args) -> Vec<String> {
    let spec = pod.spec.iter();
    if args.all_containers {
        let all = spec.flat_map(|spec| spec.init_containers.iter().chain(&spec.containers));
        return all.map(|container| container.name.clone()).collect();
    }
    match pod.spec.as_ref().map(|spec| spec.containers.as_slice()) {
        Some([only]) if args.container.is_empty() => vec![only.name.clone()],
        _ => vec![args.container.clone()],
    }
}

async fn one_pod(shown: &Shown, args: &Args, choice: &Choice) -> Result<ExitCode> {
    let name = match choice {
        Choice::Pod(name) if !args.all_containers => {
            return shown.show(name, &args.container).await.map(|()| ExitCode::SUCCESS);
        }
        choice => choice.one(&shown.client).await?,
    };
    let mut failed = false;
    if !args.follow {
        for container in containers(&name, args) {
            failed |= !shown.shown_or_told(name.name(), &container).await?;
        }
    } else {
        let (out, mut pieces) = mpsc::channel::<Vec<u8>>(AHEAD);
        let mut reading = JoinSet::new();
        for container in containers(&name, args) {
            reading.spawn(shown.clone().read(name.name().to_owned(), container, shown.request.clone(), out.clone()));
        }
        drop(out);
        while let Some(piece) = pieces.recv().await {
            print(&piece)?;
        }
        while let Some(read) = reading.join_next().await {
            failed |= !read?;
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Follows the containers of all pods that are there and that come, until it is interrupted.
async fn follow_many(shown: &Shown, args: &Args, selector: String, mine: impl Fn(&Pod) -> bool) -> Result<ExitCode> {
    let request = WatchRequest {
        kind: Kind::Pod.name().to_owned(),
        namespace: shown.client.namespace.clone(),
        label_selector: selector,
        ..WatchRequest::default()
    };
    let mut changes = Follow::new(&shown.client, request);
    let (out, mut pieces) = mpsc::channel::<Vec<u8>>(AHEAD);
    let mut reading: JoinSet<(String, String)> = JoinSet::new();
    // The last run of each container that was begun, and whether it is being read.
    let mut begun: BTreeMap<(String, String), (String, bool)> = BTreeMap::new();
    let mut known: BTreeMap<String, Pod> = BTreeMap::new();
    let mut current = false;
    loop {
        tokio::select! {
            told = changes.next() => match told? {
                Told::Is(object) => {
                    if let Ok(pod) = Pod::from_any(object)
                        && mine(&pod)
                    {
                        known.insert(pod.uid().to_owned(), pod);
                    }
                }
                Told::Gone(object) => {
                    known.remove(&object.meta().uid);
                    begun.retain(|(uid, _), _| *uid != object.meta().uid);
                }
                Told::Anew => known.clear(),
                Told::Current => current = true,
            },
            Some(piece) = pieces.recv() => {
                print(&piece)?;
                continue;
            }
            Some(ended) = reading.join_next() => {
                if let Some((_, is_read)) = begun.get_mut(&ended?) {
                    *is_read = false;
                }
            }
        }
        for pod in known.values() {
            for (container, run) in runs(pod, args) {
                let key = (pod.uid().to_owned(), container.clone());
                let before = begun.get(&key);
                if before.is_some_and(|(id, is_read)| *id == run || *is_read) {
                    continue;
                }
                if reading.len() >= STREAMS {
                    bail!("more than {STREAMS} containers at once: select fewer pods");
                }
                // What came after the beginning is wanted from its own beginning.
                let request = match current || before.is_some() {
                    true => LogsRequest { tail_lines: None, since_seconds: None, ..shown.request.clone() },
                    false => shown.request.clone(),
                };
                begun.insert(key.clone(), (run, true));
                let (shown, pod, out) = (shown.clone(), pod.name().to_owned(), out.clone());
                reading.spawn(async move {
                    shown.read(pod, container, request, out).await;
                    key
                });
            }
        }
    }
}

/// The containers that are meant and have started, with the runtime's id of their run.
fn runs(pod: &Pod, args: &Args) -> Vec<(String, String)> {
    let Some(status) = &pod.status else { return Vec::new() };
    let statuses =
        status.init_container_statuses.iter().filter(|_| args.all_containers).chain(&status.container_statuses);
    let several = status.container_statuses.len() > 1;
    let wanted = |name: &str| match args.container.as_str() {
        "" => {
            args.all_containers
                || !several
                || pod.spec.iter().flat_map(|spec| &spec.containers).next().is_some_and(|first| first.name == name)
        }
        container => container == name,
    };
    statuses
        .filter(|status| !status.container_id.is_empty() && wanted(&status.name))
        .map(|status| (status.name.clone(), status.container_id.clone()))
        .collect()
}

/// How output is shown.
#[derive(Clone)]
struct Shown {
    client: Client,
    prefix: bool,
    request: LogsRequest,
}

impl Shown {
    /// One container, as its bytes come unless lines have something before them.
    async fn show(&self, pod: &str, container: &str) -> Result<()> {
        let mut lines = self.lines(pod, container);
        let request = self.of(pod, container, self.request.clone());
        let refused = |status: tonic::Status| self.client.refused(&status);
        let mut stream = self.client.streams.clone().logs(request).await.map_err(refused)?.into_inner();
        while let Some(piece) = stream.message().await.map_err(refused)? {
            match &mut lines {
                Some(lines) => print(&lines.take(&piece.data))?,
                None => print(&piece.data)?,
            }
        }
        print(&lines.map(Lines::rest).unwrap_or_default())
    }

    /// The same; a refusal is told on standard error, so that others are shown all the same.
    async fn shown_or_told(&self, pod: &str, container: &str) -> Result<bool> {
        match self.show(pod, container).await {
            Ok(()) => Ok(true),
            Err(error) if error.is::<io::Error>() => Err(error),
            Err(error) => {
                eprintln!("error: {error:#}");
                Ok(false)
            }
        }
    }

    /// Whole lines of one container, for one that prints those of many; false if that failed.
    async fn read(self, pod: String, container: String, request: LogsRequest, out: mpsc::Sender<Vec<u8>>) -> bool {
        let mut lines = self.lines(&pod, &container).unwrap_or_default();
        let request = self.of(&pod, &container, request);
        let reading = async {
            let mut stream = self.client.streams.clone().logs(request).await?.into_inner();
            while let Some(piece) = stream.message().await? {
                let whole = lines.take(&piece.data);
                if !whole.is_empty() && out.send(whole).await.is_err() {
                    break;
                }
            }
            Ok::<_, tonic::Status>(())
        };
        let read = reading.await;
        // Nobody prints any more when this fails.
        drop(out.send(lines.rest()).await);
        if let Err(status) = &read {
            eprintln!("error: {pod}: {:#}", self.client.refused(status));
        }
        read.is_ok()
    }

    fn lines(&self, pod: &str, container: &str) -> Option<Lines> {
        let name = if container.is_empty() { pod.to_owned() } else { format!("{pod}/{container}") };
        self.prefix.then(|| Lines::new(format!("[{name}] ")))
    }

    fn of(&self, pod: &str, container: &str, request: LogsRequest) -> LogsRequest {
        LogsRequest {
            namespace: self.client.namespace.clone(),
            pod: pod.to_owned(),
            container: container.to_owned(),
            ..request
        }
    }
}

fn print(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}
