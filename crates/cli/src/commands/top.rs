//! `berth top`: what pods and nodes use of processors and memory now.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::ValueEnum;
use model::quantity::Quantity;
use pb::{
    Kind, Object, ObjectExt,
    api::v1::{ListRequest, TopRequest, TopResponse, TopRow},
    objects::Node,
};
use tonic::Request;

use crate::{client::Client, output::table::Table};

/// What is shown.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Show what pods use
    #[command(visible_alias = "pod", alias = "po")]
    Pods(PodArgs),
    /// Show what nodes use
    #[command(visible_alias = "node", alias = "no")]
    Nodes(NodeArgs),
}

/// Flags of `berth top pods`.
#[derive(clap::Args, Debug)]
pub struct PodArgs {
    /// Only this pod
    name: Option<String>,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// A row for each container
    #[arg(long)]
    containers: bool,
    #[command(flatten)]
    shown: Shown,
}

/// Flags of `berth top nodes`.
#[derive(clap::Args, Debug)]
pub struct NodeArgs {
    /// Only this node
    name: Option<String>,
    #[command(flatten)]
    shown: Shown,
}

#[derive(clap::Args, Debug)]
struct Shown {
    /// Only those with these labels
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    selector: String,
    /// Most first
    #[arg(long, value_enum)]
    sort_by: Option<SortBy>,
    /// Without the header
    #[arg(long)]
    no_headers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SortBy {
    /// Processors
    Cpu,
    /// Memory
    Memory,
}

/// How long all nodes may take together.
const LIMIT: Duration = Duration::from_secs(30);

const MIB: i64 = 1 << 20;

/// Asks and prints.
pub async fn run(client: Client, command: Command) -> Result<ExitCode> {
    match command {
        Command::Pods(args) => pods(&client, args).await,
        Command::Nodes(args) => nodes(&client, args).await,
    }
}

async fn ask(client: &Client, request: TopRequest) -> Result<TopResponse> {
    let mut request = Request::new(request);
    request.set_timeout(LIMIT);
    let answer = client.streams.clone().top(request).await.map_err(|status| client.refused(&status))?.into_inner();
    for missing in &answer.missing {
        eprintln!("note: no answer from node {missing}");
    }
    Ok(answer)
}

async fn pods(client: &Client, args: PodArgs) -> Result<ExitCode> {
    let namespace = if args.all_namespaces { String::new() } else { client.namespace.clone() };
    let request = TopRequest { namespace, label_selector: args.shown.selector.clone(), nodes: false };
    let mut answer = ask(client, request).await?;
    answer.rows.retain(|row| args.name.as_ref().is_none_or(|name| row.pod == *name));
    let mut rows = if args.containers { answer.rows } else { summed(answer.rows) };
    sort(&mut rows, args.shown.sort_by);
    let mut header = vec!["POD"];
    if args.containers {
        header.push("NAME");
    }
    let header = ["NAMESPACE"].into_iter().filter(|_| args.all_namespaces).chain(header);
    let mut table = Table::new(header.chain(["CPU(cores)", "MEMORY(bytes)"]));
    for row in &rows {
        let mut cells = Vec::new();
        if args.all_namespaces {
            cells.push(row.namespace.clone());
        }
        cells.push(row.pod.clone());
        if args.containers {
            cells.push(row.container.clone());
        }
        cells.extend(amounts(row));
        table.push(cells);
    }
    print(&table, rows.is_empty(), &args.shown, "pods that run")
}

/// One row for each pod.
fn summed(rows: Vec<TopRow>) -> Vec<TopRow> {
    let mut pods: BTreeMap<(String, String), TopRow> = BTreeMap::new();
    for row in rows {
        let more = row.usage.unwrap_or_default();
        let sum = pods.entry((row.namespace.clone(), row.pod.clone())).or_insert(TopRow { usage: None, ..row });
        let usage = sum.usage.get_or_insert_default();
        usage.milli_cpu = usage.milli_cpu.saturating_add(more.milli_cpu);
        usage.memory_bytes = usage.memory_bytes.saturating_add(more.memory_bytes);
    }
    pods.into_values().collect()
}

fn sort(rows: &mut [TopRow], by: Option<SortBy>) {
    let usage = |row: &TopRow| row.usage.unwrap_or_default();
    match by {
        None => {}
        Some(SortBy::Cpu) => rows.sort_by_key(|row| std::cmp::Reverse(usage(row).milli_cpu)),
        Some(SortBy::Memory) => rows.sort_by_key(|row| std::cmp::Reverse(usage(row).memory_bytes)),
    }
}

fn amounts(row: &TopRow) -> [String; 2] {
    let usage = row.usage.unwrap_or_default();
    [format!("{}m", usage.milli_cpu), format!("{}Mi", usage.memory_bytes / MIB)]
}

async fn nodes(client: &Client, args: NodeArgs) -> Result<ExitCode> {
    let request = TopRequest { label_selector: args.shown.selector.clone(), nodes: true, ..TopRequest::default() };
    let mut rows = ask(client, request).await?.rows;
    rows.retain(|row| args.name.as_ref().is_none_or(|name| row.node == *name));
    sort(&mut rows, args.shown.sort_by);
    let list = ListRequest { kind: Kind::Node.name().to_owned(), ..ListRequest::default() };
    let (objects, _) = client.list(list).await?;
    let known: BTreeMap<String, Node> = objects
        .into_iter()
        .filter_map(|object| Node::from_any(object).ok())
        .map(|node| (node.name().to_owned(), node))
        .collect();
    let mut table = Table::new(["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"]);
    for row in &rows {
        let usage = row.usage.unwrap_or_default();
        let node = known.get(&row.node);
        let [cpu, memory] = amounts(row);
        let of_cpu = percent(usage.milli_cpu, node.and_then(|node| Some(allocatable(node, "cpu")?.as_millis())));
        let of_memory =
            percent(usage.memory_bytes, node.and_then(|node| Some(allocatable(node, "memory")?.as_units())));
        table.push([row.node.clone(), cpu, of_cpu, memory, of_memory]);
    }
    print(&table, rows.is_empty(), &args.shown, "nodes that answer")
}

/// What pods may use of a node.
fn allocatable(node: &Node, resource: &str) -> Option<Quantity> {
    node.status.as_ref()?.allocatable.get(resource)?.value.parse().ok()
}

fn percent(part: i64, whole: Option<i64>) -> String {
    match whole {
        Some(whole) if whole > 0 => format!("{}%", part.saturating_mul(100) / whole),
        _ => "<unknown>".to_owned(),
    }
}

fn print(table: &Table, empty: bool, shown: &Shown, what: &str) -> Result<ExitCode> {
    if empty {
        eprintln!("There are no {what}.");
        return Ok(ExitCode::SUCCESS);
    }
    let text = table.to_string();
    let lines = text.lines().skip(usize::from(shown.no_headers));
    for line in lines {
        println!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use pb::api::v1::Usage;

    use super::*;

    fn row(pod: &str, container: &str, milli_cpu: i64, memory_bytes: i64) -> TopRow {
        let usage = Some(Usage { milli_cpu, memory_bytes });
        TopRow { pod: pod.into(), container: container.into(), usage, ..TopRow::default() }
    }

    #[test]
    fn a_pod_is_the_sum_of_its_containers() {
        let mut pods = summed(vec![row("a", "x", 1, MIB), row("a", "y", 2, MIB), row("b", "x", 9, MIB)]);
        assert_eq!(amounts(&pods[0]), ["3m".to_owned(), "2Mi".to_owned()]);
        sort(&mut pods, Some(SortBy::Cpu));
        assert_eq!(pods[0].pod, "b");
        sort(&mut pods, Some(SortBy::Memory));
        assert_eq!(pods[0].pod, "a");
        assert_eq!((percent(1, Some(4)), percent(1, None)), ("25%".to_owned(), "<unknown>".to_owned()));
    }
}
