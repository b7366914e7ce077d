//! A fleet that uses NATS, with a real server that each test starts. Run it with
//! `cargo test -p fleet --features nats-tests --test nats`.

mod common;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{HANG, begun, journal, rows, serving, settings, signal};
use fleet::link::Failure;
use fleet::load::{Load, Target, run};
use fleet::nats::{Caller, Repeat};
use fleet::protocol::{Ask, LONGEST_ANSWER, content};
use fleet::supervisor::{Fleet, Settings};
use futures::future::join_all;
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

/// A supervisor in a process of its own, as on another machine.
struct Supervisor {
    process: Child,
}

impl Supervisor {
    async fn start(server: &Server, vms: usize, journal: Option<&Path>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fleet"));
        command.args([
            "run",
            "--host",
            "other",
            "--vms",
            &vms.to_string(),
            "--nats",
            &server.url(),
        ]);
        if let Some(journal) = journal {
            command.arg("--journal").arg(journal);
        }
        let process = command.stdout(Stdio::null()).spawn().unwrap();
        let caller = Caller::connect(&server.url()).await.unwrap();
        for number in 0..vms {
            let ask = Ask {
                key: u64::MAX,
                size: 1,
                work_ms: 0,
            };
            caller
                .ask(Some(&format!("other-{number}")), ask, soon(), Repeat::May)
                .await
                .unwrap();
        }
        Self { process }
    }
}

impl Drop for Supervisor {
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
    let all = async {
        loop {
            let statistics = caller.statistics().await.unwrap();
            assert!(statistics.len() <= 2, "{statistics:?}");
            if statistics.len() == 2 {
                return statistics;
            }
        }
    };
    let statistics = timeout(HANG, all).await.expect("two instances");
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
    let limit = Instant::now() + Duration::from_secs(3);
    let failure = caller
        .ask(Some("nobody"), ask, limit, Repeat::Never)
        .await
        .unwrap_err();
    assert_eq!(failure, Failure::never_sent("no VM is there"));
    fleet.shut_down().await;
}

#[tokio::test]
async fn a_name_that_is_no_subject_is_refused_and_a_vm_that_cannot_be_offered_ends_with_words() {
    let server = Server::start();
    let fleet = Fleet::start(Settings {
        nats: Some(server.url()),
        host: "a b".into(),
        ..settings(1)
    })
    .await
    .unwrap();
    let row = rows(&fleet, |rows| rows[0].restarts > 0).await.remove(0);
    let words = "ended with status 1: cannot offer the service: ";
    assert!(row.reason.starts_with(words), "{row:?}");
    fleet.shut_down().await;

    let caller = Caller::connect(&server.url()).await.unwrap();
    for name in ["a b", "", "a.b", "*", ">", "a\n"] {
        let ask = Ask {
            key: 1,
            size: 1,
            work_ms: 0,
        };
        let asking = caller.ask(Some(name), ask, soon() + HANG, Repeat::May);
        let failure = timeout(HANG, asking).await.expect("at once").unwrap_err();
        assert!(
            !failure.perhaps_carried_out && failure.words.contains("NATS subject"),
            "{failure}"
        );
    }
    let mut ask = Command::new(env!("CARGO_BIN_EXE_fleet"));
    ask.args(["ask", "--nats", &server.url(), "--vm", "a b", "1"]);
    let refused = ask.output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        said.starts_with("error: no VM can be called \"a b\"")
            && said.contains("(not carried out)"),
        "{said}"
    );

    let mut fleet = Command::new(env!("CARGO_BIN_EXE_fleet"));
    let refused = fleet
        .args(["--host", "a.b", "--seconds", "0"])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
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
            begun(&path, key).await;
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

/// More requests wait in the VM's process than its agent answers in several stall limits.
#[tokio::test]
async fn a_busy_vm_is_not_taken_for_one_that_stalls() {
    let server = Server::start();
    let stall = Duration::from_secs(2);
    let (fleet, caller) = server
        .fleet(Settings {
            stall,
            ..settings(1)
        })
        .await;
    let asks = (0..56).map(|key| {
        let ask = Ask {
            key,
            size: 1,
            work_ms: 250,
        };
        caller.ask(None, ask, soon() + HANG, Repeat::Never)
    });
    let answers = timeout(HANG, join_all(asks)).await.expect("no hang");
    for (key, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer, Ok(content(key as u64, 0, 1)));
    }
    let row = &fleet.shut_down().await[0];
    assert_eq!(row.restarts, 0, "{row:?}");
    assert!(row.requests >= 56, "{row:?}");
}

#[tokio::test]
async fn requests_fail_soon_and_vms_end_when_their_supervisor_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let server = Server::start();
    let other = Supervisor::start(&server, 1, Some(&path)).await;
    let caller = Caller::connect(&server.url()).await.unwrap();
    let ask = Ask {
        key: 1,
        size: 1,
        work_ms: 3_600_000,
    };
    let killing = async {
        // The agent is at work, so that nothing ends by itself.
        begun(&path, 1).await;
        // By then the supervisor has also asked for the status, once a second.
        sleep(Duration::from_millis(1800)).await;
        signal(other.process.id(), Signal::KILL);
    };
    let asking = caller.ask(Some("other-0"), ask, soon() + HANG, Repeat::Never);
    let (answer, ()) = timeout(HANG, async { tokio::join!(asking, killing) })
        .await
        .expect("no hang");
    assert_eq!(answer.unwrap_err(), Failure::perhaps("the VM has ended"));
    let gone = async {
        let ask = Ask {
            key: 2,
            size: 1,
            work_ms: 0,
        };
        let limit = || Instant::now() + Duration::from_secs(1);
        let nobody = Err(Failure::never_sent("no VM is there"));
        while caller
            .ask(Some("other-0"), ask, limit(), Repeat::Never)
            .await
            != nobody
        {}
    };
    timeout(HANG, gone)
        .await
        .expect("a VM without a supervisor still answers");
}

/// `FLEET_LONG` makes it 64 VMs and 10,000 requests.
#[tokio::test]
async fn counts_add_up_in_trouble() {
    let (vms, requests) = if std::env::var_os("FLEET_LONG").is_some() {
        (32, 10_000)
    } else {
        (4, 1000)
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let mut server = Server::start();
    // Two supervisors, as on two machines.
    let settings = Settings {
        journal: Some(path.clone()),
        stall: Duration::from_secs(2),
        ..settings(vms)
    };
    let (fleet, caller) = server.fleet(settings).await;
    let mut other = Supervisor::start(&server, vms, Some(&path)).await;

    let load = Load {
        requests,
        at_once: vms * 2,
        limit: Duration::from_secs(10),
        size: None,
        first_key: 0,
    };
    let done = AtomicU64::new(0);
    let target = Target::Nats(caller.clone(), Repeat::Never);
    let reached = async |share: u64| {
        while done.load(Ordering::Relaxed) < requests * share / 10 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let trouble = async {
        reached(1).await;
        signal(rows(&fleet, serving).await[0].pid.unwrap(), Signal::KILL);
        reached(2).await;
        signal(rows(&fleet, serving).await[1].pid.unwrap(), Signal::STOP);
        reached(4).await;
        signal(other.process.id(), Signal::KILL);
        other.process.wait().unwrap();
        other = Supervisor::start(&server, vms, Some(&path)).await;
        reached(7).await;
        server.restart();
    };
    let (counts, ()) = tokio::join!(run(&target, &load, &done), trouble);
    println!("{counts}");
    assert!(counts.add_up(), "{counts}");
    assert!(counts.answered > requests / 2, "{counts}");
    assert!(counts.longest < load.limit + HANG / 2, "{counts}");
    // Afterwards all is well again.
    let after = Load {
        requests: 100,
        first_key: requests,
        limit: HANG,
        ..load
    };
    let again = run(&Target::Nats(caller, Repeat::Never), &after, &done).await;
    assert_eq!((again.answered, again.wrong), (100, 0), "{again}");

    let mut begun = journal(&path);
    begun.remove(&u64::MAX); // what was asked to see whether a VM is there
    let twice: Vec<_> = begun.iter().filter(|(_, times)| **times != 1).collect();
    assert!(twice.is_empty(), "carried out twice: {twice:?}");
    assert!(
        begun.len() as u64 >= counts.answered + again.answered,
        "{} begun, {counts}",
        begun.len()
    );
    fleet.shut_down().await;
}
