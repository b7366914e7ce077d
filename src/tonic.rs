//! The ends of the channel as connections of a tonic server.

use tonic::transport::server::Connected;

use crate::stream::AgentStream;

/// For [`serve_with_incoming`](tonic::transport::Server::serve_with_incoming), with a stream of one
/// connection. There is nothing to tell of it: its one peer is the VM's guest.
impl Connected for AgentStream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// For a server in the guest: the host hangs up when its client goes.
#[cfg(all(feature = "guest", target_os = "linux", not(tokio_krun_loom)))]
impl Connected for crate::agent::VirtioPort {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// For a test of a server that runs in a guest.
#[cfg(feature = "test-util")]
impl Connected for crate::guest::GuestPort {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}
