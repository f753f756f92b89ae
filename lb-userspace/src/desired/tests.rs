use lb_common::address::{Address, Port as PortNumber, Protocol};

use super::*;
use crate::model::Family;

fn key(host: u8) -> FrontendKey {
    FrontendKey::new(Address::from_v4_bytes([10, 96, 0, host]), PortNumber::new(80), Protocol::Tcp)
}

fn spec(name: &str, hosts: &[u8]) -> PortSpec {
    PortSpec {
        name: name.into(),
        protocol: Protocol::Tcp,
        family: Family::V4,
        frontends: hosts.iter().map(|host| (key(*host), FrontendKind::ClusterIp)).collect(),
    }
}

/// Sets a Service named by its number; what it means for the others.
fn set(
    desired: &mut Desired,
    service: ServiceIndex,
    created: Option<i64>,
    specs: Vec<PortSpec>,
) -> (Vec<ServiceIndex>, Vec<FrontendKey>) {
    let mut effects = Effects::default();
    let name = ObjectName::new("default", format!("service-{service}"));
    desired.set_service(service, &name, created, specs, &mut effects);
    (effects.services, effects.given_up)
}

fn owner(desired: &Desired, host: u8) -> Option<ServiceIndex> {
    desired.winner(&key(host)).map(|port| desired.port(port).service)
}

#[test]
fn the_older_wins_then_the_name_and_age_comes_before_none() {
    let mut desired = Desired::default();
    assert_eq!(set(&mut desired, 2, None, vec![spec("", &[1])]), (vec![], vec![]));
    assert_eq!(set(&mut desired, 1, None, vec![spec("", &[1])]).0, [2], "by name");
    assert_eq!(set(&mut desired, 5, Some(20), vec![spec("", &[1])]).0, [1], "one with age");
    assert_eq!(set(&mut desired, 6, Some(10), vec![spec("", &[1])]).0, [5], "the older");
    assert_eq!(set(&mut desired, 7, Some(15), vec![spec("", &[1])]).0, [] as [usize; 0]);
    assert_eq!(owner(&desired, 1), Some(6));
    assert_eq!(desired.contested().count(), 1);
    assert_eq!(set(&mut desired, 6, None, Vec::new()).0, [7], "the next takes over");
    assert_eq!(owner(&desired, 1), Some(7));
}

#[test]
fn a_service_that_is_created_again_has_a_new_rank() {
    let mut desired = Desired::default();
    set(&mut desired, 0, Some(10), vec![spec("", &[1])]);
    set(&mut desired, 1, Some(20), vec![spec("", &[1])]);
    assert_eq!(owner(&desired, 1), Some(0));
    set(&mut desired, 0, Some(30), vec![spec("", &[1])]);
    assert_eq!(owner(&desired, 1), Some(1));
}

#[test]
fn ports_keep_their_number_and_record_through_every_change_of_the_service() {
    let mut desired = Desired::default();
    set(&mut desired, 0, None, vec![spec("a", &[1]), spec("b", &[2])]);
    let [a, b] = desired.ports_of(0) else { panic!() };
    let (a, b) = (*a, *b);
    desired.port_mut(a).service_id = 7;
    desired.port_mut(a).record = Some(3);
    desired.port_mut(b).record = Some(4);

    let (_, given_up) = set(&mut desired, 0, None, vec![spec("c", &[3]), spec("a", &[1, 5])]);
    assert_eq!(given_up, [key(1), key(2)], "perhaps claimed again: who deletes, asks for the winner");
    assert_eq!(desired.ports_of(0).iter().position(|port| *port == a), Some(1));
    assert_eq!((desired.port(a).service_id, desired.port(a).record), (7, Some(3)));
    assert_eq!(owner(&desired, 1), Some(0));
    assert_eq!(owner(&desired, 2), None);

    let mut effects = Effects::default();
    desired.set_service(0, &ObjectName::new("default", "service-0"), None, Vec::new(), &mut effects);
    assert_eq!(effects.records, [3]);
    assert!(desired.ports_of(0).is_empty());
}

#[test]
fn a_port_has_those_of_its_frontends_that_nobody_older_has() {
    let mut desired = Desired::default();
    set(&mut desired, 0, Some(20), vec![spec("", &[1, 2])]);
    set(&mut desired, 1, Some(10), vec![spec("", &[2, 3])]);
    let frontends = |desired: &Desired, service| {
        let port = desired.ports_of(service)[0];
        desired.frontends_of(port).into_iter().map(|(key, _)| key).collect::<Vec<_>>()
    };
    assert_eq!(frontends(&desired, 0), [key(1)]);
    assert_eq!(frontends(&desired, 1), [key(2), key(3)]);
}

#[test]
fn an_equal_service_means_nothing_to_anybody() {
    let mut desired = Desired::default();
    set(&mut desired, 0, Some(20), vec![spec("", &[1])]);
    set(&mut desired, 1, Some(10), vec![spec("", &[1])]);
    assert_eq!(set(&mut desired, 1, Some(10), vec![spec("", &[1])]), (vec![], vec![]));
    assert_eq!(set(&mut desired, 9, None, Vec::new()), (vec![], vec![]));
}
