//! Until the command line stands: runs the three demo origins over two shards in `./data`, until Ctrl-C.

#[cfg(feature = "demo")]
mod demo;

#[cfg(feature = "demo")]
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::path::Path;
    use tokio::net::TcpListener;

    std::fs::create_dir_all("data")?;
    let first = demo::SharedDb::open(Path::new("data/shard_0.sqlite"))?;
    let second = demo::SharedDb::open(Path::new("data/shard_1.sqlite"))?;
    let stop = || async {
        // Without a way to be told, the demo ends at once instead of never.
        let _ = tokio::signal::ctrl_c().await;
    };
    tokio::try_join!(
        demo::serve(TcpListener::bind("127.0.0.1:9001").await?, "a".into(), first.clone(), stop()),
        demo::serve(TcpListener::bind("127.0.0.1:9002").await?, "b".into(), first, stop()),
        demo::serve(TcpListener::bind("127.0.0.1:9003").await?, "c".into(), second, stop()),
    )?;
    Ok(())
}

#[cfg(not(feature = "demo"))]
fn main() {}
