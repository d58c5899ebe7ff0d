//! A registry of images on the machine, as much of it as a pull needs, for one user with a password.

use std::{
    collections::BTreeMap,
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::{Request, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// User and password.
pub const USER: (&str, &str) = ("joe", "secret");

pub struct Registry {
    /// Blobs of an image by digest.
    blobs: BTreeMap<String, Vec<u8>>,
    manifest: String,
    kind: String,
    /// Manifests asked for with the right password.
    pub asked: AtomicUsize,
}

impl Registry {
    /// Serves the image of an OCI archive at `address`, under every name and tag.
    pub async fn serve(address: &str, archive: &std::path::Path) -> Arc<Self> {
        let mut files = BTreeMap::new();
        let mut tar = tar::Archive::new(std::fs::File::open(archive).unwrap());
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().trim_start_matches("./").to_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(path, bytes);
        }
        let index: serde_json::Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let first = &index["manifests"][0];
        let text = |name: &str| first[name].as_str().unwrap().to_owned();
        let blobs = files.into_iter().filter_map(|(path, bytes)| {
            let hash = path.strip_prefix("blobs/sha256/")?.to_owned();
            Some((format!("sha256:{hash}"), bytes))
        });
        let registry = Self {
            blobs: blobs.collect(),
            manifest: text("digest"),
            kind: text("mediaType"),
            asked: AtomicUsize::new(0),
        };
        let registry = Arc::new(registry);
        let listener = TcpListener::bind(address).await.unwrap();
        let serving = registry.clone();
        tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let serving = serving.clone();
                let service = service_fn(move |request| {
                    let answer = serving.answer(&request);
                    async { Ok::<_, std::convert::Infallible>(answer) }
                });
                tokio::spawn(async move {
                    // A client that goes away is none of the test's business.
                    drop(
                        hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(connection), service)
                            .await,
                    );
                });
            }
        });
        registry
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let wanted = format!("Basic {}", STANDARD.encode(format!("{}:{}", USER.0, USER.1)));
        let given = request.headers().get("authorization").map(|value| value.to_str().unwrap());
        if given != Some(wanted.as_str()) {
            return Response::builder()
                .status(StatusCode::UNAUTHORIZED)
                .header("www-authenticate", "Basic realm=\"test\"")
                .body(Full::default())
                .unwrap();
        }
        let path = request.uri().path();
        let (digest, kind) = if path.contains("/manifests/") {
            self.asked.fetch_add(1, Ordering::Relaxed);
            (self.manifest.as_str(), self.kind.as_str())
        } else {
            (path.rsplit('/').next().unwrap(), "application/octet-stream")
        };
        let Some(bytes) = self.blobs.get(digest) else {
            return Response::builder().status(StatusCode::NOT_FOUND).body(Full::default()).unwrap();
        };
        let body = if request.method() == "HEAD" { Bytes::new() } else { Bytes::from(bytes.clone()) };
        Response::builder()
            .header("content-type", kind)
            .header("content-length", bytes.len())
            .header("docker-content-digest", digest)
            .body(Full::new(body))
            .unwrap()
    }
}
