//! Build secrets.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use bud_protocol::secrets::secrets_server::Secrets as SecretsService;
use bud_protocol::secrets::{GetSecretRequest, GetSecretResponse};
use tonic::{Request, Response, Status};

use super::Attachables;

/// Largest secret, in bytes.
pub const MAX_SECRET: usize = 500 << 10;

/// Where a secret is. It is read each time it is asked for.
#[derive(Clone)]
pub enum SecretSource {
    /// A file.
    File(PathBuf),
    /// An environment variable of this process.
    Env(String),
    /// The secret itself.
    Value(Vec<u8>),
}

impl SecretSource {
    fn read(&self, id: &str) -> Result<Vec<u8>, Status> {
        let value = match self {
            SecretSource::Value(value) => value.clone(),
            SecretSource::Env(name) => {
                use std::os::unix::ffi::OsStringExt;
                let value = std::env::var_os(name);
                value
                    .ok_or_else(|| Status::not_found(format!("secret {id}: the variable {name} is not set")))?
                    .into_vec()
            }
            SecretSource::File(path) => {
                let failed = |error: std::io::Error| {
                    let message = format!("secret {id}: reading {}: {error}", path.display());
                    match error.kind() {
                        std::io::ErrorKind::NotFound => Status::not_found(message),
                        _ => Status::failed_precondition(message),
                    }
                };
                let file = std::fs::File::open(path).map_err(failed)?;
                let mut value = Vec::new();
                file.take(MAX_SECRET as u64 + 1).read_to_end(&mut value).map_err(failed)?;
                value
            }
        };
        if value.len() > MAX_SECRET {
            return Err(Status::invalid_argument(format!("secret {id} is larger than {MAX_SECRET} bytes")));
        }
        Ok(value)
    }
}

pub(super) struct Secrets(pub(super) Arc<Attachables>);

#[tonic::async_trait]
impl SecretsService for Secrets {
    async fn get_secret(&self, request: Request<GetSecretRequest>) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        let Some(source) = self.0.secrets.get(&id).cloned() else {
            return Err(Status::not_found(format!("secret {id}: not found")));
        };
        let data = tokio::task::spawn_blocking(move || source.read(&id))
            .await
            .map_err(|panic| Status::internal(panic.to_string()))??;
        Ok(Response::new(GetSecretResponse { data }))
    }
}
