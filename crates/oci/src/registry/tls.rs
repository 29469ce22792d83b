//! TLS settings of hosts. System certificates are loaded when the first HTTPS host is asked, and once.

use super::config::{HostConfig, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, String> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("set up TLS: {e}"))
}

/// Returns a configuration that trusts nobody: for clients that only speak plain HTTP.
pub(super) fn trust_nobody() -> Result<ClientConfig, String> {
    Ok(builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// Makes a host's configuration. Reads files: not for async threads.
pub(super) fn client_config(settings: &HostConfig) -> Result<ClientConfig, String> {
    let (authorities, pairs) = files(settings)?;
    let wants_client = if settings.insecure == Some(true) {
        builder()?.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider())))
    } else {
        let mut roots = RootCertStore::clone(system_roots());
        for path in &authorities {
            let certificates = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|e| format!("read the certificates in {}: {e}", path.display()))?;
            roots.add_parsable_certificates(certificates);
        }
        builder()?.with_root_certificates(roots)
    };
    let Some(pair) = pairs.first() else { return Ok(wants_client.with_no_client_auth()) };
    let chain = CertificateDer::pem_file_iter(&pair.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| format!("read the certificate {}: {e}", pair.cert.display()))?;
    let key =
        PrivateKeyDer::from_pem_file(&pair.key).map_err(|e| format!("read the key {}: {e}", pair.key.display()))?;
    wants_client.with_client_auth_cert(chain, key).map_err(|e| format!("use the key {}: {e}", pair.key.display()))
}

/// Lists the files that settings name, and those in their directories; missing directories are empty.
fn files(settings: &HostConfig) -> Result<(Vec<PathBuf>, Vec<KeyPair>), String> {
    let (mut authorities, mut pairs) = (settings.ca.clone(), settings.keypair.clone());
    for dir in &settings.tlsconfigdir {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied) => {
                continue;
            }
            Err(e) => return Err(format!("list {}: {e}", dir.display())),
        };
        let mut paths: Vec<_> = entries.filter_map(|entry| entry.ok().map(|e| e.path())).collect();
        paths.sort();
        for path in paths {
            match path.extension().and_then(|e| e.to_str()) {
                Some("crt") => authorities.push(path),
                Some("cert") => pairs.push(KeyPair { key: with_extension(&path, "key"), cert: path }),
                _ => {}
            }
        }
    }
    Ok((authorities, pairs))
}

fn with_extension(path: &Path, extension: &str) -> PathBuf {
    path.with_extension(extension)
}

fn system_roots() -> &'static Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!("system certificates: {error}");
        }
        roots.add_parsable_certificates(found.certs);
        Arc::new(roots)
    })
}

/// Accepts any certificate, for hosts that are configured so. Signatures must still fit the certificate's key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
