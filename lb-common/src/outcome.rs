//! Every way in which a decision ends: its number in `OUTCOMES` and its name.
//!
//! A path through the datapath ends in exactly one of these and counts it once, on the CPU it ran on.

/// Declares an enum whose variants carry a number, a name for people and metrics, and one line of meaning.
macro_rules! numbered {
    ($(#[$attr:meta])* $name:ident { $($variant:ident = $number:literal, $text:literal, $meaning:literal;)+ }) => {
        $(#[$attr])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum $name {
            $(#[doc = concat!("Named `", $text, "`.")] $variant = $number,)+
        }

        impl $name {
            /// All of them, by number.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Index in `OUTCOMES`.
            #[inline(always)]
            pub const fn number(self) -> u32 {
                self as u32
            }

            /// The name in metrics and tables.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// One line for operators.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)+ }
            }
        }
    };
}

numbered! {
    /// What was done.
    #[must_use]
    Outcome {
        ConnectTranslated = 0, "connect_translated", "connect() to a service, sent to a backend";
        DatagramTranslated = 1, "datagram_translated", "sendto() to a service, a backend newly chosen";
        DatagramKept = 2, "datagram_kept", "sendto() to a service, the socket's backend kept";
        SourceRestored = 3, "source_restored", "recvfrom() shows the service instead of the backend";
        PeerRestored = 4, "peer_restored", "getpeername() shows the service instead of the backend";
        FlowOpened = 5, "flow_opened", "first packet of a connection from outside, sent to a backend";
        FlowForwarded = 6, "flow_forwarded", "further packet of a connection from outside";
        FlowReturned = 7, "flow_returned", "packet of a backend, sent back as the service's";
        ErrorTranslated = 8, "error_translated", "ICMP error about a connection from outside, sent to whom it concerns";
    }
}

numbered! {
    /// Why nothing was translated, or why it was refused.
    #[must_use]
    Reason {
        NotAService = 16, "not_a_service", "the destination is no frontend";
        OtherProtocol = 17, "other_protocol", "neither TCP nor UDP";
        NothingToRestore = 18, "nothing_to_restore", "the peer is not one that this socket was translated to";
        NoBackends = 19, "no_backends", "the service has no usable endpoint";
        NoLocalBackends = 20, "no_local_backends", "a Local policy, and usable endpoints only on other nodes";
        BrokenTables = 21, "broken_tables", "a frontend leads to no record or to no slot: a defect, please report";
        NotStored = 22, "not_stored", "translated, but the socket could not remember it (memory limit of the socket)";
        Malformed = 23, "malformed", "a packet too short for its headers";
        Fragment = 24, "fragment", "a fragment whose first one was not seen, left to the stack";
        NotIp = 25, "not_ip", "neither IPv4 nor IPv6";
        PortsExhausted = 26, "ports_exhausted", "no free port to translate the source to";
        NoNodeAddress = 27, "no_node_address", "no node address of this family to translate the source to";
        FlowTableFull = 28, "flow_table_full", "the connection could not be remembered";
        NoRoute = 29, "no_route", "no route to the backend or back to the client";
        TtlExceeded = 30, "ttl_exceeded", "hop limit reached: the sender is told";
        RewriteFailed = 31, "rewrite_failed", "the kernel refused to change the packet";
        NoFlow = 32, "no_flow", "a TCP packet to a service that neither opens nor belongs to a known connection";
        Unanswered = 33, "unanswered", "dropped, and no answer could be made for the sender";
        NodePortTaken = 34, "node_port_taken", "a process of the host tried to bind a node port that is in use";
        SourceNotAllowed = 35, "source_not_allowed", "the client is in none of the Service's loadBalancerSourceRanges";
        SourceUnknown = 36, "source_unknown", "loadBalancerSourceRanges, and the client's address is not known";
        TooBig = 37, "too_big", "longer than the way to the backend or to the client allows: the sender is told";
        NoSuchService = 38, "no_such_service", "a port that the Service at a cluster address does not have, or a cluster address of no Service";
    }
}

/// Size of `OUTCOMES`: numbers are below this.
pub const COUNT: u32 = 64;

/// Name and meaning of a number, if there is such an outcome or reason.
pub fn describe(number: u32) -> Option<(&'static str, &'static str)> {
    let outcome =
        Outcome::ALL.iter().find(|o| o.number() == number).map(|outcome| (outcome.name(), outcome.meaning()));
    outcome.or_else(|| {
        Reason::ALL.iter().find(|r| r.number() == number).map(|reason| (reason.name(), reason.meaning()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_below_the_count_and_mean_one_thing() {
        let numbers = Outcome::ALL.iter().map(|o| o.number()).chain(Reason::ALL.iter().map(|r| r.number()));
        let mut seen = [false; COUNT as usize];
        for number in numbers {
            assert!(!core::mem::replace(&mut seen[number as usize], true), "{number} twice");
            assert!(describe(number).is_some());
        }
        assert_eq!(describe(63), None);
    }
}
