//! Finds the device file of a port by the port's name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::uevents::Uevents;

const PORTS: &str = "/sys/class/virtio-ports";
const DEV: &str = "/dev";

/// Waits for the device file of the port called `name`, and opens it with `open`.
///
/// The kernel sends an event when a port appears, and again when it learns the port's name. udev sends
/// one after it has created the device file.
pub(super) async fn open_when_present<T>(
    name: &str,
    open: impl Fn(PathBuf) -> io::Result<T>,
) -> io::Result<T> {
    let try_open = || -> io::Result<Option<T>> {
        let Some(device) = device_of(Path::new(PORTS), name)? else {
            return Ok(None);
        };
        match open(Path::new(DEV).join(device)) {
            // Not created yet. It never will be if nothing is mounted there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match Path::new(DEV).join("null").exists() {
                    true => Ok(None),
                    false => Err(not_mounted(DEV, &error)),
                }
            }
            opened => opened.map(Some),
        }
    };
    // The port is usually there already. Then a process needs no right to open a netlink socket.
    if let Some(opened) = try_open()? {
        return Ok(opened);
    }
    // Listen before the next try, so that no event is lost between that try and the wait.
    let uevents = Uevents::listen()?;
    loop {
        if let Some(opened) = try_open()? {
            return Ok(opened);
        }
        uevents.wait().await?;
    }
}

/// The device of the port called `wanted`, such as `vport0p1`.
fn device_of(ports: &Path, wanted: &str) -> io::Result<Option<PathBuf>> {
    let entries = match fs::read_dir(ports) {
        Ok(entries) => entries,
        // No virtio-console device yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound && sysfs_is_mounted(ports) => {
            return Ok(None);
        }
        Err(error) => {
            return Err(match error.kind() {
                io::ErrorKind::NotFound => not_mounted("/sys", &error),
                kind => io::Error::new(kind, format!("{}: {error}", ports.display())),
            });
        }
    };
    for entry in entries {
        let entry = entry?;
        // The port has no name, or was removed just now.
        let Ok(name) = fs::read_to_string(entry.path().join("name")) else {
            continue;
        };
        if name.strip_suffix('\n').unwrap_or(&name) == wanted {
            return Ok(Some(entry.file_name().into()));
        }
    }
    Ok(None)
}

fn not_mounted(path: &str, error: &io::Error) -> io::Error {
    let advice =
        "an agent that is the guest's init first calls tokio_krun::agent::mount_filesystems";
    io::Error::new(error.kind(), format!("{path} is not mounted: {advice}"))
}

/// Whether the directory above `ports` exists. It always does in a mounted sysfs.
fn sysfs_is_mounted(ports: &Path) -> bool {
    ports.parent().is_some_and(Path::is_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_matches_only_its_whole_name() {
        let class = tempfile::tempdir().unwrap();
        let ports = class.path().join("virtio-ports");
        assert_eq!(device_of(&ports, "agent").unwrap(), None);
        for (device, name) in [
            ("vport0p1", Some("agents\n")),
            ("vport0p2", None),
            ("vport1p1", Some("agent\n")),
        ] {
            let port = ports.join(device);
            fs::create_dir_all(&port).unwrap();
            if let Some(name) = name {
                fs::write(port.join("name"), name).unwrap();
            }
        }
        let found = ["agent", "agents", "agen", ""].map(|name| device_of(&ports, name).unwrap());
        let device = |name: &str| Some(PathBuf::from(name));
        assert_eq!(found, [device("vport1p1"), device("vport0p1"), None, None]);
    }

    #[test]
    fn missing_sysfs_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let ports = root.path().join("class/virtio-ports");
        let error = device_of(&ports, "agent").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let error = error.to_string();
        assert!(error.starts_with("/sys is not mounted"), "{error}");
        assert!(error.contains("mount_filesystems"), "{error}");
    }
}
