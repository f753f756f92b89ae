//! Programs of a few instructions, written by hand: what a test needs beside Sockeye's own, without a compiler.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result, ensure};
use bytemuck::{Pod, bytes_of};

/// The commands of bpf(2) in use, and the part of `union bpf_attr` that they need.
const MAP_CREATE: i64 = 0;
const MAP_UPDATE_ELEM: i64 = 2;
const PROG_LOAD: i64 = 5;
const PROG_TEST_RUN: i64 = 10;
type Attr = [u64; 16];

/// One instruction, as `linux/bpf.h` lays it out; one of 16 bytes is followed by [`SECOND_HALF`].
#[must_use]
pub fn instruction(code: u64, destination: u64, source: u64, offset: i16, immediate: i32) -> u64 {
    let (offset, immediate) = (u64::from(offset.cast_unsigned()), u64::from(immediate.cast_unsigned()));
    code | destination << 8 | source << 12 | offset << 16 | immediate << 32
}

/// The second half of a load of 64 bits, whose upper word is zero.
pub const SECOND_HALF: u64 = 0;

/// Loads a program of a type (`BPF_PROG_TYPE_*`).
pub fn load(program_type: u32, instructions: &[u64]) -> Result<OwnedFd> {
    let mut attr: Attr = [0; 16];
    attr[0] = u64::from(program_type) | (instructions.len() as u64) << 32;
    attr[1] = instructions.as_ptr().expose_provenance() as u64;
    attr[2] = c"GPL".as_ptr().expose_provenance() as u64;
    descriptor(bpf(PROG_LOAD, &mut attr)).context("loading a program")
}

/// A map.
#[derive(Debug)]
pub struct RawMap {
    file: OwnedFd,
    key_size: usize,
    value_size: usize,
}

impl RawMap {
    /// A new map of a type (`BPF_MAP_TYPE_*`).
    pub fn new(map_type: u32, key_size: u32, value_size: u32, entries: u32) -> Result<Self> {
        let mut attr: Attr = [0; 16];
        attr[0] = u64::from(map_type) | u64::from(key_size) << 32;
        attr[1] = u64::from(value_size) | u64::from(entries) << 32;
        let file = descriptor(bpf(MAP_CREATE, &mut attr)).context("creating a map")?;
        Ok(Self { file, key_size: key_size as usize, value_size: value_size as usize })
    }

    /// Writes an element.
    pub fn update(&self, key: &impl Pod, value: &impl Pod) -> Result<()> {
        let (key, value) = (bytes_of(key), bytes_of(value));
        ensure!(key.len() == self.key_size && value.len() == self.value_size, "key or value of another size");
        let mut attr: Attr = [0; 16];
        attr[0] = u64::from(self.file.as_raw_fd().cast_unsigned());
        attr[1] = key.as_ptr().expose_provenance() as u64;
        attr[2] = value.as_ptr().expose_provenance() as u64;
        bpf(MAP_UPDATE_ELEM, &mut attr).map(drop).context("writing an element")
    }
}

impl AsRawFd for RawMap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl AsFd for RawMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Runs a program once on a copy of a packet; the result is what it returns.
pub fn run(program: BorrowedFd<'_>, packet: &[u8], context: &[u8]) -> Result<u32> {
    let mut attr: Attr = [0; 16];
    attr[0] = u64::from(program.as_raw_fd().cast_unsigned());
    attr[1] = packet.len() as u64;
    attr[2] = packet.as_ptr().expose_provenance() as u64;
    attr[4] = 1;
    // The kernel refuses an address of nothing.
    if !context.is_empty() {
        attr[5] = context.len() as u64;
        attr[6] = context.as_ptr().expose_provenance() as u64;
    }
    bpf(PROG_TEST_RUN, &mut attr).context("running a program")?;
    // `retval` is the upper half of the first word.
    Ok((attr[0] >> 32) as u32)
}

fn bpf(command: i64, attr: &mut Attr) -> io::Result<i64> {
    // SAFETY: the attribute is valid for reads and writes of its size, and so is what it points to.
    match unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) } {
        answer if answer >= 0 => Ok(answer),
        _ => Err(io::Error::last_os_error()),
    }
}

fn descriptor(answer: io::Result<i64>) -> Result<OwnedFd> {
    let number = i32::try_from(answer?)?;
    // SAFETY: the kernel has just returned it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
