//! Saves a VM with its streams in files, and restores them: the sequence of `docs/checkpoint.md`.

use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::iter;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use msb_krun::{
    ExecutionState, GuestMemoryRange, MemoryCaptureOptions, MemoryCaptureSink,
    PrivateMemoryBacking, PrivateMemoryRegion, VirtioDeviceState, Vm, VmControl,
};
use tokio_krun::{Checkpoint, PortHandle, StreamState};

/// A folder with a file for each part.
pub(crate) struct Snapshot(PathBuf);

impl Snapshot {
    pub(crate) fn new(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// Pauses the VM, saves it with the streams of `ports`, and resumes it.
    pub(crate) fn save(&self, vm: &VmControl, ports: &[PortHandle]) -> Result<(), Box<dyn Error>> {
        fs::create_dir_all(&self.0)?;
        let pause = vm.pause()?;
        let checkpoints: Vec<Checkpoint> = ports.iter().map(PortHandle::checkpoint).collect();

        // The devices stop at their capture. Until then, their threads use the guest's memory and the ports.
        for (index, (kind, name)) in vm.virtio_device_inventory()?.into_iter().enumerate() {
            let device = vm.capture_virtio_device_state(kind, &name)?;
            fs::write(self.device(index), device.encode()?)?;
        }
        for (index, checkpoint) in checkpoints.iter().enumerate() {
            checkpoint
                .capture()?
                .write_to(File::create(self.stream(index))?)?;
        }
        fs::write(
            self.file("execution"),
            vm.capture_execution_state()?.encode()?,
        )?;
        self.save_memory(vm)?;

        for checkpoint in checkpoints {
            checkpoint.resume()?;
        }
        vm.resume(pause)?;
        Ok(())
    }

    fn save_memory(&self, vm: &VmControl) -> Result<(), Box<dyn Error>> {
        let mut image = Image {
            file: File::create(self.file("memory"))?,
            length: 0,
            regions: Vec::new(),
        };
        let plan = vm.plan_full_memory_capture()?;
        vm.capture_memory(
            &plan,
            MemoryCaptureOptions::new(64 * 1024, true)?,
            &mut image,
        )?;
        // Without this, krun refuses to resume. `publish_memory_capture` would let the next capture be a smaller one.
        vm.abandon_memory_capture(&plan)?;
        image.file.set_len(image.length)?;
        let regions = image.regions.iter().map(|region| {
            let PrivateMemoryRegion {
                guest_address,
                length,
                file_offset,
            } = region;
            format!("{guest_address} {length} {file_offset}\n")
        });
        fs::write(self.file("regions"), regions.collect::<String>())?;
        Ok(())
    }

    /// The streams, as many as were saved.
    pub(crate) fn streams(&self) -> io::Result<Vec<StreamState>> {
        self.existing(Self::stream)
            .map(|path| StreamState::read_from(File::open(path)?))
            .collect()
    }

    /// Prepares a VM to be restored. It must have been built like the saved one.
    pub(crate) fn restore(&self, vm: &mut Vm) -> Result<(), Box<dyn Error>> {
        let execution = fs::read(self.file("execution"))?;
        vm.set_execution_restore(ExecutionState::decode(&execution)?);
        let regions = fs::read_to_string(self.file("regions"))?;
        let regions = regions.lines().map(region).collect::<Result<_, _>>()?;
        let memory = File::open(self.file("memory"))?;
        vm.set_private_memory_backing(PrivateMemoryBacking::new(memory, regions)?);
        for path in self.existing(Self::device) {
            vm.add_virtio_device_restore(VirtioDeviceState::decode(&fs::read(path)?)?);
        }
        vm.set_start_paused(true);
        Ok(())
    }

    fn existing(&self, path: fn(&Self, usize) -> PathBuf) -> impl Iterator<Item = PathBuf> {
        let mut indices = 0..;
        iter::from_fn(move || {
            indices
                .next()
                .map(|index| path(self, index))
                .filter(|path| path.exists())
        })
    }

    fn device(&self, index: usize) -> PathBuf {
        self.file(&format!("device-{index}"))
    }

    fn stream(&self, index: usize) -> PathBuf {
        self.file(&format!("stream-{index}"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// A line of the file `regions`.
fn region(line: &str) -> Result<PrivateMemoryRegion, Box<dyn Error>> {
    let mut numbers = line.split(' ').map(str::parse);
    let mut next = || numbers.next().ok_or("a number is missing");
    Ok(PrivateMemoryRegion {
        guest_address: next()??,
        length: next()??,
        file_offset: next()??,
    })
}

/// The guest's memory, one region after another. What is zero is a hole in the file.
struct Image {
    file: File,
    length: u64,
    regions: Vec<PrivateMemoryRegion>,
}

impl Image {
    /// Returns the place of `range` in the file. krun sends the ranges in order.
    fn place(&mut self, range: GuestMemoryRange) -> u64 {
        let place = self.length;
        self.length += range.length();
        match self.regions.last_mut() {
            Some(last) if last.guest_address + last.length == range.start() => {
                last.length += range.length();
            }
            _ => self.regions.push(PrivateMemoryRegion {
                guest_address: range.start(),
                length: range.length(),
                file_offset: place,
            }),
        }
        place
    }
}

impl MemoryCaptureSink for Image {
    fn write_bytes(&mut self, range: GuestMemoryRange, bytes: &[u8]) -> io::Result<()> {
        let place = self.place(range);
        self.file.write_all_at(bytes, place)
    }

    fn write_zero(&mut self, range: GuestMemoryRange) -> io::Result<()> {
        self.place(range);
        Ok(())
    }
}
