//! What one says to a canary, over one TCP connection.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

use super::{PORT, ledger::Place};

/// For a connection to a pod of the same machine.
const CONNECT: Duration = Duration::from_secs(2);
/// For a record to be on a busy disk. Who waits for longer knows no more.
const APPEND: Duration = Duration::from_secs(3);
/// For any other answer.
const ANSWER: Duration = Duration::from_secs(10);
/// For writing as much as a volume holds.
const FILL: Duration = Duration::from_secs(60);
/// No log of a test is larger.
const LOG_MAX: usize = 256 << 20;

/// A connection to a canary.
pub struct Line {
    stream: BufReader<TcpStream>,
    pod: String,
}

/// How a [`Line::fill`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// Everything was written; so many bytes.
    All(u64),
    /// There was no more room after so many bytes.
    Full(u64),
}

impl Line {
    /// Connects to the canary of a pod.
    pub async fn connect(pod: &str, address: IpAddr) -> Result<Self> {
        let stream = timeout(CONNECT, TcpStream::connect(SocketAddr::new(address, PORT)))
            .await
            .with_context(|| format!("{pod} at {address} does not take a connection"))??;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), pod: pod.to_owned() })
    }

    /// Writes a record; says where it is once it is on the disk.
    pub async fn append(&mut self, payload: &str) -> Result<Place> {
        let answer = self.ask(&format!("APPEND {} {payload}", self.pod), APPEND).await?;
        match answer.split(' ').collect::<Vec<_>>().as_slice() {
            ["OK", epoch, number] => Ok(Place { epoch: epoch.parse()?, number: number.parse()? }),
            _ => bail!("{}: {answer}", self.pod),
        }
    }

    /// Everything that is in the log.
    pub async fn read(&mut self) -> Result<Vec<u8>> {
        let answer = self.ask(&format!("READ {}", self.pod), ANSWER).await?;
        let Some(bytes) = answer.strip_prefix("DATA ") else { bail!("{}: {answer}", self.pod) };
        let bytes: usize = bytes.parse()?;
        anyhow::ensure!(bytes <= LOG_MAX, "{}: a log of {bytes} bytes", self.pod);
        let mut log = vec![0; bytes];
        timeout(ANSWER, self.stream.read_exact(&mut log)).await.context("the log does not arrive")??;
        Ok(log)
    }

    /// Writes so many bytes beside the log.
    pub async fn fill(&mut self, bytes: u64) -> Result<Filled> {
        let answer = self.ask(&format!("FILL {} {bytes}", self.pod), FILL).await?;
        match answer.split_once(' ') {
            Some(("FILLED", bytes)) => Ok(Filled::All(bytes.parse()?)),
            Some(("FULL", bytes)) => Ok(Filled::Full(bytes.parse()?)),
            _ => bail!("{}: {answer}", self.pod),
        }
    }

    /// Removes what [`Line::fill`] wrote.
    pub async fn clear(&mut self) -> Result<()> {
        let answer = self.ask(&format!("CLEAR {}", self.pod), ANSWER).await?;
        anyhow::ensure!(answer == "CLEARED", "{}: {answer}", self.pod);
        Ok(())
    }

    async fn ask(&mut self, request: &str, limit: Duration) -> Result<String> {
        let asked = async {
            self.stream.write_all(format!("{request}\n").as_bytes()).await?;
            let mut answer = String::new();
            anyhow::ensure!(self.stream.read_line(&mut answer).await? > 0, "it hung up");
            anyhow::ensure!(answer.ends_with('\n'), "it hung up within an answer");
            Ok(answer.trim_end().to_owned())
        };
        timeout(limit, asked).await.with_context(|| format!("{} does not answer", self.pod))?
    }
}
