use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

fn summary(object: &Object) -> String {
    match object {
        Object::Service(service) => {
            let ips: Vec<_> =
                service.cluster_ips.iter().chain(&service.ingress_ips).map(ToString::to_string).collect();
            format!("Service {} {}", service.name, ips.join(" "))
        }
        Object::EndpointSlice(slice) => format!("EndpointSlice {} of {}", slice.name, slice.service),
        Object::Endpoints(name, slices) => format!("Endpoints {name} {}", slices.len()),
        Object::Node(node) => format!("Node {}", node.name),
        Object::ServiceCidr(object) => {
            let networks: Vec<_> = object.networks.iter().map(ToString::to_string).collect();
            format!("ServiceCIDR {} {}", object.name, networks.join(" "))
        }
    }
}

fn check(text: &str, expected: &Expect) {
    check_file("a.yaml", text, expected);
}

fn check_file(file: &str, text: &str, expected: &Expect) {
    let (objects, problems) = objects_from_yaml(text, file, "node-a");
    let lines = objects.iter().map(summary).chain(problems.iter().map(ToString::to_string));
    expected.assert_eq(&lines.collect::<Vec<_>>().join("\n"));
}

#[test]
fn several_documents_with_comments_and_empty_ones() {
    check(
        "\u{feff}# a comment\n%YAML 1.2\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n\
         ---\n# nothing\n---\r\n--- # text after the marker\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-1\n  labels: {kubernetes.io/service-name: web}\naddressType: IPv4\n\
         ...\n--- {apiVersion: v1, kind: Node, metadata: {name: node-a}}\n\
         ---\napiVersion: v1\nkind: Node\nmetadata: {name: node-b}\n",
        &expect![[r#"
            Service default/web 10.96.0.1
            EndpointSlice default/web-1 of web
            Node node-a"#]],
    );
}

#[test]
fn lists_say_what_their_items_are() {
    check(
        "apiVersion: v1\nkind: List\nitems:\n\
         - {apiVersion: v1, kind: Endpoints, metadata: {name: db}, subsets: [{addresses: [{ip: 192.0.2.1}]}]}\n\
         - {metadata: {name: lost}}\n\
         ---\napiVersion: v1\nkind: ServiceList\nitems:\n- {metadata: {name: web}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}\n\
         ---\napiVersion: v1\nkind: List\nitems: []\n",
        &expect![[r#"
            Service default/web 10.96.0.1
            Endpoints default/db 1
            a.yaml: document 1: no apiVersion or no kind; it is ignored"#]],
    );
}

#[test]
fn json_documents_follow_each_other() {
    check_file(
        "a.json",
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}
           {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "b"}, "spec": {"clusterIP": "10.96.0.2", "ports": [{"port": 80}]}}
           {"apiVersion": "v1",, }"#,
        &expect![[r#"
            Service default/a 10.96.0.1
            Service default/b 10.96.0.2
            a.json: document 3, line 3: key must be a string at line 3 column 32"#]],
    );
}

#[test]
fn a_document_that_cannot_be_read_costs_no_other() {
    check(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n\
         ---\nkind: Service\nmetadata: {name: [}\n\
         ---\nkind: Service\nkind: Node\n\
         ---\njust text\n\
         ---\n- 1\n\
         ---\napiVersion: v1\nkind: ''\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}\n",
        &expect![[r#"
            Service default/a 10.96.0.1
            Service default/b 10.96.0.2
            a.yaml: document 2, line 7: mismatched bracket '[' closed by '}' at line 7, column 18
            a.yaml: document 3, line 10: duplicate mapping key `kind` is not allowed here at line 10, column 1
            a.yaml: document 4: no apiVersion or no kind; it is ignored
            a.yaml: document 5: no apiVersion or no kind; it is ignored
            a.yaml: document 6: no apiVersion or no kind; it is ignored"#]],
    );
}

#[test]
fn what_a_watch_would_not_show_is_absent() {
    check(
        "apiVersion: v1\nkind: Service\nmetadata: {name: headless}\nspec: {clusterIP: None}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {name: other, labels: {service.kubernetes.io/service-proxy-name: x}}\nspec: {clusterIP: None}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: h, labels: {service.kubernetes.io/headless: '', kubernetes.io/service-name: headless}}\naddressType: IPv4\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: names, labels: {kubernetes.io/service-name: a}}\naddressType: FQDN\n\
         ---\napiVersion: v1\nkind: Endpoints\nmetadata: {name: lock, annotations: {control-plane.alpha.kubernetes.io/leader: ''}}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {name: alias}\nspec: {type: ExternalName, externalName: example.org}\n",
        &expect!["Service default/alias "],
    );
}

#[test]
fn what_sockeye_does_not_read_and_what_leads_nowhere_is_named() {
    check(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {namespace: shop, name: web}\n\
         ---\napiVersion: v1\nkind: Namespace\n\
         ---\napiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: old}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: stray}\naddressType: IPv4\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.1, ports: [{port: http}]}\n",
        &expect![[r#"
            Service default/web 10.96.0.1
            Deployment shop/web: kind: apps/v1 Deployment is ignored; Sockeye reads v1 Service, Endpoints and Node, discovery.k8s.io/v1 EndpointSlice and networking.k8s.io/v1 ServiceCIDR
            Namespace: kind: v1 Namespace is ignored; Sockeye reads v1 Service, Endpoints and Node, discovery.k8s.io/v1 EndpointSlice and networking.k8s.io/v1 ServiceCIDR
            EndpointSlice default/old: kind: discovery.k8s.io/v1beta1 EndpointSlice is ignored; Sockeye reads v1 Service, Endpoints and Node, discovery.k8s.io/v1 EndpointSlice and networking.k8s.io/v1 ServiceCIDR
            EndpointSlice default/stray: metadata.labels: no kubernetes.io/service-name; the slice belongs to no Service and is ignored
            Service: metadata.name: no name; the object is skipped
            Service default/web: spec.ports[0].port: invalid type: string "http", expected i32; spec.ports[0] is skipped"#]],
    );
}

#[test]
fn networks_of_cluster_addresses_and_services_of_another_proxy_are_read() {
    check(
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: more}\nspec: {cidrs: [10.97.0.0/16, x]}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {name: other, labels: {service.kubernetes.io/service-proxy-name: x}}\nspec: {clusterIP: 10.97.0.1}\n",
        &expect![[r#"
            Service default/other 10.97.0.1
            ServiceCIDR more 10.97.0.0/16
            ServiceCIDR more: spec.cidrs[1]: "x" is not a network; it is skipped
            Service default/other: spec.ports: no port; the Service serves nothing"#]],
    );
}

#[test]
fn an_object_given_twice_counts_once() {
    check(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {namespace: default, name: a}\nspec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}\n",
        &expect![[r#"
            Service default/a 10.96.0.1
            Service default/a: given in a.yaml (document 1) and again in a.yaml (document 2); the first one counts"#]],
    );
}

#[test]
fn addresses_are_handed_out_by_families() {
    let table = [
        ("{}", "V4"),
        ("{clusterIP: ''}", "V4"),
        ("{ipFamilies: [IPv6]}", "V6"),
        ("{ipFamilies: [IPv6, IPv4]}", "V6 V4"),
        ("{ipFamilyPolicy: SingleStack}", "V4"),
        ("{ipFamilyPolicy: PreferDualStack}", "V4 V6"),
        ("{ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6]}", "V6 V4"),
        ("{ipFamilyPolicy: RequireDualStack, clusterIP: 10.96.0.9}", "V4 V6"),
        ("{ipFamilyPolicy: RequireDualStack, clusterIP: 'fd00:10:96::9'}", "V6 V4"),
        ("{clusterIP: 10.96.0.9}", "V4"),
        ("{clusterIP: nonsense}", ""),
        ("{type: ExternalName}", ""),
    ];
    for (spec, expected) in table {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {spec}\n");
        let (objects, _) = objects_from_yaml(&text, "a.yaml", "node-a");
        let [Object::Service(service)] = &objects[..] else { panic!("{objects:?}") };
        let families: Vec<_> = service.cluster_ips.iter().map(|ip| format!("{:?}", Family::of(ip))).collect();
        assert_eq!(families.join(" "), expected, "{spec}");
    }
}

#[test]
fn load_balancers_get_the_address_that_they_ask_for() {
    let service = |spec: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}], {spec}\n"
        )
    };
    check(
        &service(
            "type: LoadBalancer, loadBalancerIP: 203.0.113.1}\nstatus: {loadBalancer: {ingress: [{ip: 203.0.113.2}]}}",
        ),
        &expect!["Service default/a 10.96.0.1 203.0.113.2 203.0.113.1"],
    );
    check(&service("loadBalancerIP: 203.0.113.1}"), &expect!["Service default/a 10.96.0.1"]);
    check(
        &service("type: LoadBalancer, loadBalancerIP: lb}"),
        &expect![[r#"
            Service default/a 10.96.0.1
            Service default/a: spec.loadBalancerIP: "lb" is not the IP address of one machine; it is skipped"#]],
    );
}

#[test]
fn node_ports_are_handed_out_to_those_that_have_them() {
    for (spec, expected) in [
        ("type: NodePort", true),
        ("type: LoadBalancer", true),
        ("type: LoadBalancer, allocateLoadBalancerNodePorts: false", false),
        ("type: ClusterIP", false),
    ] {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{{spec}, ports: [{{port: 80}}]}}\n"
        );
        let (objects, problems) = objects_from_yaml(&text, "a.yaml", "node-a");
        let [Object::Service(service)] = &objects[..] else { panic!("{objects:?}") };
        assert_eq!(service.ports[0].node_port.is_some(), expected, "{spec}");
        assert_eq!(problems, []);
    }
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut lines = vec!["a: &a [x, x, x, x, x, x, x, x, x]".to_owned()];
    for (name, before) in ('b'..='i').zip('a'..) {
        lines.push(format!("{name}: &{name} [{}]", vec![format!("*{before}"); 9].join(", ")));
    }
    let (objects, problems) = objects_from_yaml(&lines.join("\n"), "a.yaml", "node-a");
    assert_eq!((objects.len(), problems.len()), (0, 1));
}

#[test]
fn a_long_document_is_read() {
    let addresses: String = (0..90_000).map(|_| "  - {ip: 192.0.2.1}\n").collect();
    let text = format!(
        "apiVersion: v1\nkind: Endpoints\nmetadata: {name}\nsubsets:\n- addresses:\n{addresses}",
        name = "{name: db}"
    );
    let (objects, problems) = objects_from_yaml(&text, "a.yaml", "node-a");
    let [Object::Endpoints(_, slices)] = &objects[..] else { panic!("{problems:?}") };
    assert_eq!(slices[0].endpoints.len(), 90_000);
}

proptest! {
    #[test]
    fn any_text_is_survived(text in "(---|\\.\\.\\.|%YAML|- |a: |kind: Service|apiVersion: v1|items:|[\\n \\[\\]{},\"'&*!|>#é\t0-9])*") {
        for file in ["a.yaml", "a.json"] {
            objects_from_yaml(&text, file, "node-a");
        }
    }

    #[test]
    fn every_line_belongs_to_one_document(lines in prop::collection::vec("(---|--- x|# c|%YAML 1.2|a: 1|)", 0..12)) {
        let text = lines.join("\n");
        let documents = documents(&text);
        let content = |line: &&str| line.ends_with(['x', '1']);
        let found = documents.iter().flat_map(|(_, document)| document.lines()).filter(content).count();
        prop_assert_eq!(lines.iter().map(String::as_str).filter(content).count(), found);
        for (first_line, document) in documents {
            prop_assert_eq!(document.lines().next().unwrap_or_default(), &lines[first_line - 1]);
        }
    }
}
