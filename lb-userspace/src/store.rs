//! Where the tables are written: the one seam between the pure pipeline and the kernel.

pub mod checked;
pub mod dump;
pub mod fake;
pub mod faulty;
pub mod kernel;

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    address::Address,
    backend::Backend,
    config::NodeAddress,
    frontend::{FrontendEntry, FrontendKey},
    prefix::Prefix,
    service::{Range, ServiceRecord, Set, Settings},
};

/// One write. Each is idempotent, and each is atomic for the programs that read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Fills free slots. No range that a program can load leads to them yet.
    Slots {
        /// The first slot.
        first: u32,
        /// The backends of consecutive slots, sorted by id.
        backends: Vec<Backend>,
    },
    /// Fills free positions of `MAGLEV`. No record leads to them yet.
    MaglevTable {
        /// The first position.
        first: u32,
        /// The slots that consecutive positions lead to.
        slots: Vec<u32>,
    },
    /// Fills a free record. No frontend leads to it yet.
    Record {
        /// Index in `SERVICES`.
        index: u32,
        /// The whole record.
        record: ServiceRecord,
    },
    /// Switches a set: one eight-byte store.
    Range {
        /// Index in `SERVICES`.
        index: u32,
        /// Which set.
        set: Set,
        /// The new range.
        range: Range,
    },
    /// Switches a Maglev table: one eight-byte store. It is the table of the cluster set that is in force.
    MaglevRange {
        /// Index in `SERVICES`.
        index: u32,
        /// The new range.
        range: Range,
    },
    /// Changes the policies: one eight-byte store.
    Settings {
        /// Index in `SERVICES`.
        index: u32,
        /// The new settings.
        settings: Settings,
    },
    /// Makes a frontend visible, or hands it to another record.
    PutFrontend {
        /// The frontend.
        key: FrontendKey,
        /// What it leads to.
        entry: FrontendEntry,
    },
    /// Removes a frontend; one that is not there is fine.
    DeleteFrontend {
        /// The frontend.
        key: FrontendKey,
    },
    /// Adds a source range to a record's; one that is there is fine.
    PutSourceRange {
        /// Index in `SERVICES`.
        record: u32,
        /// The range.
        prefix: Prefix,
    },
    /// Removes a source range of a record; one that is not there is fine.
    DeleteSourceRange {
        /// Index in `SERVICES`.
        record: u32,
        /// The range.
        prefix: Prefix,
    },
    /// Lets everything that goes to a cluster address pass: another proxy serves it.
    PutForeign {
        /// The address.
        address: Address,
    },
    /// Forgets such an address; one that is not there is fine.
    DeleteForeign {
        /// The address.
        address: Address,
    },
    /// Replaces the networks that cluster addresses come from. What goes there and is no frontend is refused.
    ServiceCidrs {
        /// As many as programs compare with, at most.
        networks: Vec<Prefix>,
    },
    /// Makes an address one of the node's.
    PutNodeAddress {
        /// The address.
        address: Address,
        /// What it serves.
        value: NodeAddress,
    },
    /// Removes an address of the node; one that is not there is fine.
    DeleteNodeAddress {
        /// The address.
        address: Address,
    },
    /// Waits until every program that runs now has ended: what no table leads to any more is free afterwards.
    Grace,
}

/// What the tables hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// `FRONTENDS`, but the addresses that another proxy serves.
    pub frontends: BTreeMap<FrontendKey, FrontendEntry>,
    /// `FRONTENDS`: the addresses that another proxy serves.
    pub foreign: BTreeSet<Address>,
    /// The records of `SERVICES` that are in use (`service_id` not zero).
    pub services: BTreeMap<u32, ServiceRecord>,
    /// The slots of `BACKENDS` that a range of these records leads to.
    pub backends: BTreeMap<u32, Backend>,
    /// The Maglev tables of these records: first position → the slots that its positions lead to.
    pub maglev: BTreeMap<u32, Vec<u32>>,
    /// `SOURCE_RANGES`, by record; none is empty.
    pub source_ranges: BTreeMap<u32, BTreeSet<Prefix>>,
    /// `SERVICE_CIDRS`.
    pub service_cidrs: Vec<Prefix>,
    /// `NODE_ADDRESSES`.
    pub node_addresses: BTreeMap<Address, NodeAddress>,
}

/// How much fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Entries of `FRONTENDS`.
    pub frontends: u32,
    /// Elements of `SERVICES`.
    pub services: u32,
    /// Elements of `BACKENDS`.
    pub backends: u32,
    /// Elements of `MAGLEV`.
    pub maglev: u32,
    /// Entries of `SOURCE_RANGES`.
    pub source_ranges: u32,
    /// Entries of `NODE_ADDRESSES`.
    pub node_addresses: u32,
}

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A hash map has no room (`E2BIG`); what is in it stays.
    #[error("map {map} is full")]
    Full {
        /// The map's name.
        map: &'static str,
    },
    /// A slot or record beyond the map's size: a defect in the plan.
    #[error("map {map} has no element {index}")]
    OutOfBounds {
        /// The map's name.
        map: &'static str,
        /// The index.
        index: u32,
    },
    /// The kernel refused; worth another try.
    #[error("{operation} on map {map}")]
    Kernel {
        /// The map's name.
        map: &'static str,
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

/// The tables. Writes happen in the order of the calls, one at a time.
pub trait Store {
    /// How much fits.
    fn capacity(&self) -> Capacity;
    /// Performs one write. After an error nothing has changed.
    fn apply(&mut self, write: &Write) -> Result<(), StoreError>;
    /// Reads back what the tables hold, for instance after a restart.
    fn read(&self) -> Result<Tables, StoreError>;
}
