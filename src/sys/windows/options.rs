//! What can be chosen on Windows only.

use crate::options::Options;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PortOptions {
    /// A name that cannot be guessed if there is none.
    pub(super) pipe_name: Option<String>,
}

/// On Windows.
impl Options {
    /// The name of the pipe that krun opens, such as `\\.\pipe\my-agent`. Without one each pipe gets
    /// a name of its own that cannot be guessed, which is better: a process that knows the name can
    /// hold the pipe back from krun, though not read from it.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_krun::Options;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let name = r"\\.\pipe\my-agent"; // which the VM's configuration has already
    /// let (stream, port) = Options::new().pipe_name(name).create()?;
    /// assert_eq!(port.into_bridge().pipe_name(), name);
    /// # Ok(()) }
    /// ```
    pub fn pipe_name(mut self, name: impl Into<String>) -> Self {
        self.port.pipe_name = Some(name.into());
        self
    }
}
