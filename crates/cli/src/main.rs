//! `berth`: every role of a cluster, the commands of its users, and the lab, in one program.
//!
//! Users' commands follow kubectl in names, flags, columns and habits, so that hands need not learn anew. What they
//! print is a table on standard output; complaints go to standard error and say what to do next.

mod age;
mod args;
mod client;
mod commands;
mod edit;
mod follow;
mod manifest;
mod output;
mod pick;
mod progress;
mod role;
mod target;
mod terminal;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::{client::ClientArgs, commands::*};

/// Runs stateful services: every replica keeps its name, its address and its volumes for life.
#[derive(Parser, Debug)]
#[command(name = "berth", version, propagate_version = true, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make the objects of a manifest so
    Apply(apply::Args),
    /// Show what an apply would change, and which pods it would replace in which order
    Diff(diff::Args),
    /// Show objects
    Get(get::Args),
    /// Show one object in full, with its events
    Describe(describe::Args),
    /// Delete objects
    Delete(delete::Args),
    /// Ask for pods to go as far as disruption budgets allow it
    Evict(evict::Args),
    /// Say how many replicas a set shall have, or take one ordinal out of it
    Scale(scale::Args),
    /// Let no more pods come to a node
    Cordon(cordon::Args),
    /// Let pods come to a node again
    Uncordon(cordon::Args),
    /// Let no more pods come to a node, and ask those that are there to go as far as disruption budgets allow it
    Drain(drain::Args),
    /// Say why pods shall keep away from a node, or go from it; also that a machine is off
    Taint(taint::Args),
    /// Set labels, which selectors look at, or take them away
    Label(label::Args),
    /// Set annotations or take them away
    Annotate(label::Args),
    /// Show the output of containers
    Logs(logs::Args),
    /// Run a command in a container
    Exec(exec::Args),
    /// Let local ports lead to ports of a pod
    PortForward(port_forward::Args),
    /// Copy files into a container or out of it
    Cp(cp::Args),
    /// Show what pods or nodes use of processors and memory
    #[command(subcommand)]
    Top(top::Command),
    /// Follow, stop or undo the rollout of a set
    #[command(subcommand)]
    Rollout(rollout::Command),
    /// Show volumes, make them larger, keep their data, bring it back or elsewhere
    #[command(subcommand)]
    Volume(volume::Command),
    /// Explain why a set, a pod or a claim is not there yet
    Why(why::Args),
    /// Wait for objects to be ready or gone
    Wait(wait::Args),
    /// Show the kinds of objects
    ApiResources,
    /// Show the version
    Version,
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// A cluster on this machine, to develop against, to show and to break
    #[command(subcommand)]
    Lab(lab::Command),
    #[command(flatten)]
    Role(role::Role),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::new(error).context("start the asynchronous runtime")),
    };
    match runtime.block_on(run(cli)) {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let client = || cli.client.connect();
    match cli.command {
        Command::Apply(args) => apply::run(client()?, args).await,
        Command::Diff(args) => diff::run(client()?, args).await,
        Command::Get(args) => get::run(client()?, args).await,
        Command::Describe(args) => describe::run(client()?, args).await,
        Command::Delete(args) => delete::run(client()?, args).await,
        Command::Evict(args) => evict::run(client()?, args).await,
        Command::Scale(args) => scale::run(client()?, args).await,
        Command::Cordon(args) => cordon::run(client()?, args, true).await,
        Command::Uncordon(args) => cordon::run(client()?, args, false).await,
        Command::Drain(args) => drain::run(client()?, args).await,
        Command::Label(args) => label::run(client()?, args, label::Map::Labels).await,
        Command::Annotate(args) => label::run(client()?, args, label::Map::Annotations).await,
        Command::Taint(args) => taint::run(client()?, args).await,
        Command::Logs(args) => logs::run(client()?, args).await,
        Command::Exec(args) => exec::run(client()?, args).await,
        Command::PortForward(args) => port_forward::run(client()?, args).await,
        Command::Cp(args) => cp::run(client()?, args).await,
        Command::Top(command) => top::run(client()?, command).await,
        Command::Rollout(command) => rollout::run(client()?, command).await,
        Command::Volume(command) => volume::run(client()?, command).await,
        Command::Why(args) => why::run(client()?, args).await,
        Command::Wait(args) => wait::run(client()?, args).await,
        Command::ApiResources => Ok(output::kinds()),
        Command::Version => {
            println!("berth {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "berth", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Lab(command) => command.run(commands::lab_ready).await,
        Command::Role(role) => role.run().await,
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    // A reader that had enough (`berth get pods | head`) is no failure.
    let closed = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    };
    if !error.chain().any(closed) {
        eprintln!("error: {error:#}");
    }
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_people_type_is_understood() {
        let lines = [
            "berth get pods",
            "berth -n db get pods,pvc -o wide",
            "berth get pods -n db -A -l app=web,tier!=x -w",
            "berth apply -f a.yaml -f - --dry-run --validate=warn",
            "berth delete sts/web --cascade=orphan --wait=false",
            "berth delete pod web-0 --grace-period 0",
            "berth evict web-0 web-1 --dry-run --grace-period 5",
            "berth evict --wait web-0",
            "berth evict pod/web-0 --wait=60s",
            "berth taint node n1 node.kubernetes.io/out-of-service=off:NoExecute",
            "berth taint node/n1 node.kubernetes.io/out-of-service:NoExecute- --dry-run",
            "berth taint node n1 gpu=yes:PreferNoSchedule",
            "berth cordon n1 n2 --dry-run",
            "berth uncordon node/n1",
            "berth drain n1 --force --delete-emptydir-data --grace-period 5 --timeout 2m -l app=web --ignore-daemonsets",
            "berth label pods web-0 web-1 tier=db old- --overwrite",
            "berth label pods --all example.com/tier=db",
            "berth annotate sts/web note=x --dry-run",
            "berth scale sts web --replicas 3",
            "berth scale --replicas=3 sts/web",
            "berth exec web-0 -c nginx -- sh -c 'exit 3'",
            "berth exec -n db web-0 -- ls -l /",
            "berth exec -it sts/web -- bash",
            "berth port-forward svc/nginx 8080:80 :web --address 127.0.0.1,::1",
            "berth cp web-0:/etc/nginx ./nginx -c nginx",
            "berth cp ./file sts/web:/tmp/",
            "berth top pods -A --containers --sort-by cpu",
            "berth top nodes -l zone=a",
            "berth logs web-0 -f --tail 10 --previous --timestamps",
            "berth logs sts/web --all -f --since 5m --prefix=false",
            "berth logs -l app=web --all-containers --tail -1 --limit-bytes 100",
            "berth logs web-0 --since-time 2026-01-31T10:00:00Z --prefix",
            "berth rollout status sts/web --timeout 120s",
            "berth rollout status sts/web --watch=false",
            "berth rollout history sts/web --revision 2",
            "berth rollout undo sts web --to-revision=1 --dry-run",
            "berth rollout pause sts/web",
            "berth rollout resume sts web",
            "berth rollout restart sts/web",
            "berth diff -f a.yaml -R",
            "berth get statefulsets.apps web -o yaml",
            "berth scale sts/web --remove-ordinal 2",
            "berth wait pod/web-1 --for deleted --timeout 60s",
            "berth wait --for=condition=Ready pod web-1",
            "berth why web-2",
            "berth volume ls",
            "berth volume ls sts/web -o wide --no-headers",
            "berth volume describe www-web-0",
            "berth volume expand sts/web --template www --size 2Gi --wait=false",
            "berth volume expand www-web-0 --size=2Gi --timeout 1m",
            "berth volume snapshot sts/web --name nightly",
            "berth volume restore pod/web-0 --from nightly --stop",
            "berth volume move www-web-0 --to node-2 --stop --wait",
            "berth lab up --nodes 3",
            "berth lab kill api --wait",
            "berth api --listen 127.0.0.1:7440 --etcd http://a:2379,http://b:2379",
            "berth csi-local --endpoint unix:///x.sock",
            "berth csi-shared --endpoint unix:///x.sock --registry /r --node-name n1 --data-dir /shared",
        ];
        for line in lines {
            let parsed = Cli::try_parse_from(line.split_whitespace());
            assert!(parsed.is_ok(), "{line}: {}", parsed.err().map(|e| e.to_string()).unwrap_or_default());
        }
        for line in [
            "berth",
            "berth get",
            "berth scale sts web",
            "berth scale sts web --replicas 2 --remove-ordinal 1",
            "berth exec web-0",
            "berth port-forward web-0",
            "berth cp web-0:/a",
            "berth logs",
            "berth logs web-0 -l app=web",
            "berth volume move web-0",
            "berth volume expand sts/web --size much",
            "berth delete",
            "berth apply",
        ] {
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
    }
}
