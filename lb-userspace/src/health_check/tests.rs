use super::*;

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

/// A Service with so many endpoints here, at a port; port 0: without a health check.
fn service(service: &str, created: Option<i64>, port: u16, v4: u32) -> HealthCheckChange {
    let check = HealthCheck { port, local_endpoints: LocalEndpoints { v4: Some(v4), v6: None } };
    HealthCheckChange::Service { name: name(service), created, check: (port != 0).then_some(check) }
}

fn addresses(list: &[&str]) -> HealthCheckChange {
    HealthCheckChange::Addresses(list.iter().map(|ip| ip.parse().unwrap()).collect())
}

fn sockets(checks: &HealthChecks) -> Vec<String> {
    checks.sockets().iter().map(ToString::to_string).collect()
}

fn owner(checks: &HealthChecks, socket: &str) -> Option<(String, u32)> {
    checks.at(&socket.parse().unwrap()).map(|(name, count)| (name.to_string(), count))
}

fn lines(checks: &HealthChecks, failures: &BTreeMap<SocketAddr, String>) -> Vec<String> {
    checks.problems(failures).iter().map(ToString::to_string).collect()
}

#[test]
fn every_port_answers_at_every_address() {
    let mut checks = HealthChecks::default();
    assert!(checks.apply(service("web", None, 32_000, 1)));
    assert!(sockets(&checks).is_empty(), "no address yet");
    assert!(checks.apply(addresses(&["192.0.2.1", "2001:db8::1"])));
    assert!(checks.apply(service("api", None, 32_001, 2)));
    let all = ["192.0.2.1:32000", "192.0.2.1:32001", "[2001:db8::1]:32000", "[2001:db8::1]:32001"];
    assert_eq!(sockets(&checks), all);
    assert_eq!(owner(&checks, "192.0.2.1:32001"), Some(("default/api".to_owned(), 2)));
    assert_eq!(owner(&checks, "[2001:db8::1]:32000"), Some(("default/web".to_owned(), 1)));
    assert_eq!(owner(&checks, "192.0.2.1:32002"), None);
    assert!(checks.apply(addresses(&["192.0.2.1"])));
    assert_eq!(sockets(&checks), all[..2]);
}

#[test]
fn only_a_change_of_who_listens_where_is_told() {
    let mut checks = HealthChecks::default();
    assert!(checks.apply(addresses(&["192.0.2.1"])));
    assert!(!checks.apply(addresses(&["192.0.2.1"])));
    assert!(checks.apply(service("web", Some(1), 32_000, 1)));
    assert!(!checks.apply(service("web", Some(1), 32_000, 5)), "only the answer differs");
    assert_eq!(owner(&checks, "192.0.2.1:32000"), Some(("default/web".to_owned(), 5)));
    assert!(checks.apply(service("web", Some(1), 32_007, 5)));
    assert_eq!(sockets(&checks), ["192.0.2.1:32007"], "the port before is given up");
    assert!(checks.apply(service("web", Some(2), 32_007, 5)), "made anew");
    assert!(checks.apply(service("web", Some(2), 0, 0)));
    assert!(!checks.apply(service("web", Some(2), 0, 0)));
    let nothing = HealthChecks { addresses: checks.addresses.clone(), ..HealthChecks::default() };
    assert_eq!(checks, nothing, "nothing is left of it");
}

#[test]
fn of_two_services_the_older_has_the_port_and_the_other_takes_over() {
    let mut checks = HealthChecks::default();
    checks.apply(addresses(&["192.0.2.1"]));
    for change in [
        service("timeless", None, 32_000, 1),
        service("young", Some(20), 32_000, 2),
        service("old-b", Some(10), 32_000, 3),
        service("old-a", Some(10), 32_000, 4),
    ] {
        checks.apply(change);
    }
    for (winner, count, losers) in [
        ("old-a", 4, ["old-b", "young", "timeless"].as_slice()),
        ("old-b", 3, &["young", "timeless"]),
        ("young", 2, &["timeless"]),
        ("timeless", 1, &[]),
    ] {
        assert_eq!(owner(&checks, "192.0.2.1:32000"), Some((format!("default/{winner}"), count)));
        let lines = lines(&checks, &BTreeMap::new());
        assert_eq!(lines.len(), losers.len());
        for (line, loser) in lines.iter().zip(losers) {
            let start =
                format!("Service default/{loser}: {FIELD}: 32000 belongs to Service default/{winner}, ");
            assert!(line.starts_with(&start), "{line}");
        }
        checks.apply(service(winner, None, 0, 0));
    }
    assert!(sockets(&checks).is_empty());
}

#[test]
fn a_socket_that_cannot_be_listened_on_is_a_problem_of_its_service() {
    let mut checks = HealthChecks::default();
    checks.apply(addresses(&["192.0.2.1"]));
    checks.apply(service("web", None, 32_000, 1));
    let failures = ["192.0.2.1:32000", "192.0.2.1:32001"]
        .map(|socket| (socket.parse().unwrap(), "Address already in use".to_owned()));
    assert_eq!(
        lines(&checks, &failures.into()),
        [
            "Service default/web: spec.healthCheckNodePort: cannot listen on 192.0.2.1:32000: Address already in use; trying again"
        ],
        "nobody has the other"
    );
}
