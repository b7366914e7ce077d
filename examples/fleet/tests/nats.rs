//! A fleet that uses NATS, with a real server that each test starts. Run it with
//! `cargo test -p fleet --features nats-tests --test nats`.

mod common;

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use common::{HANG, journal, rows, serving, settings, signal};
use fleet::link::Failure;
use fleet::load::{Load, Target, run};
use fleet::nats::{Caller, Repeat};
use fleet::protocol::{Ask, LONGEST_ANSWER, content};
use fleet::supervisor::{Fleet, Settings};
use rustix::process::Signal;
use tokio::time::{Instant, sleep, timeout};

struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        Self {
            process: Self::spawn(port),
            port,
        }
    }

    fn spawn(port: u16) -> Child {
        Command::new("nats-server")
            .args(["--addr", "127.0.0.1", "--port", &port.to_string()])
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server does not start: install it, on Debian with `apt-get install nats-server`")
    }

    fn restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = Self::spawn(self.port);
    }

    fn url(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts a fleet, and waits until all of it takes requests.
    async fn fleet(&self, settings: Settings) -> (Fleet, Caller) {
        let names: Vec<_> = (0..settings.vms)
            .map(|number| format!("{}-{number}", settings.host))
            .collect();
        let fleet = Fleet::start(Settings {
            nats: Some(self.url()),
            ..settings
        })
        .await
        .unwrap();
        let caller = Caller::connect(&self.url()).await.unwrap();
        for name in names {
            let ask = Ask {
                key: u64::MAX,
                size: 1,
                work_ms: 0,
            };
            caller
                .ask(Some(&name), ask, soon(), Repeat::May)
                .await
                .unwrap();
        }
        rows(&fleet, serving).await;
        (fleet, caller)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn soon() -> Instant {
    Instant::now() + HANG
}

#[tokio::test]
async fn callers_reach_one_vm_or_any_and_nats_counts() {
    let server = Server::start();
    let (fleet, caller) = server.fleet(settings(2)).await;
    for (to, size) in [
        (Some("test-0"), 0),
        (Some("test-1"), 65537),
        (None, LONGEST_ANSWER),
    ] {
        let ask = Ask {
            key: 3,
            size,
            work_ms: 0,
        };
        let answer = caller.ask(to, ask, soon(), Repeat::Never).await.unwrap();
        assert_eq!(answer, content(3, 0, size as usize));
    }
    let statistics = caller.statistics().await.unwrap();
    assert_eq!(statistics.len(), 2, "{statistics:?}");
    assert!(
        statistics
            .iter()
            .all(|instance| instance.contains(r#""subject":"fleet.vm.test-"#)),
        "{statistics:?}"
    );

    let ask = Ask {
        key: 4,
        size: 1,
        work_ms: 0,
    };
    let limit = Instant::now() + Duration::from_millis(300);
    let failure = caller
        .ask(Some("nobody"), ask, limit, Repeat::Never)
        .await
        .unwrap_err();
    assert_eq!(failure, Failure::never_sent("no VM is there"));
    fleet.shut_down().await;
}

#[tokio::test]
async fn a_request_whose_vm_is_killed_fails_at_once_or_is_repeated_if_it_may_be() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let server = Server::start();
    let (fleet, caller) = server
        .fleet(Settings {
            journal: Some(path.clone()),
            ..settings(1)
        })
        .await;
    let an_hour = Instant::now() + Duration::from_secs(3600);
    for (key, repeat) in [(1, Repeat::Never), (2, Repeat::May)] {
        let pid = rows(&fleet, serving).await[0].pid.unwrap();
        let ask = Ask {
            key,
            size: 1,
            work_ms: if repeat == Repeat::May {
                1000
            } else {
                3_600_000
            },
        };
        let killing = async {
            while !journal(&path).contains_key(&key) {
                sleep(Duration::from_millis(10)).await;
            }
            signal(pid, Signal::KILL);
        };
        let asking = caller.ask(Some("test-0"), ask, an_hour, repeat);
        let (answer, ()) = timeout(HANG, async { tokio::join!(asking, killing) })
            .await
            .expect("at once");
        match repeat {
            Repeat::Never => assert_eq!(answer.unwrap_err(), Failure::perhaps("the VM has ended")),
            Repeat::May => assert_eq!(answer.unwrap(), content(key, 0, 1)),
        }
    }
    let begun = journal(&path);
    assert_eq!((begun[&1], begun[&2]), (1, 2));
    fleet.shut_down().await;
}

#[tokio::test]
async fn an_agent_that_stalls_is_replaced() {
    let server = Server::start();
    let stall = Duration::from_secs(1);
    let (fleet, caller) = server
        .fleet(Settings {
            stall,
            ..settings(1)
        })
        .await;
    let ask = Ask {
        key: 1,
        size: 1,
        work_ms: 3_600_000,
    };
    let failure = timeout(HANG, caller.ask(None, ask, soon() + HANG, Repeat::Never)).await;
    assert_eq!(
        failure.expect("no hang").unwrap_err(),
        Failure::perhaps("the VM has ended")
    );
    let row = rows(&fleet, |rows| rows[0].restarts == 1 && serving(rows))
        .await
        .remove(0);
    assert!(
        row.reason.contains("stalled: owed an answer"),
        "{}",
        row.reason
    );
    let ask = Ask {
        key: 2,
        size: 1,
        work_ms: 0,
    };
    assert_eq!(
        caller.ask(None, ask, soon(), Repeat::Never).await.unwrap(),
        content(2, 0, 1)
    );
    fleet.shut_down().await;
}

#[tokio::test]
async fn counts_add_up_while_vms_are_killed_and_the_server_is_restarted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let mut server = Server::start();
    let (fleet, caller) = server
        .fleet(Settings {
            journal: Some(path.clone()),
            ..settings(4)
        })
        .await;
    let limit = Duration::from_secs(10);
    let load = Load {
        requests: 1000,
        at_once: 16,
        limit,
        size: None,
        first_key: 0,
    };
    let done = AtomicU64::new(0);
    let target = Target::Nats(caller.clone(), Repeat::Never);
    let trouble = async {
        sleep(Duration::from_millis(300)).await;
        signal(rows(&fleet, serving).await[0].pid.unwrap(), Signal::KILL);
        sleep(Duration::from_millis(300)).await;
        server.restart();
    };
    let (counts, ()) = tokio::join!(run(&target, &load, &done), trouble);
    assert!(counts.add_up(), "{counts}");
    // Afterwards all is well again.
    let after = Load {
        requests: 100,
        first_key: 1000,
        limit: HANG,
        ..load
    };
    let again = run(&Target::Nats(caller, Repeat::Never), &after, &done).await;
    assert_eq!((again.answered, again.wrong), (100, 0), "{again}");

    let mut begun = journal(&path);
    begun.remove(&u64::MAX); // what the start asked
    assert!(
        begun.values().all(|&times| times == 1),
        "carried out twice: {begun:?}"
    );
    assert!(
        begun.len() as u64 >= counts.answered + again.answered,
        "{} begun, {counts}",
        begun.len()
    );
    println!("{counts}");
    fleet.shut_down().await;
}
