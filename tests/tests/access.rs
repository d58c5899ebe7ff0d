//! What users do in running pods, with the real command, through an API service that is on no node: and how it ends.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use pb::{Kind, ObjectExt, objects::Pod};
use tests::{
    LabGuard,
    client::{Client, is_ready, set_manifest},
    process::berth_bin,
};

/// For pods to become ready.
const PATIENCE: Duration = Duration::from_secs(90);

/// For anything that should happen at once.
const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn access_to_running_pods() -> Result<()> {
    let lab = LabGuard::up()?;
    let told = stories(&lab).await;
    if told.is_err() {
        eprintln!("{}", lab.complaints());
    }
    told?;
    drop(lab);
    tests::nothing_is_left()
}

async fn stories(lab: &LabGuard) -> Result<()> {
    let client = Client::new(&lab.lab.server())?;
    client.apply(&[set_manifest("web", 2)]).await?;
    for name in ["web-0", "web-1"] {
        client.until::<Pod>(name, PATIENCE, is_ready).await?;
    }
    let berth = Berth { server: lab.lab.server() };
    a_command_has_the_users_terminal(&berth).context("exec -it")?;
    a_pipe_goes_through_a_command(&berth).context("exec -i")?;
    connections_go_to_the_pod(&berth).context("port-forward")?;
    files_go_there_and_back(&berth).context("cp")?;
    logs_of_all_pods_are_kept_apart(&berth).context("logs --all")?;
    use_is_shown(&berth).context("top")?;
    a_user_who_goes_away_ends_the_command(&berth).context("a killed user")?;
    an_api_service_that_goes_away_ends_the_command(lab, &berth).await.context("a killed API service")?;
    all_ends_with_the_pod(&client, &berth).await.context("a deleted pod")
}

/// The command, as a user of one cluster.
struct Berth {
    server: String,
}

impl Berth {
    fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(berth_bin()?);
        command.args(args).env("BERTH_SERVER", &self.server);
        Ok(command)
    }

    /// Runs to the end; what it wrote.
    fn run(&self, args: &[&str]) -> Result<Output> {
        Ok(self.command(args)?.stdin(Stdio::null()).output()?)
    }

    fn text(&self, args: &[&str]) -> Result<String> {
        let output = self.run(args)?;
        ensure!(
            output.status.success(),
            "berth {args:?}: {} {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    fn start(&self, args: &[&str]) -> Result<Running> {
        Running::of(self.command(args)?)
    }
}

/// A command that runs, killed when this is dropped.
struct Running {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
    heard: Vec<String>,
}

impl Running {
    fn of(mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("no output")?;
        Ok(Self { child, lines: lines(stdout), heard: Vec::new() })
    }

    fn say(&mut self, text: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("no input")?;
        stdin.write_all(text.as_bytes())?;
        Ok(stdin.flush()?)
    }

    /// The next line that has this text.
    fn hear(&mut self, text: &str, limit: Duration) -> Result<String> {
        let end = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return Ok(line),
                Ok(line) => self.heard.push(line),
                Err(_) => bail!("{text:?} was not heard within {limit:?}, but {:?}", self.heard),
            }
        }
    }

    fn ended(&mut self) -> Result<ExitStatus> {
        let end = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < end, "it has not ended within {SOON:?}; heard {:?}", self.heard);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("a command cannot be ended: {error}");
        }
    }
}

fn lines(from: ChildStdout) -> std::sync::mpsc::Receiver<String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    receiver
}

/// Whether a process with this argument lives on this machine.
fn lives(argument: &str) -> bool {
    let of = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).unwrap_or_default();
    let named = |line: Vec<u8>| {
        let mut parts = line.split(|byte| *byte == 0);
        parts.next().is_some_and(|program| program.ends_with(b"sleep")) && parts.any(|part| part == argument.as_bytes())
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().map(of).any(named)
}

fn wait(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    let end = Instant::now() + SOON;
    while !holds() {
        ensure!(Instant::now() < end, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn a_command_has_the_users_terminal(berth: &Berth) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let flag = folder.path().join("resize");
    // A terminal of its own by script(1), which becomes larger when the flag is there.
    let script = format!(
        "stty rows 30 cols 100; (while ! test -e {}; do sleep 0.05; done; stty rows 40 cols 120 < /dev/tty) & \
         {} exec -it web-0 -- sh; code=$?; stty -a | grep -q ' icanon' && echo given-back; exit $code",
        flag.display(),
        berth_bin()?.display(),
    );
    let mut command = Command::new("script");
    command.args(["-qfec", &script, "/dev/null"]).env("BERTH_SERVER", &berth.server).env("SHELL", "/bin/sh");
    let mut shell = Running::of(command)?;
    shell.say("echo size $(stty size)\n")?;
    shell.hear("size 30 100", SOON)?;
    fs::write(&flag, "")?;
    let end = Instant::now() + SOON;
    loop {
        shell.say("echo size $(stty size)\n")?;
        match shell.hear("size 40 120", Duration::from_millis(500)) {
            Ok(_) => break,
            Err(error) => ensure!(Instant::now() < end, "{error}"),
        }
    }
    shell.say("hostname; exit 5\n")?;
    shell.hear("web-0", SOON)?;
    shell.hear("given-back", SOON)?;
    let status = shell.ended()?;
    ensure!(status.code() == Some(5), "the shell's exit code is lost: {status}");
    println!("exec -it: a terminal that changes its size, an exit code, and the user's terminal given back");
    Ok(())
}

fn a_pipe_goes_through_a_command(berth: &Berth) -> Result<()> {
    let mut child = berth
        .command(&["exec", "-i", "sts/web", "--", "wc", "-c"])?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no input")?.write_all(&vec![b'x'; 1 << 20])?;
    let output = child.wait_with_output()?;
    let counted = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(output.status.success() && counted == (1 << 20).to_string(), "{counted:?} {}", output.status);
    let failed = berth.run(&["exec", "web-0", "--", "sh", "-c", "echo out; echo err >&2; exit 9"])?;
    ensure!(failed.status.code() == Some(9) && failed.stdout == b"out\n" && failed.stderr == b"err\n", "{failed:?}");
    let missing = berth.run(&["exec", "web-0", "--", "no-such-program"])?;
    ensure!(String::from_utf8_lossy(&missing.stderr).contains("no-such-program"), "{missing:?}");
    Ok(())
}

fn get(port: &str) -> Result<String> {
    let mut connection = TcpStream::connect(format!("127.0.0.1:{port}"))?;
    connection.set_read_timeout(Some(SOON))?;
    connection.write_all(b"GET /there HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    connection.read_to_string(&mut page)?;
    Ok(page)
}

/// The local port of a forward that listens.
fn forwarded(forward: &mut Running, remote: &str) -> Result<String> {
    let line = forward.hear(&format!("-> {remote}"), SOON)?;
    let port = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split_whitespace().next());
    Ok(port.with_context(|| format!("no port in {line:?}"))?.to_owned())
}

fn connections_go_to_the_pod(berth: &Berth) -> Result<()> {
    let mut forward = berth.start(&["port-forward", "pod/web-0", ":web", ":81", "--address", "127.0.0.1"])?;
    let (good, bad) = (forwarded(&mut forward, "80")?, forwarded(&mut forward, "81")?);
    for _ in 0..3 {
        ensure!(get(&good)?.contains("nginx"), "no page of nginx");
        // Nothing listens there: this connection ends, the others go on.
        ensure!(get(&bad).unwrap_or_default().is_empty(), "a page from nowhere");
    }
    let interrupted = Command::new("kill").args(["-INT", &forward.child.id().to_string()]).status()?;
    ensure!(interrupted.success() && forward.ended()?.success(), "an interrupted forward ends well");
    Ok(())
}

fn files_go_there_and_back(berth: &Berth) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("deep/er"))?;
    fs::write(tree.join("deep/er/big"), vec![b'x'; 3 << 20])?;
    fs::write(tree.join("small"), "small")?;
    let (from, back) = (tree.display().to_string(), folder.path().join("back").display().to_string());
    berth.text(&["cp", &from, "web-1:/tmp"])?;
    berth.text(&["cp", &from, "web-1:/tmp/renamed"])?;
    let seen = berth.text(&["exec", "web-1", "--", "cat", "/tmp/tree/small", "/tmp/renamed/small"])?;
    ensure!(seen == "smallsmall", "{seen:?}");
    berth.text(&["cp", "web-1:/tmp/renamed", &back])?;
    let compared = Command::new("diff").args(["-r", &from, &back]).status()?;
    ensure!(compared.success(), "what came back is not what went");
    let missing = berth.run(&["cp", "web-1:/no/such", &back])?;
    ensure!(String::from_utf8_lossy(&missing.stderr).contains("/no/such"), "{missing:?}");
    Ok(())
}

/// Lets the container of a pod write a line.
fn write_line(berth: &Berth, pod: &str, line: &str) -> Result<()> {
    berth.text(&["exec", pod, "--", "sh", "-c", &format!("echo {line} > /proc/1/fd/1")]).map(drop)
}

fn logs_of_all_pods_are_kept_apart(berth: &Berth) -> Result<()> {
    let mut followed = berth.start(&["logs", "sts/web", "--all", "-f"])?;
    for pod in ["web-0", "web-1"] {
        write_line(berth, pod, &format!("hello of {pod}"))?;
        let line = followed.hear("hello of", SOON)?;
        ensure!(line == format!("[{pod}/nginx] hello of {pod}"), "{line:?}");
    }
    let all = berth.text(&["logs", "-l", "app=web", "--since", "1h", "--tail", "-1", "--timestamps"])?;
    ensure!(all.lines().filter(|line| line.contains("hello of web-")).count() == 2, "{all}");
    Ok(())
}

fn use_is_shown(berth: &Berth) -> Result<()> {
    let pods = berth.text(&["top", "pods", "--containers"])?;
    ensure!(["web-0", "web-1"].iter().all(|pod| pods.contains(pod)) && pods.contains("Mi"), "{pods}");
    let nodes = berth.text(&["top", "nodes", "--no-headers"])?;
    ensure!(nodes.lines().count() == 3 && nodes.contains('%'), "{nodes}");
    Ok(())
}

fn a_user_who_goes_away_ends_the_command(berth: &Berth) -> Result<()> {
    let command = berth.start(&["exec", "web-0", "--", "sleep", "42420"])?;
    wait("the command runs", || lives("42420"))?;
    // With SIGKILL: nothing can be said any more.
    drop(command);
    wait("the command is ended", || !lives("42420"))
}

async fn an_api_service_that_goes_away_ends_the_command(lab: &LabGuard, berth: &Berth) -> Result<()> {
    let mut command = berth.start(&["exec", "web-0", "--", "sleep", "42421"])?;
    wait("the command runs", || lives("42421"))?;
    lab.kill_and_wait("api").await?;
    ensure!(!command.ended()?.success(), "a command that was ended looks like success");
    wait("the command is ended", || !lives("42421"))
}

async fn all_ends_with_the_pod(client: &Client, berth: &Berth) -> Result<()> {
    let before = client.until::<Pod>("web-1", PATIENCE, is_ready).await?;
    let mut followed = berth.start(&["logs", "-f", "web-1", "--tail", "0"])?;
    let mut all = berth.start(&["logs", "sts/web", "--all", "-f", "--tail", "0"])?;
    let mut forward = berth.start(&["port-forward", "web-1", ":80", "--address", "127.0.0.1"])?;
    forwarded(&mut forward, "80")?;
    let mut command = berth.start(&["exec", "web-1", "--", "sleep", "42422"])?;
    wait("the command runs", || lives("42422"))?;
    write_line(berth, "web-1", "before")?;
    followed.hear("before", SOON)?;
    all.hear("[web-1/nginx] before", SOON)?;
    client.delete(Kind::Pod, "web-1").await?;
    ensure!(command.ended()?.code() == Some(137), "a command that was killed says so");
    ensure!(followed.ended()?.success(), "logs end with their container");
    ensure!(!forward.ended()?.success(), "a forward to nothing ends");
    let uid = before.uid().to_owned();
    client.until::<Pod>("web-1", PATIENCE, |pod| is_ready(pod) && pod.uid() != uid).await?;
    write_line(berth, "web-1", "after")?;
    all.hear("[web-1/nginx] after", SOON)?;
    println!("exec, logs -f and port-forward end with the pod; logs of the set go on with the next one");
    Ok(())
}
