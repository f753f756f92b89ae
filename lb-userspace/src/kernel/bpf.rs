//! The few calls of bpf(2) that aya does not offer: links of every kind of program, iterators, and two probes.

use std::{
    ffi::CString,
    fs::File,
    io, mem,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type, bpf_prog_type};

/// A link, as the kernel describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    /// The link's id.
    pub(crate) id: u32,
    /// The program that it runs now.
    pub(crate) program_id: u32,
    /// What it is attached to.
    pub(crate) target: LinkTarget,
}

/// What a link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkTarget {
    /// A cgroup, by the number of its inode; zero: it has been removed.
    Cgroup {
        /// `cgroup_id`.
        id: u64,
        /// A `bpf_attach_type`.
        attach_type: u32,
    },
    /// A device's TC hook; zero: it has been removed.
    Tcx {
        /// The device's index.
        ifindex: u32,
        /// A `bpf_attach_type`.
        attach_type: u32,
    },
    /// A device's XDP hook; zero: it has been removed.
    Xdp {
        /// The device's index.
        ifindex: u32,
    },
    /// Something that Sockeye never makes.
    Other,
}

/// Opens a pinned object.
pub(crate) fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    // SAFETY: the member of the union that BPF_OBJ_GET reads; all are plain numbers.
    let object = unsafe { &mut attr.__bindgen_anon_4 };
    object.pathname = path.as_ptr().expose_provenance() as u64;
    descriptor(call(bpf_cmd::BPF_OBJ_GET, &mut attr)?)
}

/// What the kernel says of a link.
pub(crate) fn link_info(link: impl AsFd) -> io::Result<LinkInfo> {
    // SAFETY: plain numbers, for which zero is a value.
    let mut info: bpf_link_info = unsafe { mem::zeroed() };
    let mut attr = zeroed();
    attr.info.bpf_fd = number(link.as_fd());
    attr.info.info_len = size_of_val(&info) as u32;
    attr.info.info = (&raw mut info).expose_provenance() as u64;
    call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    let target = if info.type_ == bpf_link_type::BPF_LINK_TYPE_CGROUP as u32 {
        // SAFETY: the member that belongs to this type; plain numbers.
        let cgroup = unsafe { info.__bindgen_anon_1.cgroup };
        LinkTarget::Cgroup { id: cgroup.cgroup_id, attach_type: cgroup.attach_type }
    } else if info.type_ == bpf_link_type::BPF_LINK_TYPE_TCX as u32 {
        // SAFETY: the member that belongs to this type; plain numbers.
        let tcx = unsafe { info.__bindgen_anon_1.tcx };
        LinkTarget::Tcx { ifindex: tcx.ifindex, attach_type: tcx.attach_type }
    } else if info.type_ == bpf_link_type::BPF_LINK_TYPE_XDP as u32 {
        // SAFETY: the member that belongs to this type; plain numbers.
        LinkTarget::Xdp { ifindex: unsafe { info.__bindgen_anon_1.xdp }.ifindex }
    } else {
        LinkTarget::Other
    };
    Ok(LinkInfo { id: info.id, program_id: info.prog_id, target })
}

/// Makes a link run another program, in one step: for cgroups since kernel 5.7, for devices since 6.6.
pub(crate) fn link_update(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_update.link_fd = number(link.as_fd());
    attr.link_update.__bindgen_anon_1.new_prog_fd = number(program.as_fd());
    call(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Detaches a link, whoever else holds it (kernel 5.9).
pub(crate) fn link_detach(link: impl AsFd) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_detach.link_fd = number(link.as_fd());
    call(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

/// A link that makes an iterator run over the elements of a map (kernel 5.9 for socket storage).
pub(crate) fn link_iterator(program: impl AsFd, map: impl AsFd) -> io::Result<OwnedFd> {
    // `union bpf_iter_link_info`, whose first member is the map's descriptor.
    let info = number(map.as_fd());
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = number(program.as_fd());
    attr.link_create.attach_type = bpf_attach_type::BPF_TRACE_ITER as u32;
    // SAFETY: the member of the union that an iterator's link reads; all are plain numbers.
    let target = unsafe { &mut attr.link_create.__bindgen_anon_3.__bindgen_anon_1 };
    target.iter_info = (&raw const info).expose_provenance() as u64;
    target.iter_info_len = size_of_val(&info) as u32;
    descriptor(call(bpf_cmd::BPF_LINK_CREATE, &mut attr)?)
}

/// One run of an iterator: reading the file runs the program.
pub(crate) fn iterate(link: impl AsFd) -> io::Result<File> {
    let mut attr = zeroed();
    attr.iter_create.link_fd = number(link.as_fd());
    descriptor(call(bpf_cmd::BPF_ITER_CREATE, &mut attr)?).map(File::from)
}

/// Whether the kernel accepts a `sock_addr` program for this hook.
pub(crate) fn accepts_sock_addr(hook: bpf_attach_type) -> io::Result<bool> {
    // r0 = 1; exit: the only return value that every one of these hooks accepts.
    const PROGRAM: [u64; 2] = [instruction(0xb7, 1), instruction(0x95, 0)];
    let mut attr = zeroed();
    // SAFETY: the member of the union that BPF_PROG_LOAD reads; all are plain numbers.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR as u32;
    load.expected_attach_type = hook as u32;
    load.insns = PROGRAM.as_ptr().expose_provenance() as u64;
    load.insn_cnt = PROGRAM.len() as u32;
    load.license = c"GPL".as_ptr().expose_provenance() as u64;
    match call(bpf_cmd::BPF_PROG_LOAD, &mut attr).and_then(descriptor) {
        Ok(_program) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the kernel has bpf links for this kind of attachment: it looks at the descriptors only if it does.
pub(crate) fn has_links() -> io::Result<bool> {
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = u32::MAX;
    attr.link_create.attach_type = bpf_attach_type::BPF_CGROUP_INET4_CONNECT as u32;
    match call(bpf_cmd::BPF_LINK_CREATE, &mut attr) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
        Ok(_) => Ok(true),
    }
}

/// An instruction on register 0 (`struct bpf_insn`).
const fn instruction(code: u8, immediate: i32) -> u64 {
    let i = immediate.to_ne_bytes();
    u64::from_ne_bytes([code, 0, 0, 0, i[0], i[1], i[2], i[3]])
}

fn zeroed() -> bpf_attr {
    // SAFETY: a union of plain numbers, for which zero is a value; the kernel wants unused bytes to be zero.
    unsafe { mem::zeroed() }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn descriptor(number: i64) -> io::Result<OwnedFd> {
    let number = i32::try_from(number).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn call(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the attribute is valid for reads and writes of its whole size, and so is what it points to.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, &raw mut *attr, size_of::<bpf_attr>())
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
