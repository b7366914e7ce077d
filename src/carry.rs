//! A stream joined to a socket: the bytes both ways, and the end of each side passed on to the other.

mod ended;
mod on_the_way;
mod steps;

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

pub use self::ended::{Carried, CarryError, CarryParts, Ended};
use self::on_the_way::{ToClient, ToGuest};
#[cfg(doc)]
use crate::error::Error;
use crate::stream::AgentStream;

/// Carries a stream over a socket until one side ends: the shortcut for [`Carry::new`] and [`run`](Carry::run).
///
/// The socket is anything with `AsyncRead` and `AsyncWrite`: a Unix socket, TCP, TLS. The client's end of file hangs the guest
/// up. When this returns, both sides are dropped.
///
/// # Errors
///
/// As for [`run`](Carry::run).
///
/// # Cancel safety
///
/// Not cancel safe: dropping it drops both sides. Use [`Carry`] to go on after that.
///
/// # Examples
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// # use tokio_krun::test_util::Guest;
/// use tokio_krun::{AgentStream, carry};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (stream, port) = AgentStream::pair()?;
/// # let guest = Guest::boot(port);
/// # let mut agent = guest.open()?;
/// let (mut client, socket) = tokio::io::duplex(1024); // or a `UnixStream`, a `TcpStream`, a `TlsStream`
/// let carried = tokio::spawn(carry(stream, socket));
///
/// client.write_all(b"goodbye").await?;
/// drop(client);
///
/// let mut heard = String::new();
/// agent.read_to_string(&mut heard).await?; // to end of file
/// assert_eq!(heard, "goodbye");
/// # assert_eq!(carried.await??, tokio_krun::Ended::Client);
/// # Ok(()) }
/// ```
pub async fn carry<S>(stream: AgentStream, socket: S) -> Result<Ended, CarryError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    Carry::new(stream, socket).run().await
}

/// Joins an [`AgentStream`] to a client's socket: a Unix socket, TCP, TLS, or anything with `AsyncRead` and `AsyncWrite`.
///
/// It carries the bytes both ways, and each side's end to the other, which [`copy_bidirectional`] cannot: for it, an end is a
/// `shutdown`, which the guest does not notice.
///
/// | what happens | the other side | [`run`](Self::run) returns |
/// | --- | --- | --- |
/// | the guest powers off, or its VM or port is dropped | The client reads all that the guest wrote, and then end of file. | [`Ended::Guest`] |
/// | the client closes, or ends its writing | The guest reads all that the client wrote, and then end of file: it is hung up. The client reads what the guest had written by then. | [`Ended::Client`] |
/// | the same, [if that does not hang up](Self::hang_up_on_client_end) | The guest reads all that the client wrote. Its own bytes go on to the client. | not yet |
/// | the client's socket fails | The guest is hung up, after what the client wrote before. | [`CarryError::Client`] |
/// | the stream fails, such as with [`Error::CutOff`] | The client reads all that came before. Its socket is not shut down: drop it. | [`CarryError::Guest`] |
///
/// When `run` has returned, the stream is [closed](AgentStream::close), so an [exit hook](crate::AgentPort::exit_hook) waits
/// no longer. By then the socket has all of the guest's bytes; a client that leaves them unread keeps `run` from returning.
///
/// That the client has closed may show first when a write to it fails. The guest then gets what the client sends until its
/// end, and the guest's own bytes are discarded. A client that closed only its reading has no end yet: `run` goes on for as
/// long as it sends without a pause, and then fails. It also fails if the connection was reset, as bytes may be lost then: TCP
/// does that if the client closes before it has read everything.
///
/// # Backpressure
///
/// While one side does not read, the other's writes wait. The guest's bytes go from the ring to the socket without a copy,
/// several chunks in one vectored write. Those on the way still count against the [capacity](crate::Options::capacity), except
/// small pieces, which were copied. In the other direction at most 64 KiB are on the way between the socket and the ring.
///
/// While the guest does not read and the ring is full, the client's end cannot be seen: it comes after the client's bytes. A
/// client that resets its connection is seen by the next write to it.
///
/// # Dropping
///
/// Dropping it drops both sides. If the client has sent bytes that nobody read, the system resets its connection: the client
/// gets `ConnectionReset` instead of end of file, after the guest's bytes. So this is also what a client may see that still
/// sends while the guest powers off.
///
/// # Examples
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// # use tokio_krun::test_util::Guest;
/// use tokio_krun::{AgentStream, Carry, Ended};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (stream, port) = AgentStream::pair()?;
/// # let guest = Guest::boot(port);
/// let (mut client, socket) = tokio::io::duplex(1024); // or a `UnixStream`, a `TcpStream`, a `TlsStream`
/// let mut carry = Carry::new(stream, socket);
///
/// # let agent = async {
/// #     guest.open()?.write_all(b"last words").await?;
/// #     guest.drained().await;
/// #     guest.power_off().await;
/// #     Ok::<_, std::io::Error>(())
/// # };
/// # let (ended, said) = tokio::join!(carry.run(), agent);
/// # let ended = (said?, ended).1;
/// # /*
/// let ended = carry.run().await;
/// # */
/// assert_eq!(ended?, Ended::Guest);
/// assert_eq!(carry.carried().from_guest, 10);
///
/// let mut heard = String::new();
/// client.read_to_string(&mut heard).await?; // to end of file
/// assert_eq!(heard, "last words");
/// # Ok(()) }
/// ```
///
/// [`copy_bidirectional`]: https://docs.rs/tokio/1/tokio/io/fn.copy_bidirectional.html
#[derive(Debug)]
pub struct Carry<S> {
    stream: AgentStream,
    socket: S,
    hangs_up: bool,
    to_client: ToClient,
    to_guest: ToGuest,
    carried: Carried,
    /// Why nothing more can be written to the guest. What it had written by then still goes to the client.
    lost_guest: Option<io::Error>,
    /// Why nothing more can be written to the client. What it has sent still goes to the guest.
    lost_client: Option<io::Error>,
    outcome: Option<Result<Ended, CarryError>>,
}

impl<S> Carry<S> {
    /// Joins the two. Nothing moves until you call [`run`](Self::run), which first flushes the socket: it may still hold what
    /// was written to it before.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio_krun::{AgentStream, Carry, Ended};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (stream, port) = AgentStream::pair()?;
    /// let (client, socket) = tokio::io::duplex(1024);
    /// let mut carry = Carry::new(stream, socket);
    /// drop(port); // for example, because the VM failed to build
    /// assert_eq!(carry.run().await?, Ended::Guest);
    /// # Ok(()) }
    /// ```
    pub fn new(stream: AgentStream, socket: S) -> Self {
        Self {
            stream,
            socket,
            hangs_up: true,
            to_client: ToClient::new(),
            to_guest: ToGuest::default(),
            carried: Carried::default(),
            lost_guest: None,
            lost_client: None,
            outcome: None,
        }
    }

    /// What the client's end of file means. By default it hangs the guest up, and `run` returns.
    ///
    /// With `false` it only [shuts the stream down](AgentStream#ends): the guest does not notice, and its bytes go on to the
    /// client until the guest ends. Choose this for a client that ends its writing to say that its request is complete, and
    /// then reads the answer. The guest must know by the bytes alone that the request is complete. A client that has closed
    /// its socket is then noticed when a write to it fails: at the guest's next byte, or with TCP at the one after.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::test_util::Guest;
    /// use tokio_krun::{AgentStream, Carry, Ended};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// let (mut client, socket) = tokio::io::duplex(1024); // or a `UnixStream`, a `TcpStream`, a `TlsStream`
    /// let mut carry = Carry::new(stream, socket);
    /// carry.hang_up_on_client_end(false);
    /// let carried = tokio::spawn(async move { carry.run().await });
    ///
    /// client.write_all(b"request\n").await?;
    /// client.shutdown().await?;
    /// # agent.read_exact(&mut [0; 8]).await?;
    /// # agent.write_all(b"answer").await?;
    /// # guest.drained().await;
    /// # guest.power_off().await;
    /// let mut answer = String::new();
    /// client.read_to_string(&mut answer).await?;
    /// assert_eq!(answer, "answer");
    /// # assert_eq!(carried.await??, Ended::Guest);
    /// # Ok(()) }
    /// ```
    pub fn hang_up_on_client_end(&mut self, hang_up: bool) -> &mut Self {
        self.hangs_up = hang_up;
        self
    }

    /// How many bytes were carried so far, also after `run` was cancelled or has failed.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::{AgentStream, Carry, Ended};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (stream, _port) = AgentStream::pair()?;
    /// let (mut client, socket) = tokio::io::duplex(1024);
    /// client.write_all(b"goodbye").await?;
    /// drop(client);
    ///
    /// let mut carry = Carry::new(stream, socket);
    /// assert_eq!(carry.run().await?, Ended::Client);
    /// assert_eq!(carry.carried().to_guest, 7);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn carried(&self) -> Carried {
        self.carried
    }

    /// Returns both sides, and what was on the way between them.
    ///
    /// After a cancelled `run` no byte is lost: each was written, is in the parts, or is unread in the stream or the socket.
    /// Only if a write to the client has failed, the guest's unread bytes are gone.
    ///
    /// A buffered socket may hold bytes that are not flushed. A new [`Carry`] flushes them; without one, do it yourself.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tokio::io::AsyncWriteExt;
    /// use tokio::time::timeout;
    /// # use tokio_krun::test_util::Guest;
    /// use tokio_krun::{AgentStream, Carry};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// let (client, socket) = tokio::io::duplex(4); // a client that does not read
    /// agent.write_all(b"hello world").await?;
    ///
    /// let mut carry = Carry::new(stream, socket);
    /// let cancelled = timeout(Duration::from_millis(10), carry.run()).await;
    /// assert!(cancelled.is_err());
    /// assert_eq!(carry.carried().from_guest, 4);
    /// let parts = carry.into_parts();
    /// assert_eq!(parts.to_client, ["o world"]);
    /// # drop(client);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn into_parts(self) -> CarryParts<S> {
        CarryParts {
            stream: self.stream,
            socket: self.socket,
            to_client: self.to_client.chunks.into(),
            to_guest: Bytes::copy_from_slice(self.to_guest.unwritten()),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Carry<S> {
    /// Carries until one side has ended and the other knows it, or until one has failed.
    ///
    /// Called again after that, it returns the same at once. Of an error that is neither the system's nor an [`Error`], it only
    /// says the side and the kind.
    ///
    /// # Errors
    ///
    /// [`CarryError::Client`] if the client's socket fails, [`CarryError::Guest`] if the stream does. That the guest goes is no
    /// failure.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: if you drop it, no byte is lost, and no end or failure that it has seen. Call it again to go on.
    ///
    /// # Examples
    ///
    /// With a limit for the whole connection:
    ///
    /// ```
    /// use std::io;
    /// use std::time::Duration;
    ///
    /// use tokio::net::TcpStream;
    /// use tokio::time::timeout;
    /// use tokio_krun::{AgentStream, Carry};
    ///
    /// async fn serve(stream: AgentStream, socket: TcpStream) -> io::Result<()> {
    ///     let mut carry = Carry::new(stream, socket);
    ///     let limit = Duration::from_secs(3600);
    ///     match timeout(limit, carry.run()).await {
    ///         Ok(ended) => println!("{:?} after {:?}", ended?, carry.carried()),
    ///         Err(_) => println!("cut off after {:?}", carry.carried()),
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub async fn run(&mut self) -> Result<Ended, CarryError> {
        if let Some(outcome) = &self.outcome {
            return outcome.as_ref().copied().map_err(CarryError::again);
        }
        let result = self.carry_on().await;
        self.outcome = Some(result.as_ref().copied().map_err(CarryError::again));
        // The guest is hung up, and the exit hook goes on.
        self.stream.close();
        result
    }
}
