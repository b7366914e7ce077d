//! The stream as a connection of a tonic server.

use tonic::transport::server::Connected;

use crate::stream::AgentStream;

/// For [`serve_with_incoming`](tonic::transport::Server::serve_with_incoming), with a stream of one
/// connection. There is nothing to tell of it: its one peer is the VM's guest.
impl Connected for AgentStream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// For a test of a server that runs in a guest.
#[cfg(feature = "test-util")]
impl Connected for crate::guest::GuestPort {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}
