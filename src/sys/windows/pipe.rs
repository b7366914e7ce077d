//! The pipe's server end: its name, who may open it, and what tokio's type does not offer.

#![expect(
    unsafe_code,
    reason = "tokio takes a pipe's security attributes as a pointer, and has no way to ask for the client's process or to cancel a read"
)]

mod security;

use std::io;
use std::os::windows::io::AsRawHandle;
use std::{process, ptr};

use tokio::net::windows::named_pipe::{NamedPipeServer, ServerOptions};
use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_OPERATION_ABORTED, ERROR_PIPE_BUSY, HANDLE,
};
use windows_sys::Win32::System::IO::CancelIoEx;
use windows_sys::Win32::System::Pipes::GetNamedPipeClientProcessId;

use crate::error::Error;
use security::OnlyThisUser;

/// What the system holds of each direction: the size of tokio's own pipes.
pub(super) const PIPE_BUFFER: u32 = 64 * 1024;

/// A name with 128 random bits.
pub(super) fn random_name() -> Result<String, Error> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| Error::Os(error.into()))?;
    Ok(format!(
        r"\\.\pipe\tokio-krun-{:032x}",
        u128::from_ne_bytes(random)
    ))
}

/// A byte pipe for one client, of this user and on this machine.
pub(super) fn create(name: &str) -> Result<NamedPipeServer, Error> {
    let only_this_user = OnlyThisUser::new().map_err(Error::Os)?;
    let mut attributes = only_this_user.attributes();
    let mut options = ServerOptions::new();
    options
        .first_pipe_instance(true)
        .max_instances(1)
        .reject_remote_clients(true)
        .in_buffer_size(PIPE_BUFFER)
        .out_buffer_size(PIPE_BUFFER);
    // SAFETY: the attributes are valid, and so is the descriptor that they point to, until
    // after the call.
    let server = unsafe {
        options.create_with_security_attributes_raw(name, ptr::from_mut(&mut attributes).cast())
    };
    server.map_err(|error| match error.raw_os_error().map(|e| e as u32) {
        // Denied: another process has made the first instance. Busy: it has made as many as it allows.
        Some(ERROR_ACCESS_DENIED | ERROR_PIPE_BUSY) => Error::PipeInUse {
            name: name.to_owned(),
        },
        // tokio's only error of its own.
        None => Error::RuntimeGone,
        Some(_) => Error::Os(error),
    })
}

/// Whether the client is this process. krun is.
pub(super) fn client_is_this_process(server: &NamedPipeServer) -> bool {
    let mut client = 0;
    // SAFETY: the handle is open for as long as `server`, and `client` is writable.
    let known = unsafe { GetNamedPipeClientProcessId(handle(server), &mut client) };
    known != 0 && client == process::id()
}

/// Ends the read that is always under way: with [`is_cancelled`] if the pipe is empty, or else with the bytes that it has
/// read. This ends a write that is under way, too.
pub(super) fn cancel_read(server: &NamedPipeServer) {
    // SAFETY: the handle is open as long as `server` lives. tokio owns the operations' memory and frees it when they
    // complete. A cancelled operation completes too.
    unsafe { CancelIoEx(handle(server), ptr::null()) };
    // This fails if the read has completed meanwhile. Then that is reported like any other read.
}

/// Whether a read was ended by [`cancel_read`].
pub(super) fn is_cancelled(error: &io::Error) -> bool {
    error.raw_os_error().map(|e| e as u32) == Some(ERROR_OPERATION_ABORTED)
}

fn handle(server: &NamedPipeServer) -> HANDLE {
    server.as_raw_handle().cast()
}
