//! Child processes that do not outlive the test.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

/// The berth binary under test: `BERTH_BIN`, or the one beside the test program.
pub fn berth_bin() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BERTH_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("find this program")?;
    let beside = own.ancestors().skip(1).take(2).map(|folder| folder.join("berth")).find(|path| path.exists());
    beside.context("there is no berth binary: build it with `cargo build -p cli`, or name it in BERTH_BIN")
}

/// A process that is killed when this is dropped.
pub struct Process {
    name: String,
    command: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts a program whose output goes to `<folder>/<name>.log`.
    pub fn start(
        name: &str,
        program: &Path,
        args: &[String],
        environment: &[(&str, &str)],
        folder: &Path,
    ) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let mut command = vec![program.display().to_string()];
        command.extend_from_slice(args);
        let environment: Vec<_> =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let child = spawn(&command, &environment, &log)?;
        Ok(Self { name: name.to_owned(), command, environment, log, child })
    }

    /// SIGKILL, then the same again.
    pub fn kill_and_restart(&mut self) -> Result<()> {
        self.stop();
        self.child = spawn(&self.command, &self.environment, &self.log)?;
        Ok(())
    }

    /// The end of what it printed.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SIGTERM: it may end in its own way.
    pub fn terminate(&self) -> Result<()> {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-TERM", &id]).status().context("run kill")?;
        anyhow::ensure!(status.success(), "{} is not there to be ended", self.name);
        Ok(())
    }

    /// SIGKILL, and nothing after it until [`Process::kill_and_restart`].
    pub fn stop(&mut self) {
        // A process that has ended already is as dead as we want it.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn spawn(command: &[String], environment: &[(String, String)], log: &Path) -> Result<Child> {
    let out = File::options().create(true).append(true).open(log).with_context(|| format!("open {}", log.display()))?;
    let (program, args) = command.split_first().context("an empty command")?;
    Command::new(program)
        .args(args)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()
        .with_context(|| format!("start {program}"))
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("--- {} ({}):\n{}", self.name, self.log.display(), self.log_tail());
        }
    }
}
