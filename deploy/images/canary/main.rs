//! The canary: a program whose only work is to keep what it was given.
//!
//! It serves TCP, one request a line, the answer a line:
//!
//! - `APPEND POD PAYLOAD` writes a record to the log on the volume, forces it to the disk and only then answers
//!   `OK EPOCH NUMBER`.
//! - `READ POD` answers `DATA BYTES` and then the whole log.
//! - `FILL POD BYTES` writes so much into a file beside the log; answers `FILLED` or, when there is no more room, `FULL`,
//!   each with the number of bytes that were written and forced to the disk.
//! - `CLEAR POD` removes that file; answers `CLEARED`.
//!
//! Every request names the pod that it is meant for: an address may belong to another pod by now. What cannot be done is
//! answered with `NO` and the reason.
//!
//! It never removes or changes what it finds: a record that was torn by the end of its writer is closed with a line feed
//! and stays. Only the standard library, so that `rustc` alone builds it, statically linked.

mod record;

use std::{
    env,
    fs::{self, File},
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use record::{Record, START};

/// The longest request.
const LINE_MAX: u64 = 64 * 1024;
/// A client that says nothing for so long has gone.
const SILENCE: Duration = Duration::from_secs(60);
/// The filler is written in pieces of this size.
const PIECE: usize = 256 * 1024;

fn main() {
    if let Err(error) = serve() {
        eprintln!("canary: {error}");
        process::exit(1);
    }
}

fn serve() -> io::Result<()> {
    let folder = PathBuf::from(env::var_os("CANARY_DIR").unwrap_or_else(|| "/data".into()));
    let port = env::var("CANARY_PORT").unwrap_or_else(|_| "7000".to_owned());
    let pod = fs::read_to_string("/etc/hostname")?.trim().to_owned();
    let log = Log::open(&folder, &pod)?;
    println!("canary: {pod} writes epoch {} in {}, after {} records", log.epoch, folder.display(), log.number - 1);
    // It lives as long as the process, and so may be shared with threads that never end.
    let canary: &'static Canary = Box::leak(Box::new(Canary { pod, folder, log: Mutex::new(log) }));
    for stream in TcpListener::bind(format!("0.0.0.0:{port}"))?.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            // A client that goes away is nothing to report.
            drop(canary.talk(stream));
        });
    }
    Ok(())
}

struct Canary {
    pod: String,
    folder: PathBuf,
    log: Mutex<Log>,
}

impl Canary {
    fn talk(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        let mut requests = BufReader::new(stream.try_clone()?);
        let mut answers = stream;
        loop {
            let mut line = String::new();
            if requests.by_ref().take(LINE_MAX).read_line(&mut line)? == 0 {
                return Ok(());
            }
            let answer = self.answer(&line).unwrap_or_else(|error| format!("NO {error}\n").into_bytes());
            answers.write_all(&answer)?;
        }
    }

    fn answer(&self, line: &str) -> io::Result<Vec<u8>> {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.get(1).is_some_and(|pod| *pod != self.pod) {
            return Ok(format!("NO this is {}\n", self.pod).into_bytes());
        }
        // A thread that panicked holding the log has written nothing that the next one would not see on the disk.
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        match words.as_slice() {
            ["APPEND", _, payload] if *payload != START => {
                let number = log.append(payload)?;
                Ok(format!("OK {} {number}\n", log.epoch).into_bytes())
            }
            ["READ", _] => {
                let data = fs::read(&log.path)?;
                let mut answer = format!("DATA {}\n", data.len()).into_bytes();
                answer.extend(data);
                Ok(answer)
            }
            ["FILL", _, bytes] => {
                let wanted = bytes.parse().map_err(|_| io::Error::other("no number of bytes"))?;
                self.fill(wanted)
            }
            ["CLEAR", _] => {
                match fs::remove_file(self.filler()) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    _ => File::open(&self.folder)?.sync_all()?,
                }
                Ok(b"CLEARED\n".to_vec())
            }
            _ => Ok(b"NO such request\n".to_vec()),
        }
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }

    fn fill(&self, wanted: usize) -> io::Result<Vec<u8>> {
        let mut file = File::options().create(true).append(true).open(self.filler())?;
        let piece = vec![0xa5; PIECE];
        let mut written = 0;
        while written < wanted {
            match file.write(&piece[..PIECE.min(wanted - written)]) {
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == ErrorKind::StorageFull => return full(&file, written),
                Err(error) => return Err(error),
            }
        }
        match file.sync_all() {
            Ok(()) => Ok(format!("FILLED {written}\n").into_bytes()),
            Err(error) if error.kind() == ErrorKind::StorageFull => full(&file, written),
            Err(error) => Err(error),
        }
    }
}

fn full(file: &File, written: usize) -> io::Result<Vec<u8>> {
    file.sync_all()?;
    Ok(format!("FULL {written}\n").into_bytes())
}

/// The records, and where the next one goes.
struct Log {
    path: PathBuf,
    file: File,
    writer: String,
    epoch: u64,
    number: u64,
}

impl Log {
    /// Opens or makes the log, and begins an epoch in it.
    fn open(folder: &Path, pod: &str) -> io::Result<Self> {
        let path = folder.join("log");
        let before = match fs::read(&path) {
            Ok(before) => before,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let records = || before.split(|byte| *byte == b'\n').filter_map(Record::parse);
        let epoch = records().map(|record| record.epoch).max().unwrap_or(0) + 1;
        let number = records().map(|record| record.number).max().unwrap_or(0) + 1;
        let mut file = File::options().create(true).append(true).open(&path)?;
        if before.last().is_some_and(|last| *last != b'\n') {
            file.write_all(b"\n")?;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let mut log = Self { path, file, writer: format!("{pod}/{now:x}"), epoch, number };
        log.append(START)?;
        // The file itself must be found again, too.
        File::open(folder)?.sync_all()?;
        Ok(log)
    }

    /// Writes a record, and gives its number once it is on the disk.
    fn append(&mut self, payload: &str) -> io::Result<u64> {
        let number = self.number;
        let record = Record { epoch: self.epoch, number, writer: self.writer.clone(), payload: payload.to_owned() };
        let length = self.file.metadata()?.len();
        if let Err(error) = self.file.write_all(record.line().as_bytes()) {
            // A part of the line may be there, when the room ends within it.
            self.file.set_len(length)?;
            return Err(error);
        }
        if let Err(error) = self.file.sync_all() {
            // What a disk did after it failed to write is known to nobody: the next life reads it.
            eprintln!("canary: cannot force a record to the disk: {error}");
            process::exit(1);
        }
        self.number += 1;
        Ok(number)
    }
}
