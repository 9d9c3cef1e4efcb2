//! Who is calling: the operator by token or by the page's session, the control plane by its token.

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use runtime::secret::{ExposeSecret as _, TokenFile, same, sha256};
use serde_json::json;

use super::App;

/// Lets the operator through.
pub(super) async fn operator(State(app): State<App>, request: Request, next: Next) -> Response {
    match admit(&app, &request, false) {
        Ok(()) => next.run(request).await,
        Err(refusal) => *refusal,
    }
}

/// Lets the control plane and the operator through.
pub(super) async fn control_plane(State(app): State<App>, request: Request, next: Next) -> Response {
    match admit(&app, &request, true) {
        Ok(()) => next.run(request).await,
        Err(refusal) => *refusal,
    }
}

fn admit(app: &App, request: &Request, control_plane: bool) -> Result<(), Box<Response>> {
    let headers = request.headers();
    if let Some(token) = bearer(headers) {
        let digest = sha256(token.as_bytes());
        let known = is_token(&app.web.operator, token)
            || (control_plane && same(&app.web.control_plane.token_digest(), &digest));
        return if known {
            Ok(())
        } else {
            Err(refuse("this token opens nothing here"))
        };
    }
    if app.sessions.check(headers) {
        // A browser sends the cookie by itself, so the request must show that our own page made it.
        app.guard
            .check(headers, request.uri())
            .map_err(|error| Box::new(error.into_response()))?;
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        if reads || dashboard::has_csrf_header(headers) {
            return Ok(());
        }
        return Err(refuse("the header x-pipeops-csrf is missing"));
    }
    Err(refuse(if control_plane {
        "send `Authorization: Bearer` with the control-plane token or the operator token"
    } else {
        "send `Authorization: Bearer` with the operator token; `agent-core token` prints it"
    }))
}

/// Whether `token` is the one in the file at this moment.
pub(super) fn is_token(file: &TokenFile, token: &str) -> bool {
    let held = file.read().ok().flatten();
    held.is_some_and(|held| {
        same(
            &sha256(held.expose_secret().as_bytes()),
            &sha256(token.as_bytes()),
        )
    })
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

fn refuse(error: &str) -> Box<Response> {
    let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
    let refusal = (
        StatusCode::UNAUTHORIZED,
        challenge,
        Json(json!({ "error": error })),
    );
    Box::new(refusal.into_response())
}
