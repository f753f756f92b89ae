//! Maglev tables follow from the backends alone.

use super::*;
use crate::store::dump::dump;

/// A Service that asks for a Maglev table.
fn hashed(name: &str, ip: &str) -> Object {
    Object::Service(Service { algorithm: Some(crate::model::Algorithm::Maglev), ..service(name, ip) })
}

/// The backends that the positions of a Service's table lead to.
fn positions(store: &FakeStore, ip: &str) -> Vec<String> {
    let tables = store.read().unwrap();
    let key = FrontendKey::new(
        ip.parse::<IpAddr>().unwrap().into(),
        lb_common::address::Port::new(80),
        Protocol::Tcp,
    );
    let record = tables.services[&tables.frontends[&key].record];
    let slots = store.maglev(record.maglev).iter();
    slots.map(|slot| tables.backends[slot].socket_address().to_string()).collect()
}

const TABLES: Capacity = Capacity { backends: 256, maglev: 4_200, ..CAPACITY };

#[test]
fn pipelines_with_different_histories_make_the_same_maglev_table() {
    let (mut first, mut store) = (pipeline(TABLES), FakeStore::new(TABLES));
    apply(&mut first, [hashed("a", "10.96.0.1"), slice("a", &[1, 2, 3, 4])]);
    first.sync(&mut store);
    let (mut second, mut other) = (pipeline(TABLES), FakeStore::new(TABLES));
    apply(&mut second, [hashed("b", "10.96.0.2"), slice("b", &[7, 3, 9])]);
    for hosts in [[9, 4].as_slice(), &[4, 1, 7, 9], &[4, 3, 2, 1]] {
        apply(&mut second, [hashed("a", "10.96.0.1"), slice("a", hosts)]);
        second.sync(&mut other);
        second.reclaim(&mut other).unwrap();
    }
    assert!(problems(&second).is_empty(), "{:?}", problems(&second));
    let table = positions(&store, "10.96.0.1");
    assert_eq!(table.len(), 1_021);
    assert_eq!(table, positions(&other, "10.96.0.1"));

    // An agent that comes again knows it.
    let mut third = pipeline(TABLES);
    third.adopt(other.read().unwrap());
    let both = [hashed("a", "10.96.0.1"), slice("a", &[4, 3, 2, 1])];
    apply(&mut third, both.into_iter().chain([hashed("b", "10.96.0.2"), slice("b", &[7, 3, 9])]));
    third.sync(&mut other);
    third.reclaim(&mut other).unwrap();
    assert_eq!(table, positions(&other, "10.96.0.1"));
    assert_eq!(third.actual.positions().used(), 2 * 1_021);
    apply(&mut third, [Object::Service(service("a", "10.96.0.1"))]);
    third.sync(&mut other);
    third.reclaim(&mut other).unwrap();
    assert!(positions(&other, "10.96.0.1").is_empty());
    assert_eq!(third.actual.positions().free(), TABLES.maglev - 1_021);
}

#[test]
fn without_room_for_its_table_a_service_chooses_at_random_until_there_is() {
    let capacity = Capacity { maglev: 1_500, ..TABLES };
    let (mut pipeline, mut store) = (pipeline(capacity), FakeStore::new(capacity));
    apply(&mut pipeline, [hashed("a", "10.96.0.1"), slice("a", &[1, 2])]);
    apply(&mut pipeline, [hashed("b", "10.96.0.2"), slice("b", &[1, 2])]);
    pipeline.sync(&mut store);
    let without = "Service default/b: spec.ports[http]: its backends are chosen at random, without a Maglev table: \
                   map MAGLEV has no 1021 free positions in a row (479 of 1500 are free)";
    assert_eq!(problems(&pipeline), [without]);
    let other = |pipeline: &Pipeline, store: &FakeStore| {
        let text = dump(&store.read().unwrap(), &pipeline.record_names());
        text.lines().find(|line| line.starts_with("10.96.0.2:80")).map(str::to_owned)
    };
    let start = "10.96.0.2:80/TCP ClusterIP default/b:http → cluster";
    let both = format!("{start} [10.0.0.2:8080 10.0.0.3:8080] local [] any-endpoints");
    // What changes meanwhile is in force at once.
    apply(&mut pipeline, [slice("b", &[2, 3])]);
    pipeline.sync(&mut store);
    assert_eq!(other(&pipeline, &store).as_ref(), Some(&both));
    assert_eq!(problems(&pipeline), [without]);
    apply(&mut pipeline, [Object::Service(service("a", "10.96.0.1"))]);
    pipeline.sync(&mut store);
    pipeline.reclaim(&mut store).unwrap();
    pipeline.sync(&mut store);
    assert!(problems(&pipeline).is_empty(), "{:?}", problems(&pipeline));
    assert_eq!(positions(&store, "10.96.0.2").len(), 1_021);
    assert_eq!(other(&pipeline, &store), Some(format!("{both} maglev-outside maglev-sockets")));
}
