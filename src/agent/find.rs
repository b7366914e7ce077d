//! Which device file is the port of a name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::uevents::Uevents;

const PORTS: &str = "/sys/class/virtio-ports";

/// The device file of the port with this name, once there is one. Linux sends an event when a port has come, and
/// when it has learned the port's name.
pub(super) async fn appears(name: &str) -> io::Result<PathBuf> {
    // Before the first look, so that none comes between a look and the wait.
    let uevents = Uevents::listen()?;
    loop {
        if let Some(device) = named(Path::new(PORTS), name)? {
            return Ok(Path::new("/dev").join(device));
        }
        uevents.any().await?;
    }
}

fn named(ports: &Path, wanted: &str) -> io::Result<Option<PathBuf>> {
    let entries = match fs::read_dir(ports) {
        Ok(entries) => entries,
        // No virtio-console device yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
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
}
