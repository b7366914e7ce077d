//! krun's end of the pipe, played for the in-process guest.
//!
//! It follows `named_pipe` of `msb_krun_devices` 0.1.42, `virtio/console/port_io.rs`: one overlapped handle, a thread that
//! reads 4 KiB at a time into a queue without limit, and writes that block their caller's thread.

#![expect(
    unsafe_code,
    reason = "the in-process guest opens the pipe as krun does, with overlapped calls of Windows"
)]

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::{ptr, thread};

use windows_sys::Win32::Foundation::{ERROR_IO_PENDING, HANDLE};
use windows_sys::Win32::Storage::FileSystem::{FILE_FLAG_OVERLAPPED, ReadFile, WriteFile};
use windows_sys::Win32::System::IO::{CancelIoEx, GetOverlappedResult, OVERLAPPED};
use windows_sys::Win32::System::Threading::{
    CreateEventW, INFINITE, SetEvent, WaitForMultipleObjects,
};

const PIPE_BUFFER_SIZE: usize = 4096;

#[derive(Debug)]
pub(super) struct PipeClient {
    handle: Arc<OwnedHandle>,
    input: Arc<Input>,
    stop: Arc<OwnedHandle>,
    reader: Option<thread::JoinHandle<()>>,
}

/// What the reader thread has read.
#[derive(Debug, Default)]
struct Input {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Vec<u8>>,
    closed: bool,
}

impl PipeClient {
    pub(super) fn open(name: &str) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .share_mode(0)
            .custom_flags(FILE_FLAG_OVERLAPPED)
            .open(name)?;
        let handle = Arc::new(OwnedHandle::from(file));
        let input = Arc::new(Input::default());
        let stop = Arc::new(event()?);
        let reader = thread::Builder::new().name("krun-pipe".into()).spawn({
            let (handle, input, stop) =
                (Arc::clone(&handle), Arc::clone(&input), Arc::clone(&stop));
            move || input.read_pipe(&handle, &stop)
        })?;
        Ok(Self {
            handle,
            input,
            stop,
            reader: Some(reader),
        })
    }

    /// `Ok(0)` at the end, `WouldBlock` if there is nothing now.
    pub(super) fn read(&self, target: &mut [u8]) -> io::Result<usize> {
        let mut queue = self.input.queue();
        let Some(first) = queue.chunks.front_mut() else {
            return match queue.closed {
                true => Ok(0),
                false => Err(io::ErrorKind::WouldBlock.into()),
            };
        };
        let length = first.len().min(target.len());
        target[..length].copy_from_slice(&first[..length]);
        first.drain(..length);
        if first.is_empty() {
            queue.chunks.pop_front();
        }
        Ok(length)
    }

    pub(super) fn wait_until_readable(&self, stop: &AtomicBool) {
        let _queue = self
            .input
            .changed
            .wait_while(self.input.queue(), |queue| {
                queue.chunks.is_empty() && !queue.closed && !stop.load(Ordering::Acquire)
            })
            .unwrap_or_else(PoisonError::into_inner);
    }

    /// Makes a waiting reader look whether it has to stop.
    pub(super) fn wake_reader(&self) {
        // Locked, so that this does not come between a waiter's look and its sleep.
        drop(self.input.queue());
        self.input.changed.notify_all();
    }

    /// Waits until the pipe has taken all of it.
    pub(super) fn write(&self, source: &[u8]) -> io::Result<()> {
        let mut operation = Operation::new()?;
        // SAFETY: the handle is open and overlapped. Source and operation stay where they are until
        // the operation has completed: `finish` waits for that.
        let started = unsafe {
            WriteFile(
                self.handle.as_raw_handle().cast(),
                source.as_ptr(),
                source.len() as u32,
                ptr::null_mut(),
                operation.overlapped(),
            )
        };
        is_under_way(started)?;
        match operation.finish(&self.handle)? {
            written if written == source.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

impl Drop for PipeClient {
    fn drop(&mut self) {
        // SAFETY: the event is open.
        unsafe { SetEvent(self.stop.as_raw_handle().cast()) };
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Input {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_pipe(&self, handle: &OwnedHandle, stop: &OwnedHandle) {
        loop {
            let mut buffer = vec![0; PIPE_BUFFER_SIZE];
            let read = read_unless_stopped(handle, stop, &mut buffer);
            let mut queue = self.queue();
            match read {
                // krun looks for the end of the file in an error.
                Ok(Some(0)) => {}
                Ok(Some(read)) => {
                    buffer.truncate(read);
                    queue.chunks.push_back(buffer);
                }
                Ok(None) | Err(_) => queue.closed = true,
            }
            self.changed.notify_all();
            if queue.closed {
                return;
            }
        }
    }
}

fn read_unless_stopped(
    handle: &OwnedHandle,
    stop: &OwnedHandle,
    buffer: &mut [u8],
) -> io::Result<Option<usize>> {
    let mut operation = Operation::new()?;
    // SAFETY: the handle is open and overlapped. Buffer and operation stay where they are until the
    // operation has completed: `finish` waits for that.
    let started = unsafe {
        ReadFile(
            handle.as_raw_handle().cast(),
            buffer.as_mut_ptr(),
            buffer.len() as u32,
            ptr::null_mut(),
            operation.overlapped(),
        )
    };
    is_under_way(started)?;
    let events: [HANDLE; 2] = [&operation.event, stop].map(|event| event.as_raw_handle().cast());
    // SAFETY: both events are open.
    unsafe { WaitForMultipleObjects(events.len() as u32, events.as_ptr(), 0, INFINITE) };
    // Whichever event it was. This cancels a read that has not completed, and has no effect on one that has.
    // SAFETY: the handle is open, and the operation is still there.
    unsafe { CancelIoEx(handle.as_raw_handle().cast(), operation.overlapped()) };
    operation.finish(handle).map(Some)
}

/// An overlapped operation, to be finished before it is dropped.
struct Operation {
    overlapped: Box<OVERLAPPED>,
    event: OwnedHandle,
}

impl Operation {
    fn new() -> io::Result<Self> {
        let event = event()?;
        let mut overlapped = Box::<OVERLAPPED>::default();
        overlapped.hEvent = event.as_raw_handle().cast();
        Ok(Self { overlapped, event })
    }

    fn overlapped(&mut self) -> *mut OVERLAPPED {
        ptr::from_mut(&mut *self.overlapped)
    }

    /// Waits until it has completed, and returns how many bytes it moved.
    fn finish(mut self, handle: &OwnedHandle) -> io::Result<usize> {
        let mut moved = 0;
        // SAFETY: the handle is open, and the operation was started on it.
        let succeeded = unsafe {
            GetOverlappedResult(
                handle.as_raw_handle().cast(),
                self.overlapped(),
                &mut moved,
                1,
            )
        };
        if succeeded == 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(moved as usize)
    }
}

/// Takes what a call that starts an operation returned: an error if the operation did not start.
fn is_under_way(started: i32) -> io::Result<()> {
    if started == 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error().map(|e| e as u32) != Some(ERROR_IO_PENDING) {
            return Err(error);
        }
    }
    Ok(())
}

/// An event that stays set.
fn event() -> io::Result<OwnedHandle> {
    // SAFETY: an event without attributes and name.
    let event = unsafe { CreateEventW(ptr::null(), 1, 0, ptr::null()) };
    if event.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the handle was just created, and nobody else has it.
    Ok(unsafe { OwnedHandle::from_raw_handle(event.cast()) })
}
