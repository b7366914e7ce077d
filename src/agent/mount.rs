//! Mounts what an agent needs that runs as the guest's init.

use std::ffi::CStr;
use std::os::unix::fs::MetadataExt;
use std::{fs, io};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

/// Where each filesystem goes, its type, and the number by which `statfs(2)` knows that it is there.
const FILESYSTEMS: [(&str, &CStr, u64); 3] = [
    ("/proc", c"proc", 0x9fa0),
    ("/sys", c"sysfs", 0x6265_6572),
    // A devtmpfs says that it is a tmpfs, as which udev may have mounted it.
    ("/dev", c"devtmpfs", 0x0102_1994),
];

/// Mounts `/proc`, `/sys` and `/dev` where they are not mounted yet.
///
/// An agent that krun starts with `init_path` is the guest's process 1, and nothing is mounted for it. It calls this
/// before [`VirtioPort::open`](super::VirtioPort::open), which looks for the port's name in `/sys` and for its device file in
/// `/dev`. Folders that are missing are created. In a guest with an init of its own this does nothing.
///
/// # Errors
///
/// The system's error with the path: [`PermissionDenied`](io::ErrorKind::PermissionDenied) if the process is not root, or
/// [`ReadOnlyFilesystem`](io::ErrorKind::ReadOnlyFilesystem) if a folder is missing and cannot be created.
///
/// # Examples
///
/// ```no_run
/// use tokio_krun::agent::{self, VirtioPort};
///
/// #[tokio::main(flavor = "current_thread")]
/// async fn main() -> std::io::Result<()> {
///     agent::mount_filesystems()?;
///     let port = VirtioPort::open("agent").await?;
///     Ok(())
/// }
/// ```
pub fn mount_filesystems() -> io::Result<()> {
    for (path, kind, magic) in FILESYSTEMS {
        mount_unless_mounted(path, kind, magic).map_err(|error| {
            let kind = kind.to_string_lossy();
            io::Error::new(error.kind(), format!("mount {kind} on {path}: {error}"))
        })?;
    }
    Ok(())
}

fn mount_unless_mounted(path: &str, kind: &CStr, magic: u64) -> io::Result<()> {
    if is_mounted(path, magic) {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    match mount(kind, path, kind, MountFlags::empty(), None) {
        // Another process was faster.
        Err(Errno::BUSY) => Ok(()),
        mounted => Ok(mounted?),
    }
}

/// Whether a filesystem of this kind is there, and not just a folder of a root that is of the same kind.
fn is_mounted(path: &str, magic: u64) -> bool {
    let device = |path: &str| fs::metadata(path).map(|found| found.dev()).ok();
    // The type of the number differs between targets.
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type as u64 == magic)
        && device(path) != device("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no statfs")]
    fn mounted_filesystems_are_left_alone() {
        let [(proc, _, magic), ..] = FILESYSTEMS;
        assert!(is_mounted(proc, magic));
        assert!(!is_mounted(proc, magic + 1));
        assert!(!is_mounted("/no such folder", magic));
        // A folder of the root, whatever filesystem that is.
        let root = rustix::fs::statfs("/").unwrap().f_type as u64;
        assert!(!is_mounted("/", root));
        // It would need no right here, as nothing is to be done.
        mount_unless_mounted(proc, c"proc", magic).unwrap();
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no statfs")]
    fn error_names_the_filesystem() {
        // A file is in the way, so the folder cannot be created whoever runs this.
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().join("sys");
        let error = mount_unless_mounted(path.to_str().unwrap(), c"sysfs", 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    }
}
