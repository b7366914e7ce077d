//! Which device file is the port of a name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::uevents::Uevents;

const PORTS: &str = "/sys/class/virtio-ports";

/// What `open` makes of the device file of the port with this name, once there is one. The kernel sends an event when
/// a port has come, and when it has learned the port's name; udev another when it has made the device file.
pub(super) async fn appears<T>(
    name: &str,
    open: impl Fn(PathBuf) -> io::Result<T>,
) -> io::Result<T> {
    let look = || -> io::Result<Option<T>> {
        let Some(device) = named(Path::new(PORTS), name)? else {
            return Ok(None);
        };
        match open(Path::new("/dev").join(device)) {
            // Not made yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        }
    };
    // Most often it is there, and a process that may not open such a socket need not.
    if let Some(opened) = look()? {
        return Ok(opened);
    }
    // Before the next look, so that none comes between a look and the wait.
    let uevents = Uevents::listen()?;
    loop {
        if let Some(opened) = look()? {
            return Ok(opened);
        }
        uevents.any().await?;
    }
}

fn named(ports: &Path, wanted: &str) -> io::Result<Option<PathBuf>> {
    let entries = match fs::read_dir(ports) {
        Ok(entries) => entries,
        // No virtio-console device yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound && has_parent(ports) => {
            return Ok(None);
        }
        Err(error) => {
            let error = io::Error::new(error.kind(), format!("{}: {error}", ports.display()));
            return Err(error);
        }
    };
    for entry in entries {
        let entry = entry?;
        // A port without a name, or one that has gone meanwhile.
        let Ok(name) = fs::read_to_string(entry.path().join("name")) else {
            continue;
        };
        if name.strip_suffix('\n').unwrap_or(&name) == wanted {
            return Ok(Some(entry.file_name().into()));
        }
    }
    Ok(None)
}

/// Not if `/sys` is not mounted.
fn has_parent(ports: &Path) -> bool {
    ports.parent().is_some_and(Path::is_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_known_by_its_whole_name() {
        let class = tempfile::tempdir().unwrap();
        let ports = class.path().join("virtio-ports");
        assert_eq!(named(&ports, "agent").unwrap(), None);
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
        let found = ["agent", "agents", "agen", ""].map(|name| named(&ports, name).unwrap());
        let device = |name: &str| Some(PathBuf::from(name));
        assert_eq!(found, [device("vport1p1"), device("vport0p1"), None, None]);
    }

    #[test]
    fn without_sysfs_there_is_an_error_and_no_wait() {
        let root = tempfile::tempdir().unwrap();
        let ports = root.path().join("class/virtio-ports");
        let error = named(&ports, "agent").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("class/virtio-ports"), "{error}");
    }
}
