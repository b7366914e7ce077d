//! Compares `Carry` with tokio's `copy_bidirectional`: a client in another process, an in-process guest without threads, and a
//! Unix socket between them. `krun` makes the calls of krun's own port over a descriptor, for the same socket; there is no guest
//! in it, so its CPU time is less than a guest would take.
//!
//! `cargo bench --bench carry`, on Linux. It prints the time and the CPU time of this process, which includes the guest's
//! part. To count system calls, run one job alone: `strace -c target/release/deps/carry-HASH carry from-guest`. There is
//! one thread, so strace does not count the client.

#[cfg(target_os = "linux")]
mod linux {
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream as StdUnixStream;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};
    use std::{env, fs};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio_krun::test_util::Guest;
    use tokio_krun::{AgentStream, carry};

    const LENGTH: usize = 256 << 20;
    const WRITE: usize = 32 * 1024;
    const ROUNDS: usize = 5;

    pub(crate) fn main() {
        let jobs: Vec<String> = env::args()
            .skip(1)
            .filter(|arg| !arg.starts_with('-'))
            .collect();
        if let [by, direction] = jobs.as_slice() {
            run(by, direction);
            return;
        }
        for direction in ["from-guest", "to-guest"] {
            for by in ["carry", "copy", "krun"] {
                let mut rounds: Vec<_> = (0..ROUNDS).map(|_| run(by, direction)).collect();
                rounds.sort();
                let (wall, cpu) = rounds[ROUNDS / 2];
                println!(
                    "{by:5} {direction:10}: {:5.0} MiB/s, {:4.0} ms of CPU for 256 MiB",
                    (LENGTH >> 20) as f64 / wall.as_secs_f64(),
                    cpu.as_secs_f64() * 1e3
                );
            }
        }
    }

    #[tokio::main(flavor = "current_thread")]
    async fn run(by: &str, direction: &str) -> (Duration, Duration) {
        let (stream, port) = AgentStream::pair().unwrap();
        let guest = Guest::boot(port);
        let (mut read, mut write) = guest.open().unwrap().into_split();
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        let from_guest = direction == "from-guest";
        let theirs = OwnedFd::from(theirs);
        let mut client = if from_guest {
            let mut cat = Command::new("cat");
            cat.stdin(theirs).stdout(Stdio::null());
            cat
        } else {
            let mut head = Command::new("head");
            head.args(["-c", &LENGTH.to_string(), "/dev/zero"])
                .stdout(theirs);
            head
        };
        let mut child = client.spawn().unwrap();
        drop(client);
        if by == "krun" {
            let (began, cpu_before) = (Instant::now(), cpu());
            krun(ours, from_guest);
            let spent = (began.elapsed(), cpu() - cpu_before);
            child.wait().unwrap();
            return spent;
        }
        ours.set_nonblocking(true).unwrap();
        let mut socket = UnixStream::from_std(ours).unwrap();

        let agent = async {
            let mut buf = vec![7; WRITE];
            if from_guest {
                for _ in 0..LENGTH / WRITE {
                    write.write_all(&buf).await.unwrap();
                }
                guest.drained().await;
            } else {
                let mut left = LENGTH;
                while left > 0 {
                    left -= read.read(&mut buf).await.unwrap();
                }
            }
            guest.power_off().await;
        };
        let (began, cpu_before) = (Instant::now(), cpu());
        if by == "carry" {
            let carried = tokio::spawn(carry(stream, socket));
            agent.await;
            carried.await.unwrap().unwrap();
        } else {
            let copied = tokio::spawn(async move {
                let mut stream = stream;
                let size = 64 * 1024; // as large as a chunk
                // The guest's end is an error when the client has more to send, or none.
                let _ =
                    tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut socket, size, size)
                        .await;
            });
            agent.await;
            // `cat` does not end its side while ours is open: that is the end it gets wrong.
            copied.await.unwrap();
        }
        let spent = (began.elapsed(), cpu() - cpu_before);
        child.wait().unwrap();
        spent
    }

    /// As `PortInputFd` and `PortOutputFd` of `msb_krun_devices` 0.1.42 do: one call for each descriptor of the guest.
    fn krun(mut port: StdUnixStream, from_guest: bool) {
        if from_guest {
            for _ in 0..LENGTH / WRITE {
                port.write_all(&[7; WRITE]).unwrap();
            }
        } else {
            let (mut left, mut descriptor) = (LENGTH, [0; 4096]);
            while left > 0 {
                left -= port.read(&mut descriptor).unwrap();
            }
        }
    }

    /// The CPU time of this process so far.
    fn cpu() -> Duration {
        let schedstat = fs::read_to_string("/proc/self/schedstat").unwrap();
        let nanoseconds = schedstat.split_whitespace().next().unwrap();
        Duration::from_nanos(nanoseconds.parse().unwrap())
    }
}

#[cfg(target_os = "linux")]
use linux::main;

#[cfg(not(target_os = "linux"))]
fn main() {}
