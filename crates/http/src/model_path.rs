//! The model that a route's path names.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use serde::Deserialize;

use crate::failure::ApiError;

/// `{name}` and, where the route has it, `{version}`.
#[derive(Debug, Deserialize)]
pub(crate) struct ModelPath {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) version: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for ModelPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(path) = Path::<Self>::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::invalid_message())?;
        Ok(path)
    }
}
