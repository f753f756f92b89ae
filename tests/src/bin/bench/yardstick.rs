//! What the packet programs are measured against, on the same machine in the same run: a program that does nothing, whose
//! time is subtracted from all others', and one that parses a packet and looks one key up.

use std::os::fd::{AsRawFd as _, OwnedFd};

use lb_tests::bpf::{self, RawMap, instruction};

/// `BPF_PROG_TYPE_SCHED_CLS`, `BPF_MAP_TYPE_HASH`.
const CLASSIFIER: u32 = 3;
const HASH: u32 = 1;

/// What the second yardstick returns for a key that is there (`TC_ACT_OK`); all else is `TC_ACT_UNSPEC`.
pub(crate) const FOUND: u32 = 0;

/// Does nothing.
pub(crate) fn empty() -> anyhow::Result<OwnedFd> {
    let pass = instruction(0xb7, 0, 0, 0, -1);
    bpf::load(CLASSIFIER, &[pass, instruction(0x95, 0, 0, 0, 0)])
}

/// The key: both IPv4 addresses, both ports and the protocol, as they stand in the packet.
pub(crate) type Key = [u32; 4];

/// Parses and does one hash look-up.
pub(crate) struct Lookup {
    pub(crate) program: OwnedFd,
    map: RawMap,
}

impl Lookup {
    /// With room for so many keys.
    pub(crate) fn load(entries: u32) -> anyhow::Result<Self> {
        let map = RawMap::new(HASH, 16, 8, entries)?;
        Ok(Self { program: bpf::load(CLASSIFIER, &instructions(&map))?, map })
    }

    /// Adds a key.
    pub(crate) fn add(&self, key: Key) -> anyhow::Result<()> {
        self.map.update(&key, &1_u64)
    }
}

fn instructions(map: &RawMap) -> [u64; 31] {
    // Jumps lead to the last two instructions: each is so far from them.
    let out = |index: i16| 31 - 2 - index - 1;
    [
        instruction(0x61, 2, 1, 76, 0),              //  0 r2 = context->data
        instruction(0x61, 3, 1, 80, 0),              //  1 r3 = context->data_end
        instruction(0xbf, 4, 2, 0, 0),               //  2 r4 = r2
        instruction(0x07, 4, 0, 0, 54),              //  3 r4 += Ethernet, IPv4 and TCP header
        instruction(0x2d, 4, 3, out(4), 0),          //  4 if r4 > r3: too short
        instruction(0x69, 5, 2, 12, 0),              //  5 r5 = the Ethernet type
        instruction(0x55, 5, 0, out(6), ETH_P_IP),   //  6 if it is not IPv4: out
        instruction(0x71, 5, 2, 14, 0),              //  7 r5 = version and length
        instruction(0x55, 5, 0, out(8), 0x45),       //  8 if there are options: out
        instruction(0x69, 5, 2, 20, 0),              //  9 r5 = flags and offset
        instruction(0x57, 5, 0, 0, FRAGMENT),        // 10 r5 &= more, offset
        instruction(0x55, 5, 0, out(11), 0),         // 11 if it is a fragment: out
        instruction(0x71, 5, 2, 23, 0),              // 12 r5 = the protocol
        instruction(0x55, 5, 0, out(13), 6),         // 13 if it is not TCP: out
        instruction(0x63, 10, 5, -4, 0),             // 14 key[3] = r5
        instruction(0x61, 4, 2, 26, 0),              // 15 r4 = the source
        instruction(0x63, 10, 4, -16, 0),            // 16 key[0] = r4
        instruction(0x61, 4, 2, 30, 0),              // 17 r4 = the destination
        instruction(0x63, 10, 4, -12, 0),            // 18 key[1] = r4
        instruction(0x61, 4, 2, 34, 0),              // 19 r4 = the ports
        instruction(0x63, 10, 4, -8, 0),             // 20 key[2] = r4
        instruction(0x18, 1, 1, 0, map.as_raw_fd()), // 21 r1 = map
        bpf::SECOND_HALF,                            // 22
        instruction(0xbf, 2, 10, 0, 0),              // 23 r2 = frame
        instruction(0x07, 2, 0, 0, -16),             // 24 r2 = &key
        instruction(0x85, 0, 0, 0, 1),               // 25 call bpf_map_lookup_elem
        instruction(0x15, 0, 0, out(26), 0),         // 26 if it is not there: out
        instruction(0xb7, 0, 0, 0, FOUND as i32),    // 27 r0 = FOUND
        instruction(0x95, 0, 0, 0, 0),               // 28 exit
        instruction(0xb7, 0, 0, 0, -1),              // 29 r0 = TC_ACT_UNSPEC
        instruction(0x95, 0, 0, 0, 0),               // 30 exit
    ]
}

/// Words of a packet as a load gives them on this machine.
const ETH_P_IP: i32 = 0x0800_u16.to_be() as i32;
const FRAGMENT: i32 = 0x3fff_u16.to_be() as i32;
