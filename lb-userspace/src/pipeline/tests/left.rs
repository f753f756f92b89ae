//! Which backends have left a UDP service port, and which node ports there are.

use lb_common::address::Port;

use super::*;

/// The UDP twin of [`service`] and [`slice`].
fn udp(mut object: Object) -> Object {
    match &mut object {
        Object::Service(service) => service.ports[0].protocol = Protocol::Udp,
        Object::EndpointSlice(slice) => slice.ports[0].protocol = Protocol::Udp,
        Object::Endpoints(..) | Object::Node(_) | Object::ServiceCidr(_) => {}
    }
    object
}

fn backend(host: u8) -> SocketAddress {
    SocketAddress::new(IpAddr::from([10, 0, 0, host]).into(), Port::new(8080))
}

/// A pipeline that serves a UDP Service `a`, number 1, with these backends.
fn udp_pipeline(hosts: &[u8]) -> (Pipeline, FakeStore) {
    let (mut pipeline, mut store) = (pipeline(CAPACITY), FakeStore::new(CAPACITY));
    apply(&mut pipeline, [udp(Object::Service(service("a", "10.96.0.1"))), udp(slice("a", hosts))]);
    let report = pipeline.sync(&mut store);
    assert_eq!((report.left, report.dirty), (0, 0));
    (pipeline, store)
}

#[test]
fn a_backend_has_left_once_it_serves_no_longer() {
    let (mut pipeline, mut store) = udp_pipeline(&[2, 3, 4]);
    apply(&mut pipeline, [udp(slice("a", &[2, 5]))]);
    assert!(pipeline.is_serving(1, &backend(3)), "it is in force until the next sync");
    assert_eq!(pipeline.sync(&mut store).left, 2);
    let serving = [2, 3, 4, 5].map(|host| pipeline.is_serving(1, &backend(host)));
    assert_eq!(serving, [true, false, false, true]);
    assert!(!pipeline.is_serving(2, &backend(2)), "another service port");
    assert_eq!(pipeline.sync(&mut store).left, 0, "it is told once");
}

#[test]
fn whoever_serves_has_not_left_whatever_policy_hints_and_termination_say() {
    type Alter = fn(&mut EndpointSlice);
    let serving: Alter = |slice| {
        slice.endpoints[0].conditions = Conditions { ready: false, serving: true, terminating: true };
    };
    for (alter, expected) in [
        ((|slice| slice.endpoints[0].zone_hints = vec!["elsewhere".into()]) as Alter, 0),
        (|slice| slice.endpoints[0].node = Some("node-9".into()), 0),
        (serving, 0),
        (|slice| slice.endpoints[0].conditions.ready = false, 1),
        (|slice| drop(slice.endpoints.remove(0)), 1),
        (|slice| slice.endpoints.clear(), 2),
        (|slice| slice.ports[0].port = 9090, 2),
        (|slice| slice.ports.clear(), 2),
    ] {
        let (mut pipeline, mut store) = udp_pipeline(&[2, 3]);
        let mut changed = udp(slice("a", &[2, 3]));
        if let Object::EndpointSlice(slice) = &mut changed {
            alter(slice);
        }
        apply(&mut pipeline, [changed.clone()]);
        assert_eq!(pipeline.sync(&mut store).left, expected, "{changed:?}");
    }
    let (mut pipeline, mut store) = udp_pipeline(&[2, 3]);
    let local = Service { internal_policy: TrafficPolicy::Local, ..service("a", "10.96.0.1") };
    apply(&mut pipeline, [udp(Object::Service(local))]);
    assert_eq!(pipeline.sync(&mut store).left, 0);
}

#[test]
fn an_endpoint_that_moves_between_slices_has_not_left() {
    let (mut pipeline, mut store) = udp_pipeline(&[2, 3]);
    let mut other = udp(slice("a", &[3]));
    if let Object::EndpointSlice(slice) = &mut other {
        slice.name = ObjectName::new("default", "a-2");
    }
    apply(&mut pipeline, [udp(slice("a", &[2])), other]);
    assert_eq!(pipeline.sync(&mut store).left, 0);
    pipeline.apply(Change::Delete(Kind::EndpointSlice, ObjectName::new("default", "a-2")));
    assert_eq!(pipeline.sync(&mut store).left, 1);
}

#[test]
fn all_backends_leave_a_service_that_goes_and_none_a_tcp_service() {
    let (mut pipeline, mut store) = udp_pipeline(&[2, 3]);
    apply(&mut pipeline, [Object::Service(service("b", "10.96.0.2")), slice("b", &[2, 3])]);
    pipeline.sync(&mut store);
    pipeline.apply(Change::Delete(Kind::Service, ObjectName::new("default", "b")));
    assert_eq!(pipeline.sync(&mut store).left, 0);
    pipeline.apply(Change::Delete(Kind::Service, ObjectName::new("default", "a")));
    assert_eq!(pipeline.sync(&mut store).left, 2);
    assert!(!pipeline.is_serving(1, &backend(2)));
}

#[test]
fn a_backend_has_not_left_before_the_write_that_takes_it_out_has_succeeded() {
    let (mut pipeline, store) = udp_pipeline(&[2, 3]);
    let mut store = FaultyStore::new(store, 0, 7);
    apply(&mut pipeline, [udp(slice("a", &[2]))]);
    store.set_percent(100);
    let report = pipeline.sync(&mut store);
    assert_eq!((report.left, report.dirty), (0, 1));
    assert!(pipeline.is_serving(1, &backend(3)));
    store.set_percent(0);
    assert_eq!(pipeline.sync(&mut store).left, 1);
}

#[test]
fn after_a_restart_what_serves_is_known_and_what_left_meanwhile_is_not() {
    let (_, mut store) = udp_pipeline(&[2, 3]);
    let mut successor = pipeline(CAPACITY);
    successor.adopt(store.read().unwrap());
    apply(&mut successor, [udp(Object::Service(service("a", "10.96.0.1"))), udp(slice("a", &[3, 4]))]);
    successor.sync(&mut store);
    let serving = [2, 3, 4].map(|host| successor.is_serving(1, &backend(host)));
    assert_eq!(serving, [false, true, true]);
}

#[test]
fn node_ports_in_force_are_told_with_their_service_and_their_changes_noticed() {
    let (mut pipeline, mut store) = (pipeline(CAPACITY), FakeStore::new(CAPACITY));
    let mut web = Service { service_type: ServiceType::NodePort, ..service("web", "10.96.0.1") };
    web.ports[0].node_port = Some(30080);
    apply(&mut pipeline, [Object::Service(web), slice("web", &[2])]);
    assert!(pipeline.sync(&mut store).node_ports);
    let NodePorts { ports, .. } = pipeline.node_ports();
    let told: Vec<_> = ports.iter().map(|(key, port)| (key.port().number(), port.clone())).collect();
    let expected = NodePort { service: "default/web".to_owned(), port: "http".to_owned() };
    assert_eq!(told, [(30080, expected)]);
    apply(&mut pipeline, [slice("web", &[2, 3])]);
    assert!(!pipeline.sync(&mut store).node_ports);
    apply(&mut pipeline, [Object::Service(service("web", "10.96.0.1"))]);
    assert!(pipeline.sync(&mut store).node_ports);
    assert!(pipeline.node_ports().ports.is_empty());
}
