//! The guest's root as a file system that krun can capture. The one behind `FsBuilder::root` cannot be captured.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::mem;
use std::path::Path;
use std::time::Duration;

use msb_krun::DynFileSystem;
use msb_krun::backends::fs::{Context, Entry, FsOptions, OpenOptions, ZeroCopyWriter, stat64};

const ROOT: u64 = 1;
const INIT: u64 = 2;
/// The directories in which the agent mounts something. Their inodes follow `INIT`.
const DIRECTORIES: [&CStr; 3] = [c"dev", c"proc", c"sys"];

const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// A read-only root with the agent as `/init`.
///
/// As its inodes are constants and it has no handles, there is no state to capture.
pub(super) struct Root {
    agent: File,
    length: u64,
}

impl Root {
    pub(super) fn new(agent: &Path) -> io::Result<Self> {
        let agent = File::open(agent)?;
        let length = agent.metadata()?.len();
        Ok(Self { agent, length })
    }

    fn attributes(&self, inode: u64) -> stat64 {
        // SAFETY: a `stat64` has only numbers, for which zero is a valid value.
        #[expect(unsafe_code, reason = "libc has no safe way to create a `stat64`")]
        let mut attributes: stat64 = unsafe { mem::zeroed() };
        attributes.st_ino = inode;
        attributes.st_nlink = 1;
        attributes.st_mode = libc::S_IFDIR | 0o755;
        if inode == INIT {
            attributes.st_mode = libc::S_IFREG | 0o755;
            attributes.st_size = self.length.try_into().expect("a length of a file");
        }
        attributes
    }
}

impl DynFileSystem for Root {
    fn capture_state(&self) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn validate_state(&self, state: &[u8]) -> io::Result<()> {
        match state {
            [] => Ok(()),
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }

    fn init(&self, _: FsOptions) -> io::Result<FsOptions> {
        Ok(FsOptions::empty())
    }

    fn lookup(&self, _: Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        let directory = (INIT + 1..)
            .zip(DIRECTORIES)
            .find(|(_, known)| *known == name);
        let inode = match directory {
            _ if parent != ROOT => None,
            None if name == c"init" => Some(INIT),
            directory => directory.map(|(inode, _)| inode),
        };
        let inode = inode.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        Ok(Entry {
            inode,
            generation: 0,
            attr: self.attributes(inode),
            attr_flags: 0,
            attr_timeout: FOREVER,
            entry_timeout: FOREVER,
        })
    }

    fn getattr(&self, _: Context, inode: u64, _: Option<u64>) -> io::Result<(stat64, Duration)> {
        Ok((self.attributes(inode), FOREVER))
    }

    fn open(&self, _: Context, _: u64, _: bool, _: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        Ok((None, OpenOptions::KEEP_CACHE))
    }

    fn read(
        &self,
        _: Context,
        _: u64,
        _: u64,
        target: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: u32,
    ) -> io::Result<usize> {
        match self.length.saturating_sub(offset).min(size.into()) {
            0 => Ok(0), // a reader may ask beyond the end, where `write_from` would fail
            count => target.write_from(&self.agent, count.try_into().unwrap_or(0), offset),
        }
    }
}
