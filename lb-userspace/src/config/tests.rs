use clap::Parser;

use super::*;

#[derive(Parser)]
struct Run {
    #[command(flatten)]
    flags: RunFlags,
}

#[derive(Parser)]
struct Load {
    #[command(flatten)]
    flags: LoadFlags,
}

fn machine() -> Machine {
    Machine {
        hostname: Some("Worker-7\n".to_owned()),
        mounts: "24 30 0:22 / /proc rw - proc proc rw\n\
                 30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - tmpfs cgroup rw\n\
                 31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 cgroup2 rw,nsdelegate\n"
            .to_owned(),
        in_cluster: false,
        kubeconfig: None,
    }
}

fn resolve(arguments: &str, machine: &Machine) -> Result<Config, String> {
    let words = std::iter::once("sockeye").chain(arguments.split_whitespace());
    let run = Run::try_parse_from(words).map_err(|error| error.to_string())?;
    run.flags.resolve(machine).map_err(|error| error.to_string())
}

fn resolved(arguments: &str) -> Config {
    resolve(arguments, &machine()).unwrap()
}

#[test]
fn defaults_come_from_the_machine() {
    let config = resolved("--manifests examples");
    assert_eq!(config.node_name, "worker-7");
    assert_eq!(config.datapath.cgroup, Path::new("/sys/fs/cgroup/unified"));
    assert_eq!(config.datapath.devices, DeviceChoice::Auto);
    assert!(config.external_ips);
    assert_eq!(config.node_port_addresses, NodePortAddresses::default());
    assert_eq!(config.datapath.snat_ports, PortRange { first: 61000, last: 65535 });
    assert_eq!(config.datapath.lifetimes, Lifetimes::DEFAULT);
    assert_eq!(
        config.instance,
        Instance { bpffs: DEFAULT_BPFFS.into(), socket: "/run/sockeye/agent.sock".into() }
    );
    assert_eq!(
        config.source,
        SourceConfig::Folder { directory: "examples".into(), service_cidrs: Vec::new() }
    );
}

#[test]
fn flags_win_over_the_machine() {
    let config = resolved(
        "--kubeconfig admin.conf --context kind --legacy-endpoints --node-name N1 --cgroup /cg --devices eth*,ens[0-9] \
         --bpffs /sys/fs/bpf/two/ --nodeport-addresses all,10.0.0.0/8 --node-ip 192.0.2.1,2001:db8::1 \
         --cluster-cidr 10.244.0.0/16,fd00:244::/56 --external-ips=false --max-backends 100 --snat-ports 40000-40010 \
         --tcp-idle 1h --tcp-half-open 30s --tcp-closed 2s --udp-idle 1m30s --log debug --log-format json",
    );
    assert_eq!(config.node_name, "n1");
    assert_eq!(
        config.source,
        SourceConfig::Cluster {
            kubeconfig: Some("admin.conf".into()),
            context: Some("kind".to_owned()),
            legacy_endpoints: true
        }
    );
    let DeviceChoice::Named(patterns) = config.datapath.devices else { panic!("no patterns") };
    let matched = |name| patterns.iter().any(|pattern| pattern.matches(name));
    assert_eq!(["eth12", "ens3", "ens33"].map(matched), [true, true, false]);
    assert_eq!(config.instance.bpffs, Path::new("/sys/fs/bpf/two"));
    assert_eq!(config.instance.socket, Path::new("/run/sockeye/sys-fs-bpf-two.sock"));
    assert_eq!(config.node_ips.v4, Some(Ipv4Addr::new(192, 0, 2, 1)));
    assert_eq!(config.node_ips.v6, Some("2001:db8::1".parse().unwrap()));
    assert!(!config.external_ips);
    assert_eq!(config.datapath.capacities.backends, 100);
    assert_eq!(config.datapath.snat_ports, PortRange { first: 40000, last: 40010 });
    let lifetimes = Lifetimes { tcp_idle: 3600, tcp_half_open: 30, tcp_closed: 2, udp_idle: 90 };
    assert_eq!(config.datapath.lifetimes, lifetimes);
    assert_eq!(
        config.datapath.cluster_cidrs,
        ["10.244.0.0/16", "fd00:244::/56"].map(|cidr| cidr.parse().unwrap())
    );
    assert_eq!(config.log, LogConfig { filter: "debug".to_owned(), format: LogFormat::Json });
    assert_eq!(config.node_port_addresses.to_string(), "all,10.0.0.0/8");
}

#[test]
fn devices_are_found_named_or_none() {
    for (arguments, expected) in [
        ("", "auto"),
        ("--devices auto", "auto"),
        ("--devices none", "none"),
        ("--devices eth0,ens*", "eth0,ens*"),
    ] {
        let config = resolved(&format!("--manifests m {arguments}"));
        assert_eq!(config.datapath.devices.to_string(), expected);
    }
}

#[test]
fn external_ips_is_a_switch_with_a_value() {
    assert!(resolved("--manifests m --external-ips").external_ips);
    assert!(resolved("--manifests m --external-ips=true").external_ips);
    assert!(!resolved("--manifests m --external-ips=false").external_ips);
}

#[test]
fn the_source_is_the_first_that_there_is() {
    let cluster = |kubeconfig: Option<&str>, context: Option<&str>| SourceConfig::Cluster {
        kubeconfig: kubeconfig.map(PathBuf::from),
        context: context.map(str::to_owned),
        legacy_endpoints: false,
    };
    let pod = Machine { in_cluster: true, ..machine() };
    let user = Machine { kubeconfig: Some("user.conf".into()), ..machine() };
    let both = Machine { in_cluster: true, ..user.clone() };
    for (arguments, machine, expected) in [
        ("--kubeconfig a.conf", &both, cluster(Some("a.conf"), None)),
        ("", &both, cluster(None, None)),
        ("", &pod, cluster(None, None)),
        ("", &user, cluster(Some("user.conf"), None)),
        ("--context kind", &both, cluster(Some("user.conf"), Some("kind"))),
    ] {
        assert_eq!(resolve(arguments, machine).unwrap().source, expected, "{arguments:?}");
    }
}

#[test]
fn each_bad_flag_says_what_is_wrong() {
    for (arguments, expected) in [
        ("", "no source: give --manifests DIR or --kubeconfig FILE"),
        ("--context kind", "--context needs --kubeconfig"),
        ("--manifests m --kubeconfig k", "--manifests and --kubeconfig exclude each other"),
        ("--manifests m --context c", "--manifests and --context exclude each other"),
        ("--kubeconfig k --service-cidr 10.0.0.0/8", "--service-cidr needs --manifests"),
        ("--manifests m --service-cidr 10.0.0.0", "--service-cidr"),
        ("--manifests m --service-cidr 10.0.0.0/16,10.1.0.0/16", "at most one network a family"),
        (
            "--manifests m --cluster-cidr 10.244.0.0/16,10.1.0.0/16",
            "--cluster-cidr 10.244.0.0/16,10.1.0.0/16: give at most one network a family",
        ),
        ("--manifests m --cluster-cidr ::/0", "--cluster-cidr ::/0: a network of all addresses"),
        ("--manifests m --node-ip 1.2.3", "invalid value '1.2.3' for '--node-ip"),
        (
            "--manifests m --node-ip 127.0.0.1",
            "--node-ip 127.0.0.1: give an address that other machines reach",
        ),
        ("--manifests m --node-ip ::", "--node-ip ::"),
        (
            "--manifests m --node-ip 10.0.0.1,10.0.0.2",
            "--node-ip 10.0.0.2: give at most one address a family",
        ),
        (
            "--manifests m --nodeport-addresses primary,eth0",
            "\"eth0\" is neither primary, localhost, all nor a CIDR",
        ),
        ("--manifests m --external-ips=perhaps", "invalid value 'perhaps' for '--external-ips"),
        ("--manifests m --devices eth/0", "a device's name has no slash"),
        ("--manifests m --devices eth[", "invalid value 'eth[' for '--devices"),
        ("--manifests m --devices eth0,", "an empty name"),
        ("--manifests m --devices auto,eth1", "auto and none stand alone"),
        ("--manifests m --bpffs sockeye", "--bpffs sockeye: give an absolute path below a mounted bpffs"),
        ("--manifests m --bpffs /", "--bpffs /: give an absolute path"),
        ("--manifests m --bpffs /sys/fs/bpf/../x", "give an absolute path"),
        ("--manifests m --max-backends 0", "0 is not in 1..=16777216"),
        ("--manifests m --max-services 16777217", "16777217 is not in 1..=16777216"),
        ("--manifests m --max-frontends many", "invalid digit"),
        ("--manifests m --max-flows -1", "unexpected argument '-1'"),
        ("--manifests m --tcp-idle soon", "invalid value 'soon' for '--tcp-idle <TIME>'"),
        ("--manifests m --tcp-closed 1s", "give a time from 2s to 30d"),
        ("--manifests m --tcp-half-open 31d", "give a time from 2s to 30d"),
        ("--manifests m --udp-idle 2500ms", "give whole seconds"),
        ("--manifests m --snat-ports 61000", "give two ports"),
        ("--manifests m --snat-ports 65535-61000", "65535 is above 61000"),
        ("--manifests m --snat-ports 80-90", "80 is below 1024"),
        ("--manifests m --snat-ports 61000-70000", "\"70000\" is no port"),
        ("--manifests m --log info,,=", "--log info,,=:"),
        ("--manifests m --log-format yaml", "possible values: text, json"),
        ("--manifests m --what", "unexpected argument '--what'"),
    ] {
        let message = resolve(arguments, &machine()).expect_err(arguments);
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
}

#[test]
fn a_socket_path_must_fit() {
    let deep = format!("--manifests m --bpffs /sys/fs/bpf/{}", "x".repeat(100));
    let message = resolve(&deep, &machine()).unwrap_err();
    assert!(message.contains("at most 107 bytes"), "{message}");
    let short = format!("{deep} --socket /run/s.sock");
    assert_eq!(resolved(&short).instance.socket, Path::new("/run/s.sock"));
}

#[test]
fn without_host_name_or_cgroup_it_says_what_to_give() {
    let bare = Machine::default();
    assert_eq!(
        resolve("--manifests m", &bare).unwrap_err(),
        "no node name: give --node-name NAME or set NODE_NAME, since the machine has no host name"
    );
    assert_eq!(
        resolve("--manifests m --node-name n", &bare).unwrap_err(),
        "no cgroup v2 is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup) or give --cgroup PATH"
    );
    assert!(resolve("--manifests m --node-name n --cgroup /cg", &bare).is_ok());
}

#[test]
fn the_cgroup_root_is_the_hosts() {
    let root = |mounts: &str| Machine { mounts: mounts.to_owned(), ..Machine::default() }.cgroup_root();
    for (what, mounts, expected) in [
        ("none", "24 30 0:22 / /proc rw - proc proc rw\n", None),
        (
            "the usual place wins",
            "1 0 0:1 / /mnt/cg rw - cgroup2 c rw\n2 0 0:1 / /sys/fs/cgroup rw - cgroup2 c rw\n",
            Some("/sys/fs/cgroup"),
        ),
        (
            "a part of the tree is not its root",
            "1 0 0:1 /kubepods/pod1 /sys/fs/cgroup rw - cgroup2 c rw\n2 0 0:1 / /host/cg rw - cgroup2 c rw\n",
            Some("/host/cg"),
        ),
        (
            "in a cgroup namespace, the host's root is above",
            "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 c rw\n2 0 0:1 /../../.. /host/cg rw - cgroup2 c rw\n",
            Some("/host/cg"),
        ),
        ("a space is escaped", "1 0 0:1 / /my\\040cg rw - cgroup2 c rw\n", Some("/my cg")),
    ] {
        assert_eq!(root(mounts), expected.map(PathBuf::from), "{what}");
    }
}

#[test]
fn a_cgroup_has_its_depth_below_its_mount() {
    let machine = Machine {
        mounts:
            "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 c rw\n2 0 0:1 / /sys/fs/cgroup/unified rw - cgroup2 c rw\n"
                .to_owned(),
        ..Machine::default()
    };
    for (path, level) in [
        ("/sys/fs/cgroup", 0),
        ("/sys/fs/cgroup/system.slice", 1),
        ("/sys/fs/cgroup/unified", 0),
        ("/sys/fs/cgroup/unified/test/node", 2),
        ("/elsewhere/a/b", 0),
    ] {
        assert_eq!(machine.cgroup_level(Path::new(path)), level, "{path}");
    }
}

#[test]
fn load_needs_no_source() {
    let words = "sockeye --cgroup /cg --devices eth0 --pin".split_whitespace();
    let config = Load::try_parse_from(words).unwrap().flags.resolve(&Machine::default()).unwrap();
    assert!(config.pin);
    assert_eq!(config.datapath.cgroup, Path::new("/cg"));
}
