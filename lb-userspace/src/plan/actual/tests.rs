use std::net::IpAddr;

use lb_common::{
    address::{Address, Port},
    frontend::FrontendKind,
};

use super::*;
use crate::store::Tables;

const CAPACITY: Capacity = Capacity {
    frontends: 8,
    services: 8,
    backends: 16,
    source_ranges: 8,
    maglev: 1 << 17,
    node_addresses: 4,
};

fn key(host: u8) -> FrontendKey {
    FrontendKey::new(Address::from_v4_bytes([10, 96, 0, host]), Port::new(80), Protocol::Tcp)
}

fn backend(host: u8, id: u32) -> Backend {
    let address = Address::from(IpAddr::from([10, 0, 0, host]));
    Backend { address, port: Port::new(8080), flags: 0, id }
}

fn range(first: u32, count: u32) -> Range {
    Range { first, count }
}

/// Frontends as (host, record), records as (index, id, cluster, local), slots as (slot, host, id).
fn tables(frontends: &[(u8, u32)], records: &[(u32, u32, Range, Range)], slots: &[(u32, u8, u32)]) -> Tables {
    let entry = |(host, record): &(u8, u32)| {
        (key(*host), FrontendEntry::new(&key(*host), FrontendKind::ClusterIp, *record))
    };
    let record = |(index, id, cluster, local): &(u32, u32, Range, Range)| {
        (*index, ServiceRecord::new(*id, Settings::default(), *cluster, *local))
    };
    Tables {
        frontends: frontends.iter().map(entry).collect(),
        services: records.iter().map(record).collect(),
        backends: slots.iter().map(|(slot, host, id)| (*slot, backend(*host, *id))).collect(),
        ..Tables::default()
    }
}

fn cluster_ip(host: u8) -> (FrontendKey, FrontendKind) {
    (key(host), FrontendKind::ClusterIp)
}

fn external_ip(host: u8) -> (FrontendKey, FrontendKind) {
    (key(host), FrontendKind::ExternalIp)
}

#[test]
fn what_frontends_lead_to_is_kept_and_everything_else_waits_for_a_grace_period() {
    let records = [(2, 7, range(4, 2), range(4, 2)), (3, 9, range(8, 1), Range::EMPTY)];
    let slots = [(4, 1, 30), (5, 2, 31), (8, 3, 32)];
    let mut actual = Actual::adopt(CAPACITY, tables(&[(1, 2)], &records, &slots));
    assert_eq!(actual.set(range(4, 2)), [backend(1, 30), backend(2, 31)]);
    assert_eq!((actual.slots().used(), actual.slots().free(), actual.slots().retired()), (2, 0, 14));
    assert_eq!((actual.records().used(), actual.records().free()), (1, 6));
    assert_eq!(actual.ids().len(), 2);
    // Numbers go on above all that were found, used or not.
    assert_eq!(actual.next_service_id(), Some(10));
    // Record 3 is nobody's; it is not the witness any more.
    assert_eq!(actual.free_retired(), Freed { slots: 14, records: vec![3] });
}

#[test]
fn a_service_port_finds_its_record_by_its_cluster_address_or_by_all_frontends_of_the_record() {
    let records = [(0, 1, Range::EMPTY, Range::EMPTY), (1, 2, Range::EMPTY, Range::EMPTY)];
    let mut actual = Actual::adopt(CAPACITY, tables(&[(1, 0), (2, 0), (3, 1), (4, 1)], &records, &[]));
    assert_eq!(actual.awaited_record(&[cluster_ip(1)]), Some(0));
    assert_eq!(actual.awaited_record(&[cluster_ip(9), external_ip(3)]), None, "4 leads there too");
    assert_eq!(actual.awaited_record(&[external_ip(3), external_ip(4)]), Some(1));
    actual.take_over(0);
    assert_eq!(actual.awaited_record(&[cluster_ip(1)]), None);
    actual.end_adoption();
    assert_eq!(actual.awaited_record(&[external_ip(3), external_ip(4)]), None);
}

#[test]
fn a_record_whose_sets_make_no_sense_is_nobodys_but_stays_until_its_frontends_lead_elsewhere() {
    for (cluster, local) in [
        (range(3, 2), Range::EMPTY),  // shares slot 3 with record 0
        (range(15, 2), Range::EMPTY), // beyond the map
        (range(u32::MAX, u32::MAX), Range::EMPTY),
        (range(8, 1), Range::EMPTY), // slot 8 is missing
        (range(6, 2), range(7, 1)),  // its own sets overlap
    ] {
        let records = [(0, 1, range(2, 2), Range::EMPTY), (1, 2, cluster, local)];
        let slots = [(2, 1, 1), (3, 2, 2), (4, 3, 3), (6, 4, 4), (7, 5, 5), (15, 6, 6)];
        let mut actual = Actual::adopt(CAPACITY, tables(&[(1, 0), (2, 1)], &records, &slots));
        assert_eq!(actual.awaited_record(&[cluster_ip(1)]), Some(0));
        assert_eq!(actual.awaited_record(&[cluster_ip(2)]), None, "{cluster:?} {local:?}");
        assert_eq!(actual.slots().used(), 2);
        assert_eq!(actual.records().used(), 2);
        actual.note(&Write::DeleteFrontend { key: key(2) });
        assert_eq!((actual.records().used(), actual.slots().used()), (1, 2));
    }
}

#[test]
fn a_frontend_that_leads_nowhere_can_be_led_somewhere() {
    let mut actual = Actual::adopt(CAPACITY, tables(&[(1, 5), (2, 4_000_000)], &[], &[]));
    assert_eq!(actual.awaited_record(&[cluster_ip(1)]), None);
    let index = actual.reserve_record().unwrap();
    let record = ServiceRecord::new(1, Settings::default(), Range::EMPTY, Range::EMPTY);
    actual.note(&Write::Record { index, record });
    for host in [1, 2] {
        let entry = FrontendEntry::new(&key(host), FrontendKind::ClusterIp, index);
        actual.note(&Write::PutFrontend { key: key(host), entry });
    }
    assert_eq!(actual.record(index).unwrap().frontends, [key(1), key(2)]);
    assert_eq!(actual.frontends(), 2);
}

#[test]
fn a_record_is_retired_only_when_its_last_frontend_has_really_gone() {
    let records = [(0, 1, range(0, 1), Range::EMPTY), (1, 2, Range::EMPTY, Range::EMPTY)];
    let mut actual = Actual::adopt(CAPACITY, tables(&[(1, 0), (2, 0)], &records, &[(0, 1, 1)]));
    actual.take_over(0);
    actual.note(&Write::DeleteFrontend { key: key(1) });
    actual.abandon(0);
    assert_eq!((actual.records().used(), actual.slots().used()), (1, 1));
    actual.note(&Write::DeleteFrontend { key: key(2) });
    assert_eq!((actual.records().used(), actual.slots().used()), (0, 0));
    actual.abandon(0);
    assert_eq!(actual.slots().retired(), 16, "retired once");
}

#[test]
fn the_highest_number_ever_given_keeps_a_witness_while_there_is_another_record() {
    let capacity = Capacity { services: 2, ..CAPACITY };
    let records = [(0, 6, Range::EMPTY, Range::EMPTY)];
    let mut actual = Actual::adopt(capacity, tables(&[(1, 0)], &records, &[]));
    actual.note(&Write::DeleteFrontend { key: key(1) });
    assert_eq!(actual.free_retired().records, [] as [u32; 0]);
    assert!(!actual.has_retired());
    // The last free record is taken: now the witness is needed.
    assert_eq!(actual.reserve_record(), Some(1));
    assert_eq!(actual.reserve_record(), None);
    actual.free_retired();
    assert_eq!(actual.reserve_record(), Some(0));
}
