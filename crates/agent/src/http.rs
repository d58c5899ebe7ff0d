//! The GET of probes and hooks, as Kubernetes' node agent sends it.
//!
//! Certificates are not checked: a pod is asked at its own address, under which no certificate is issued. Redirections
//! are followed within the same host only; one that leads elsewhere is an answer like any other.

use std::{net::SocketAddr, sync::Arc};

use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use pb::objects::{Container as ContainerSpec, HttpGetAction, IntOrString, int_or_string::Kind as Port};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};
use tokio_util::task::AbortOnDropHandle;

/// Redirections that are followed.
const REDIRECTIONS: usize = 10;

/// A container, and the address of its pod.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The container's spec: it names ports.
    pub spec: &'a ContainerSpec,
    /// The pod's address.
    pub ip: &'a str,
}

impl Target<'_> {
    /// Where a port of the container is; `host` is the pod's address when empty.
    pub fn address(&self, host: &str, port: Option<&IntOrString>) -> Result<SocketAddr, String> {
        let port = match port.and_then(|port| port.kind.as_ref()) {
            Some(Port::IntValue(number)) => *number,
            Some(Port::StringValue(name)) => match name.parse() {
                Ok(number) => number,
                Err(_) => {
                    let named = self.spec.ports.iter().find(|port| port.name == *name);
                    named.ok_or_else(|| format!("the container has no port named {name:?}"))?.container_port
                }
            },
            None => return Err("it has no port".to_owned()),
        };
        let port = u16::try_from(port).map_err(|_| format!("port {port} is not 1 to 65535"))?;
        let host = if host.is_empty() { self.ip } else { host };
        let host = host.parse().map_err(|_| format!("host {host:?} is not an IP address"))?;
        Ok(SocketAddr::new(host, port))
    }
}

/// Sends the request; answers with the status and the address that gave it.
pub async fn get(target: Target<'_>, get: &HttpGetAction) -> Result<(u16, String), String> {
    let mut address = target.address(&get.host, get.port.as_ref())?;
    let mut tls = get.scheme.eq_ignore_ascii_case("HTTPS");
    let mut path = absolute(&get.path);
    for _ in 0..=REDIRECTIONS {
        let scheme = if tls { "https" } else { "http" };
        let url = format!("{scheme}://{address}{path}");
        let (code, location) = ask(address, tls, &path, get).await.map_err(|error| format!("GET {url}: {error}"))?;
        let next = location.filter(|_| (300..400).contains(&code)).and_then(|to| follow(&to, address, tls, &path));
        let Some(next) = next else { return Ok((code, url)) };
        (address, tls, path) = next;
    }
    Err(format!("GET http://{address}: stopped after {REDIRECTIONS} redirections"))
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// Where a redirection leads; None if it leaves the host or cannot be read.
fn follow(location: &str, from: SocketAddr, tls: bool, path: &str) -> Option<(SocketAddr, bool, String)> {
    let uri: http::Uri = match location {
        _ if location.contains("://") || location.starts_with('/') => location.parse().ok()?,
        // Relative to the folder of the path that was asked for.
        relative => format!("{}/{relative}", path.split('?').next()?.rsplit_once('/')?.0).parse().ok()?,
    };
    let to = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
    let Some(host) = uri.host() else { return Some((from, tls, to)) };
    let tls = uri.scheme_str().map_or(tls, |scheme| scheme.eq_ignore_ascii_case("https"));
    let same = host.trim_matches(['[', ']']).parse() == Ok(from.ip());
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    same.then_some((SocketAddr::new(from.ip(), port), tls, to))
}

async fn ask(
    address: SocketAddr,
    tls: bool,
    path: &str,
    get: &HttpGetAction,
) -> Result<(u16, Option<String>), Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    if tls {
        let name = ServerName::IpAddress(address.ip().into());
        request(TlsConnector::from(unchecked()?).connect(name, stream).await?, address, path, get).await
    } else {
        request(stream, address, path, get).await
    }
}

async fn request<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    address: SocketAddr,
    path: &str,
    get: &HttpGetAction,
) -> Result<(u16, Option<String>), Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let own = |name: &str| get.http_headers.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    let mut request = http::Request::get(path);
    for (name, value) in [("user-agent", "berth-probe"), ("accept", "*/*"), ("host", &address.to_string())] {
        if !own(name) {
            request = request.header(name, value);
        }
    }
    for header in &get.http_headers {
        request = request.header(&header.name, &header.value);
    }
    let response = sender.send_request(request.body(Empty::<&[u8]>::new())?).await?;
    drop(connection);
    let location = response.headers().get(http::header::LOCATION).and_then(|to| to.to_str().ok()).map(str::to_owned);
    Ok((response.status().as_u16(), location))
}

/// TLS that takes every certificate.
fn unchecked() -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let verifier = Arc::new(AnyCertificate(provider));
    Ok(Arc::new(config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()))
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

    use super::*;

    /// A certificate that nobody trusts, for a name that nobody has, and its key. They open nothing.
    const CERTIFICATE: &str = "MIIBgjCCASegAwIBAgIUeqTyhVgOd+BfdyLPsbeOKHeteuMwCgYIKoZIzj0EAwIwFTETMBEGA1UEAwwKcHJvYmUudGVzdDAgFw0y\
        NjExMjMwMjM4MjdaGA8yMTI2MTAzMDAyMzgyN1owFTETMBEGA1UEAwwKcHJvYmUudGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEH\
        A0IABINOjSFqMKudeual2TbIkUiuikN4ua/okFNdaKA2jeGT3Q4HwBYnpUbk+HegfKgMprn4bzOXP25uuRD6Xne2J6ijUzBRMB0G\
        A1UdDgQWBBT9/2qGB1mD0CY8ZxZ/PrESmY31SDAfBgNVHSMEGDAWgBT9/2qGB1mD0CY8ZxZ/PrESmY31SDAPBgNVHRMBAf8EBTAD\
        AQH/MAoGCCqGSM49BAMCA0kAMEYCIQCkreXmoMp4dfcW1TDrUeSZpJn7RIPcRpNbBtd29/9jDgIhANo0ofoiJ9u8D+hjuKkNQbFd\
        AThzwh3kIqrukBx9WIaC";
    const KEY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgLlfXzTL0SGfRp9c4g4sfZmILGhRxM1FBpCfnqxaSe96hRANCAASD\
        To0hajCrnXrmpdk2yJFIropDeLmv6JBTXWigNo3hk90OB8AWJ6VG5Ph3oHyoDKa5+G8zlz9ubrkQ+l53tieo";

    #[tokio::test]
    async fn no_certificate_is_checked() {
        let der = |text: &str| BASE64_STANDARD.decode(text).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![der(CERTIFICATE).into()], der(KEY).try_into().unwrap())
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = i32::from(listener.local_addr().unwrap().port());
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let _server = AbortOnDropHandle::new(tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            let read = stream.read(&mut [0; 1024]).await.unwrap();
            assert!(read > 0);
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            stream.flush().await.unwrap();
        }));
        let spec = ContainerSpec::default();
        let port = Some(IntOrString { kind: Some(Port::IntValue(port)) });
        let asked = HttpGetAction { scheme: "HTTPS".into(), path: "ready".into(), port, ..Default::default() };
        let (code, url) = get(Target { spec: &spec, ip: "127.0.0.1" }, &asked).await.unwrap();
        assert!(code == 204 && url.starts_with("https://") && url.ends_with("/ready"), "{code} {url}");
    }

    #[test]
    fn redirections_are_followed_within_the_host_only() {
        let from: SocketAddr = "10.1.2.3:8080".parse().unwrap();
        let to = |location: &str| follow(location, from, false, "/a/b?c").map(|(a, tls, p)| (a.port(), tls, p));
        assert_eq!(to("/ready"), Some((8080, false, "/ready".into())));
        assert_eq!(to("ready?x=1"), Some((8080, false, "/a/ready?x=1".into())));
        assert_eq!(to("https://10.1.2.3/ready"), Some((443, true, "/ready".into())));
        assert_eq!(to("http://10.1.2.3:81"), Some((81, false, "/".into())));
        assert_eq!(to("http://10.1.2.4/ready"), None);
        assert_eq!(to("http://login.example/"), None);
    }
}
