//! A listing of sockets that the kernel narrows down by their peer's address: `INET_DIAG_REQ_BYTECODE` of
//! `linux/inet_diag.h`, which the crate's own request lacks.

use std::{collections::BTreeSet, net::IpAddr};

use netlink_packet_core::{DefaultNla, Emitable, NetlinkSerializable};
use netlink_packet_sock_diag::{AF_INET, AF_INET6, SockDiagMessage};

const INET_DIAG_REQ_BYTECODE: u16 = 1;
/// Goes on elsewhere.
const INET_DIAG_BC_JMP: u8 = 1;
/// Compares the peer's address with the condition that follows.
const INET_DIAG_BC_D_COND: u8 = 8;
/// A condition takes any port.
const ANY_PORT: i32 = -1;

/// The size of an instruction, `struct inet_diag_bc_op`: code, where to go on for yes (u8) and for no (u16).
const INSTRUCTION: usize = 4;
/// With more peers, comparing takes longer than reading what could have been left out.
const MOST_PEERS: usize = 32;

/// A request with a filter.
#[derive(Debug)]
pub(super) struct Listing {
    request: SockDiagMessage,
    filter: Option<DefaultNla>,
}

impl Listing {
    /// All that match the request, and are connected to one of these addresses, if there are any and not too many: a hint
    /// that spares reading the others. An IPv4 peer means v4-mapped ones of IPv6 sockets, too (`inet_diag_bc_run`).
    pub(super) fn new(request: SockDiagMessage, peers: &BTreeSet<IpAddr>) -> Self {
        let is_worth_it = (1..=MOST_PEERS).contains(&peers.len());
        let filter = is_worth_it.then(|| DefaultNla::new(INET_DIAG_REQ_BYTECODE, connected_to_one(peers)));
        Self { request, filter }
    }
}

impl NetlinkSerializable for Listing {
    fn message_type(&self) -> u16 {
        self.request.message_type()
    }

    fn buffer_len(&self) -> usize {
        NetlinkSerializable::buffer_len(&self.request) + self.filter.as_ref().map_or(0, Emitable::buffer_len)
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (request, filter) = buffer.split_at_mut(NetlinkSerializable::buffer_len(&self.request));
        self.request.serialize(request);
        if let Some(nla) = &self.filter {
            nla.emit(filter);
        }
    }
}

/// Whether the peer is one of these. To go on at the end of the code means yes, beyond it no.
fn connected_to_one(peers: &BTreeSet<IpAddr>) -> Vec<u8> {
    let mut code = Vec::new();
    // From the last one to the first, so that each knows how far it is to the end.
    for peer in peers.iter().rev() {
        let mut first = connected_to(*peer);
        if !code.is_empty() {
            let to_the_end = ((INSTRUCTION + code.len()) as u16).to_ne_bytes();
            first.extend([INET_DIAG_BC_JMP, INSTRUCTION as u8, to_the_end[0], to_the_end[1]]);
        }
        first.append(&mut code);
        code = first;
    }
    code
}

/// An instruction and its condition, `struct inet_diag_hostcond`. For yes it goes on behind them; for no one instruction
/// later, which is beyond the end after the last condition, and over a jump otherwise.
fn connected_to(peer: IpAddr) -> Vec<u8> {
    let (family, address) = match peer {
        IpAddr::V4(v4) => (AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AF_INET6, v6.octets().to_vec()),
    };
    let yes = INSTRUCTION + 8 + address.len();
    let no = ((yes + INSTRUCTION) as u16).to_ne_bytes();
    let mut code =
        vec![INET_DIAG_BC_D_COND, yes as u8, no[0], no[1], family, (address.len() * 8) as u8, 0, 0];
    code.extend(ANY_PORT.to_ne_bytes());
    code.extend(address);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(peers: &[&str]) -> Vec<u8> {
        connected_to_one(&peers.iter().map(|peer| peer.parse().unwrap()).collect())
    }

    #[test]
    fn a_condition_compares_all_bits_of_an_address_with_any_port() {
        let no = 20_u16.to_ne_bytes();
        let expected = [8, 16, no[0], no[1], 2, 32, 0, 0, 255, 255, 255, 255, 10, 0, 0, 1];
        assert_eq!(code(&["10.0.0.1"]), expected);
        let v6 = code(&["2001:db8::1"]);
        assert_eq!((v6.len(), v6[1], v6[4], v6[5]), (28, 28, 10, 128));
    }

    #[test]
    fn the_first_condition_that_holds_leads_to_the_end() {
        let code = code(&["10.0.0.1", "10.0.0.2", "2001:db8::1"]);
        // Condition, jump, condition, jump, condition.
        assert_eq!(code.len(), 16 + 4 + 16 + 4 + 28);
        for (at, to_the_end) in [(16, 52_u16), (36, 32)] {
            let [yes, no @ ..] = &code[at + 1..at + 4] else { panic!("too short") };
            assert_eq!((code[at], *yes, no), (1, 4, &to_the_end.to_ne_bytes()[..]));
            assert_eq!(at + usize::from(to_the_end), code.len());
        }
        // A condition that does not hold skips its jump; the last one goes beyond the end.
        for (at, next) in [(0, 20), (20, 40), (40, code.len() + 4)] {
            assert_eq!(at + usize::from(u16::from_ne_bytes([code[at + 2], code[at + 3]])), next);
        }
    }
}
