//! Credentials for registries. Tokens are the daemon's business: without a token authority it fetches them itself.

use std::sync::Arc;

use bud_protocol::filesync::auth_server::Auth as AuthService;
use bud_protocol::filesync::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
    GetTokenAuthorityResponse, VerifyTokenAuthorityRequest, VerifyTokenAuthorityResponse,
};
use tonic::{Request, Response, Status};

use super::Attachables;
use crate::Credentials;

/// Knows the user's credentials.
#[tonic::async_trait]
pub trait CredentialProvider: Send + Sync + 'static {
    /// Returns the credentials for a registry's host (`registry-1.docker.io` for Docker Hub); an error says why they can't be had.
    async fn credentials(&self, host: &str) -> Result<Option<Credentials>, String>;
}

pub(super) struct Auth(pub(super) Arc<Attachables>);

fn unimplemented<T>() -> Result<T, Status> {
    Err(Status::unimplemented("this client fetches no tokens: ask for credentials"))
}

#[tonic::async_trait]
impl AuthService for Auth {
    async fn credentials(&self, request: Request<CredentialsRequest>) -> Result<Response<CredentialsResponse>, Status> {
        let host = request.into_inner().host;
        let Some(provider) = &self.0.credentials else { return unimplemented() };
        let credentials = provider.credentials(&host).await.map_err(Status::unknown)?.unwrap_or_default();
        Ok(Response::new(CredentialsResponse { username: credentials.username, secret: credentials.secret }))
    }

    async fn fetch_token(&self, _: Request<FetchTokenRequest>) -> Result<Response<FetchTokenResponse>, Status> {
        unimplemented()
    }

    async fn get_token_authority(
        &self,
        _: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        unimplemented()
    }

    async fn verify_token_authority(
        &self,
        _: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        unimplemented()
    }
}
