//! Attaching a port to a VM's console. `microvm/names.rs` shows what a guest makes of the names.

#![cfg(feature = "msb_krun")]

use std::panic::{self, AssertUnwindSafe};

use msb_krun::{ConsoleBuilder, ConsolePortOptions};
use tokio::io::AsyncReadExt;
use tokio_krun::{AgentPort, AgentStream};

/// The panic's message, or `None`.
fn panic_of(attach: impl FnOnce() -> ConsoleBuilder) -> Option<String> {
    let panic = panic::catch_unwind(AssertUnwindSafe(attach)).err()?;
    Some(match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => panic.downcast::<&str>().unwrap().to_string(),
    })
}

#[tokio::test]
async fn name_that_guest_could_not_find_is_refused_and_ends_stream() {
    let too_long = "n".repeat(AgentPort::MAX_NAME_LEN + 1);
    for (name, reason) in [
        ("", "is empty"),
        (
            &too_long,
            "has 4089 bytes, and the guest takes at most 4088",
        ),
        ("cut\0off", "contains a NUL"),
    ] {
        for with_options in [false, true] {
            let (mut stream, port) = AgentStream::pair().unwrap();
            let console = ConsoleBuilder::new();
            let message = panic_of(|| match with_options {
                false => port.attach(console, name),
                true => port.attach_with_options(console, name, ConsolePortOptions::new()),
            });
            let message = message.expect(reason);
            assert!(message.contains(reason), "{message}");
            assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        }
    }
}

#[tokio::test]
async fn any_other_name_is_taken() {
    let longest = "n".repeat(AgentPort::MAX_NAME_LEN);
    for name in [
        "a",
        "agent.v2",
        "two words",
        "a/b",
        "line\n",
        "größe",
        &longest,
    ] {
        let (_stream, port) = AgentStream::pair().unwrap();
        assert_eq!(panic_of(|| port.attach(ConsoleBuilder::new(), name)), None);
    }
}
