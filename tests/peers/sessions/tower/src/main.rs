//! tower-sessions with its Redis store in axum, on one thread, plus the one thing that ending all sessions of a user
//! needs and it does not offer: a set of a user's session ids, kept by the application.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tower_sessions::cookie::SameSite;
use tower_sessions::{Expiry, Session, SessionManagerLayer};
use tower_sessions_redis_store::RedisStore;
use tower_sessions_redis_store::fred::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As many as its documentation shows.
const CONNECTIONS: usize = 6;

const USER: &str = "user_id";

#[derive(Serialize, Deserialize)]
struct User {
    user_id: String,
}

type Answer = Result<(StatusCode, Json<User>), (StatusCode, String)>;

fn failed(error: impl std::fmt::Display) -> (StatusCode, String) {
    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

fn index(user: &str) -> String {
    format!("user-sessions:{user}")
}

async fn login(State(redis): State<Pool>, session: Session, Json(user): Json<User>) -> Answer {
    session.insert(USER, &user.user_id).await.map_err(failed)?;
    note(&redis, &session, &user.user_id).await?;
    Ok((StatusCode::CREATED, Json(user)))
}

async fn me(session: Session) -> Answer {
    Ok((StatusCode::OK, Json(User { user_id: user_of(&session).await? })))
}

/// The nearest to a rotation: a new id for the same session; the old one stops working.
async fn refresh(State(redis): State<Pool>, session: Session) -> Answer {
    let user_id = user_of(&session).await?;
    let old = session.id().map(|id| id.to_string()).unwrap_or_default();
    session.cycle_id().await.map_err(failed)?;
    redis.srem::<(), _, _>(index(&user_id), old).await.map_err(failed)?;
    note(&redis, &session, &user_id).await?;
    Ok((StatusCode::OK, Json(User { user_id })))
}

async fn revoke_all(State(redis): State<Pool>, Path(user_id): Path<String>) -> Answer {
    let ids: Vec<String> = redis.smembers(index(&user_id)).await.map_err(failed)?;
    // Each key has a slot of its own, so each is a call.
    for id in ids {
        redis.del::<(), _>(id).await.map_err(failed)?;
    }
    redis.del::<(), _>(index(&user_id)).await.map_err(failed)?;
    Ok((StatusCode::OK, Json(User { user_id })))
}

async fn user_of(session: &Session) -> Result<String, (StatusCode, String)> {
    let user = session.get(USER).await.map_err(failed)?;
    user.ok_or((StatusCode::UNAUTHORIZED, "no session".to_owned()))
}

/// A new session has its id once it was saved.
async fn note(redis: &Pool, session: &Session, user: &str) -> Result<(), (StatusCode, String)> {
    session.save().await.map_err(failed)?;
    let id = session.id().map(|id| id.to_string()).unwrap_or_default();
    redis.sadd::<(), _, _>(index(user), id).await.map_err(failed)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let servers = std::env::var("REDIS")?;
        let mut servers = servers.split(',');
        let first = servers.next().unwrap_or_default();
        let others: Vec<String> = servers.map(|server| format!("node={server}")).collect();
        let url = match others.is_empty() {
            true => format!("redis://{first}"),
            false => format!("redis-cluster://{first}?{}", others.join("&")),
        };
        let redis = Pool::new(Config::from_url(&url)?, None, None, None, CONNECTIONS)?;
        redis.init().await?;
        let sessions = SessionManagerLayer::new(RedisStore::new(redis.clone()))
            .with_secure(false)
            .with_same_site(SameSite::Lax)
            .with_expiry(Expiry::OnInactivity(time::Duration::days(30)));
        let app = Router::new()
            .route("/login", post(login))
            .route("/me", get(me))
            .route("/refresh", post(refresh))
            .route("/users/{id}/sessions", delete(revoke_all))
            .layer(sessions)
            .with_state(redis);
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", std::env::var("PORT")?.parse()?)).await?;
        let listener = listener.tap_io(|socket| {
            let _ = socket.set_nodelay(true);
        });
        axum::serve(listener, app).await?;
        Ok(())
    })
}
