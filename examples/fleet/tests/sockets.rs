//! A fleet on one machine: what becomes of requests when a VM dies or stalls, and of VMs when the supervisor does.
//! In-process guests in real processes.

mod common;

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use common::{HANG, begun, is_running, journal, rows, serving, settings, signal};
use fleet::link::{Agent, Ended, Failure, drive};
use fleet::load::{Load, Target, run};
use fleet::protocol::{Answer, Ask, LONGEST_ANSWER, Request, content, framed};
use fleet::supervisor::{Fleet, State};
use futures::{SinkExt, future::join_all};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

fn quick(key: u64) -> Ask {
    Ask {
        key,
        size: 1,
        work_ms: 0,
    }
}

fn soon() -> Instant {
    Instant::now() + HANG
}

/// A fleet of `vms` whose agents write down, in the file at the path, what they begin. The folder goes when it is dropped.
async fn journaled(vms: usize) -> (TempDir, PathBuf, Fleet) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let fleet = Fleet::start(fleet::supervisor::Settings {
        journal: Some(path.clone()),
        ..settings(vms)
    });
    (folder, path, fleet.await.unwrap())
}

#[tokio::test]
async fn a_request_whose_vm_is_killed_fails_at_once_and_the_vm_is_restarted() {
    let (_folder, path, fleet) = journaled(1).await;
    let row = rows(&fleet, serving).await.remove(0);

    let ask = Ask {
        key: 1,
        size: 1,
        work_ms: 3_600_000,
    };
    let an_hour = Instant::now() + Duration::from_secs(3600);
    let mut reply = fleet.ask(Some(0), ask, an_hour).await.unwrap();
    let waiting = Ask {
        key: 2,
        size: 1,
        work_ms: 0,
    };
    let waiting = fleet.ask(Some(0), waiting, an_hour).await.unwrap();
    timeout(HANG, begun(&path, 1)).await.expect("no hang");
    signal(row.pid.unwrap(), Signal::KILL);
    let failure = timeout(HANG, reply.next())
        .await
        .expect("at once")
        .unwrap_err();
    assert_eq!(failure, Failure::perhaps("the VM has ended"));
    // The one behind it was never sent. It goes to the next run.
    assert_eq!(
        timeout(HANG, waiting.whole()).await.unwrap().unwrap(),
        content(2, 0, 1)
    );

    let row = rows(&fleet, serving).await.remove(0);
    assert_eq!(
        (row.restarts, row.reason.as_str()),
        (1, "killed by signal 9")
    );
    let rows = fleet.shut_down().await;
    assert_eq!(rows[0].state, State::Stopped);
    assert_eq!(rows[0].reason, "goodbye after 1 requests");
}

#[tokio::test]
async fn the_table_says_by_which_signal_a_vm_died_that_had_not_read_its_request() {
    let fleet = Fleet::start(settings(1)).await.unwrap();
    let pid = rows(&fleet, serving).await[0].pid.unwrap();
    signal(pid, Signal::STOP);
    let mut reply = fleet.ask(Some(0), quick(1), soon()).await.unwrap();
    // Gives the request time to be sent. Otherwise the next run answers it.
    let early = timeout(Duration::from_millis(200), reply.next()).await;
    signal(pid, Signal::KILL);
    if early.is_err() {
        let _ = timeout(HANG, reply.next()).await.expect("no hang");
    }
    let row = rows(&fleet, |rows| rows[0].restarts == 1).await.remove(0);
    assert_eq!(row.reason, "killed by signal 9");
    fleet.shut_down().await;
}

#[tokio::test]
async fn a_request_to_a_vm_that_is_dead_already_goes_to_its_next_run() {
    let fleet = Fleet::start(settings(1)).await.unwrap();
    for run in 0..5 {
        let row = rows(&fleet, |rows| rows[0].restarts == run && serving(rows))
            .await
            .remove(0);
        let pid = row.pid.unwrap();
        signal(pid, Signal::KILL);
        // Holds this thread, so that the supervisor has not noticed. The socket is closed once all threads have ended.
        while is_running(pid)
            || std::fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.count() > 1)
        {
            std::thread::yield_now();
        }
        let reply = fleet.ask(Some(0), quick(1), soon()).await.unwrap();
        assert_eq!(reply.whole().await, Ok(content(1, 0, 1)));
        let row = rows(&fleet, |rows| rows[0].restarts == run + 1)
            .await
            .remove(0);
        assert_eq!(row.reason, "killed by signal 9");
    }
    fleet.shut_down().await;
}

#[tokio::test]
async fn a_request_that_cannot_be_sent_stays_for_the_next_connection() {
    let (agent, mut jobs) = Agent::new();
    let request = Request::Ask(quick(1));
    let reply = agent.request(request, soon()).await.unwrap();
    // This agent reads no more, and then says why.
    let (words, closed) = (tokio::io::duplex(1024), tokio::io::duplex(1024));
    drop(closed.1);
    let mut dying = framed(words.1);
    let driving = drive(tokio::io::join(words.0, closed.0), &mut jobs, HANG, |_| ());
    let saying = async {
        tokio::task::yield_now().await; // Meanwhile `drive` has tried to send.
        let words = Answer::Goodbye("no disk".into());
        dying.send(words.encode()).await.unwrap();
    };
    let both = async { tokio::join!(driving, saying) };
    let (ended, ()) = timeout(HANG, both).await.expect("no hang");
    assert!(
        matches!(&ended, Ended::Closed(Some(words)) if words == "no disk"),
        "{ended:?}"
    );

    let (host, guest) = tokio::io::duplex(1024);
    let serving = fleet::agent::serve(guest, |_| Ok(()));
    let driving = drive(host, &mut jobs, HANG, |_| ());
    tokio::select! {
        answer = reply.whole() => assert_eq!(answer, Ok(content(1, 0, 1))),
        ended = driving => panic!("{ended:?}"),
        served = serving => panic!("{served:?}"),
    }
}

#[tokio::test]
async fn a_request_to_a_vm_that_stalls_fails_at_its_limit_and_the_vm_is_replaced() {
    let limit = Duration::from_secs(1);
    let fleet = Fleet::start(fleet::supervisor::Settings {
        stall: limit * 5,
        ..settings(1)
    });
    let fleet = fleet.await.unwrap();
    let row = rows(&fleet, serving).await.remove(0);
    signal(row.pid.unwrap(), Signal::STOP);
    let ask = Ask {
        key: 1,
        size: 1,
        work_ms: 0,
    };
    let deadline = Instant::now() + limit;
    let failure = fleet
        .ask(Some(0), ask, deadline)
        .await
        .unwrap()
        .whole()
        .await
        .unwrap_err();
    assert_eq!(failure.words, "no answer within the time limit");
    let rows = rows(&fleet, |rows| rows[0].restarts == 1 && serving(rows)).await;
    assert!(
        rows[0].reason.starts_with("stalled: "),
        "{}",
        rows[0].reason
    );
    fleet.shut_down().await;
}

#[tokio::test]
async fn a_caller_that_does_not_read_holds_the_agent_up_until_its_limit() {
    let fleet = Fleet::start(settings(1)).await.unwrap();
    fleet.serving().await;
    let longest = Ask {
        key: 1,
        size: LONGEST_ANSWER,
        work_ms: 0,
    };
    let an_hour = Instant::now() + Duration::from_secs(3600);
    let mut lazy = fleet.ask(Some(0), longest, an_hour).await.unwrap();
    assert!(matches!(lazy.next().await.unwrap(), Answer::Part(_)));
    let mut behind = fleet.ask(Some(0), quick(2), an_hour).await.unwrap();
    // Its answer cannot come while the agent waits for the lazy caller.
    timeout(Duration::from_millis(500), behind.next())
        .await
        .unwrap_err();
    drop(lazy);
    let answer = timeout(HANG, behind.whole()).await.expect("no hang");
    assert_eq!(answer, Ok(content(2, 0, 1)));

    // One that does not go away holds it up only until its limit.
    let limit = Instant::now() + Duration::from_secs(1);
    let lazy = fleet.ask(Some(0), longest, limit).await.unwrap();
    let behind = fleet.ask(Some(0), quick(3), an_hour).await.unwrap();
    let answer = timeout(HANG, behind.whole()).await.expect("no hang");
    assert_eq!(answer, Ok(content(3, 0, 1)));
    drop(lazy);
    fleet.shut_down().await;
}

#[tokio::test]
async fn a_request_that_finds_no_room_is_never_sent() {
    let (_folder, path, fleet) = journaled(1).await;
    fleet.serving().await;
    let long = |key| Ask {
        key,
        size: 1,
        work_ms: 3_600_000,
    };
    let an_hour = Instant::now() + Duration::from_secs(3600);
    let mut queued = Vec::new();
    let failure = loop {
        let deadline = if queued.len() < 2 {
            an_hour
        } else {
            Instant::now() + Duration::from_millis(200)
        };
        match fleet
            .ask(Some(0), long(queued.len() as u64), deadline)
            .await
        {
            Ok(reply) => queued.push(reply),
            Err(failure) => break failure,
        }
        assert!(queued.len() < 100, "the queue has no end");
    };
    assert_eq!(
        failure,
        Failure::never_sent("the VM was busy until the time limit")
    );
    // It was promised that these are not carried out.
    for reply in queued.drain(1..) {
        drop(reply);
    }
    drop(fleet);
    assert!(
        journal(&path).keys().all(|&key| key == 0),
        "{:?}",
        journal(&path)
    );
}

#[tokio::test]
async fn a_vm_whose_queue_is_always_full_serves_after_a_restart() {
    let fleet = Fleet::start(settings(1)).await.unwrap();
    let pid = rows(&fleet, serving).await[0].pid.unwrap();
    let ask = |key| Ask {
        key,
        size: 1,
        work_ms: 20,
    };
    let asking = join_all((0..16).map(|key| {
        let fleet = &fleet;
        async move {
            loop {
                if let Ok(reply) = fleet.ask(Some(0), ask(key), soon()).await {
                    let _ = reply.whole().await;
                }
            }
        }
    }));
    let killing = async {
        let before = rows(&fleet, |rows| rows[0].requests > 16).await.remove(0);
        signal(pid, Signal::KILL);
        rows(&fleet, |rows| {
            rows[0].restarts == 1 && serving(rows) && rows[0].requests > before.requests + 16
        })
        .await;
    };
    tokio::select! {
        _ = asking => {}
        () = killing => {}
    }
    fleet.shut_down().await;
}

#[tokio::test]
async fn none_is_refused_where_it_would_hang() {
    for arguments in [
        &["--vms", "0"][..],
        &["--stall-ms", "0"],
        &["load", "--at-once", "0"],
    ] {
        let mut fleet = Command::new(env!("CARGO_BIN_EXE_fleet"));
        let refused = fleet.args(arguments).kill_on_drop(true).output();
        let refused = timeout(HANG, refused).await.expect("no hang").unwrap();
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    }
}

#[tokio::test]
async fn vms_end_when_their_supervisor_is_killed() {
    let mut supervisor = Command::new(env!("CARGO_BIN_EXE_fleet"))
        .args(["run", "--vms", "3"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(supervisor.stdout.take().unwrap()).lines();
    let mut pids = Vec::new();
    while pids.len() < 3 {
        let line = timeout(HANG, lines.next_line())
            .await
            .unwrap()
            .unwrap()
            .expect("a table");
        let mut columns = line.split_whitespace().skip(1);
        if columns.next() == Some("serving") {
            pids.push(columns.next().unwrap().parse::<u32>().unwrap());
        }
    }
    signal(supervisor.id().unwrap(), Signal::KILL);
    let ended = async {
        while pids.iter().any(|&pid| is_running(pid)) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(HANG, ended)
        .await
        .expect("processes without a supervisor");
}

#[tokio::test]
async fn counts_add_up_while_vms_are_killed() {
    let (_folder, path, fleet) = journaled(4).await;
    let fleet = Arc::new(fleet);
    fleet.serving().await;
    let load = Load {
        requests: 400,
        at_once: 16,
        limit: HANG,
        size: None,
        first_key: 0,
    };
    let done = Arc::new(AtomicU64::new(0));
    let target = Target::Here(fleet.clone());
    let killing = async {
        for _ in 0..3 {
            let rows = rows(&fleet, |rows| {
                rows.iter().any(|row| row.state == State::Serving)
            })
            .await;
            let pids: Vec<_> = rows.iter().filter_map(|row| row.pid).collect();
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_raw(pids[0] as i32).unwrap(),
                Signal::KILL,
            );
            sleep(Duration::from_millis(100)).await;
        }
    };
    let (counts, ()) = tokio::join!(run(&target, &load, &done), killing);
    assert!(counts.add_up(), "{counts}");
    assert!(counts.answered > 300, "{counts}");
    let begun = journal(&path);
    assert!(
        begun.values().all(|&times| times == 1),
        "carried out twice: {begun:?}"
    );
    assert!(
        begun.len() as u64 >= counts.answered,
        "{} begun, {counts}",
        begun.len()
    );
    drop(target);
    Arc::into_inner(fleet).unwrap().shut_down().await;
}
