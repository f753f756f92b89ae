//! The results as Markdown: tables for the terminal, and the whole of `docs/benchmarks.md`.

use crate::{
    LARGE, MEDIUM, Results, SMALL,
    changes::Single,
    connect::{Added, Figures},
    objects::{ENDPOINTS, WIDE},
    packets::{self, Costs},
    sockets::BATCH,
};

/// The page.
pub(crate) fn document(results: &Results) -> String {
    format!(
        "# Benchmarks\n\n\
         Written by `./x bench`; do not edit. Run it on your machine to compare.\n\n\
         Machine: {}.\nRelease build, {} rounds.\n\n{}\n{}",
        results.machine,
        results.rounds,
        tables(results),
        method(),
    )
}

/// The figures.
pub(crate) fn tables(results: &Results) -> String {
    [goals(results), connect_table(results), packet_table(&results.packets), changes_table(results)]
        .join("\n")
}

/// The figures of packets alone.
pub(crate) fn packet_tables(packets: &[Costs; 2]) -> String {
    format!("{}\n\n{}", packet_goals(packets).join("\n"), packet_table(packets))
}

/// What must hold.
fn goals(results: &Results) -> String {
    let Results { small, large_hot, affinity, bulk, single, wide, unchanged, .. } = results;
    // Each against the same call without programs: the machine may be slower in one of the two runs.
    let growth = ratio(&large_hot.again) / ratio(&small.again);
    let mut rows = vec![
        goal(
            "`connect()` to a service, on a socket that has its storage: added",
            large_hot.again.hit,
            200.0,
            "ns",
            0,
        ),
        goal("`connect()` to a service, on a fresh socket: added", large_hot.fresh.hit, 200.0, "ns", 0),
        goal(
            "`connect()` to anything else: added",
            large_hot.fresh.miss.max(large_hot.again.miss),
            150.0,
            "ns",
            0,
        ),
        goal("`connect()` to a service among 50,000, against one among 10", growth, 1.1, "×", 2),
        goal("session affinity: added to that", *affinity, 80.0, "ns", 0),
        goal("50,000 services × 10 endpoints, from objects to maps", bulk.total, 1000.0, "ms", 0),
        goal("of that, writing maps", bulk.writes, 150.0, "ms", 0),
        goal("one endpoint among 500,000, from event to store: 99th percentile", single.p99, 100.0, "µs", 1),
        goal("one endpoint of a service with 1,000, the same", wide.p99, 1000.0, "µs", 1),
        goal("10,000 services × 10 endpoints, all lists again, nothing changed", *unchanged, 300.0, "ms", 0),
    ];
    rows.extend(packet_goals(&results.packets));
    format!("## Goals\n\n| | measured | goal | |\n|---|---:|---:|---|\n{}\n", rows.join("\n"))
}

/// In units of the program that does one look-up; each of the dearer cluster.
fn packet_goals(packets: &[Costs; 2]) -> [String; 3] {
    let dearest = |of: fn(&Costs) -> f64| {
        packets.iter().map(|costs| of(costs) / costs.yardstick).fold(f64::NEG_INFINITY, f64::max)
    };
    [
        goal("TC, a packet of an existing flow, against one look-up", dearest(Costs::existing), 4.0, "×", 1),
        goal("TC, the first packet of a flow, against one look-up", dearest(Costs::first), 30.0, "×", 1),
        goal(
            "TC, a packet that is not for a service, against one look-up",
            dearest(Costs::not_a_service),
            2.0,
            "×",
            1,
        ),
    ]
}

fn goal(what: &str, measured: f64, goal: f64, unit: &str, digits: usize) -> String {
    let verdict = if measured <= goal { "met" } else { "**missed**" };
    format!("| {what} | {measured:.digits$} {unit} | ≤ {goal} {unit} | {verdict} |")
}

/// Of a translated call to the same call without programs.
fn ratio(added: &Added) -> f64 {
    (added.without + added.hit) / added.without
}

fn connect_table(results: &Results) -> String {
    let Results { small, large_hot, large_cold, .. } = results;
    let rows = [
        rows(&format!("{SMALL} services"), small),
        rows(&format!("{LARGE} services, {SMALL} of them in use"), large_hot),
        rows(&format!("{LARGE} services, each in turn"), large_cold),
    ];
    format!(
        "## What the programs add to a system call\n\n\
         UDP over IPv4. The same call without programs, what the programs add to it, and the ratio of the two calls.\n\n\
         | | call | without | not a service | | a service | |\n|---|---|---:|---:|---:|---:|---:|\n{}\n",
        rows.join("\n"),
    )
}

fn rows(what: &str, figures: &Figures) -> String {
    let Figures { fresh, again, close } = figures;
    let calls =
        [("`connect()`, same socket", again), ("`connect()`, fresh socket", fresh), ("`close()`", close)];
    calls.map(|(call, added)| row(what, call, added)).join("\n")
}

fn row(what: &str, call: &str, added: &Added) -> String {
    let Added { without, miss, hit, .. } = added;
    format!(
        "| {what} | {call} | {without:.0} ns | {miss:+.0} ns | {:.2}× | {hit:+.0} ns | {:.2}× |",
        (without + miss) / without,
        ratio(added),
    )
}

fn packet_table(packets: &[Costs; 2]) -> String {
    let [small, large] = packets;
    let row = |what: &str, of: fn(&Costs) -> f64| {
        let cell = |costs: &Costs| format!("{:.0} ns | {:.1}×", of(costs), of(costs) / costs.yardstick);
        format!("| {what} | {} | {} |", cell(small), cell(large))
    };
    let rows = [
        row("parse, and one hash look-up: the yardstick", |costs| costs.yardstick),
        row("to an address that no service has", |costs| costs.stranger),
        row("to a port of the node that is no node port", |costs| costs.other_port),
        row("existing flow, backend on this node", |costs| costs.local.existing),
        row("existing flow, backend on another node", |costs| costs.remote.existing),
        row("new flow, backend on this node", |costs| costs.local.new),
        row("new flow, backend on another node", |costs| costs.remote.new),
    ];
    format!(
        "## What a packet from outside costs\n\n\
         TCP over IPv4 to node ports, at TC. Time in the program, less that of an empty one, and its ratio to the yardstick.\n\n\
         | | {SMALL} services | | {LARGE} services | |\n|---|---:|---:|---:|---:|\n{}\n",
        rows.join("\n"),
    )
}

fn changes_table(results: &Results) -> String {
    let Results { bulk, single, wide, unchanged, resident, .. } = results;
    format!(
        "## How fast the maps follow\n\n| {LARGE} services × {ENDPOINTS} endpoints | |\n|---|---:|\n\
         | from objects in memory to empty maps | {:.0} ms |\n\
         | of that, inside the store's writes | {:.1} ms |\n{}\n\n\
         | one service × {WIDE} endpoints | |\n|---|---:|\n{}\n\n\
         | {MEDIUM} services × {ENDPOINTS} endpoints | |\n|---|---:|\n\
         | all lists again, nothing changed | {unchanged:.1} ms |\n\
         | resident memory of an agent on a folder of manifests | {resident:.0} MB |\n",
        bulk.total,
        bulk.writes,
        single_rows(single),
        single_rows(wide),
    )
}

fn single_rows(single: &Single) -> String {
    let Single { median, p99, worst, changes } = single;
    format!(
        "| one endpoint replaced, from event to store: median | {median:.1} µs |\n\
         | 99th percentile | {p99:.1} µs |\n\
         | the slowest of {changes} | {worst:.1} µs |",
    )
}

fn method() -> String {
    format!(
        "## Method\n\n\
         The benchmark is `tests/src/bin/bench/main.rs`. It wires pipeline, store and programs as `sockeye run` does,\n\
         without sources, in a network namespace, a BPF file system and cgroups of its own.\n\n\
         **`connect()`.** Two sibling cgroups, one with the programs attached and one without.\n\
         Each round makes the same calls in both, in turns, on one CPU, at the highest priority; which comes first alternates.\n\
         A round is a batch of {BATCH} sockets; a batch is timed as a whole, so that the clock is not in the figures.\n\
         The figure without programs is the median of the rounds; what is added is the median of the differences within each round.\n\
         All addresses are local to the namespace (`local 10.0.0.0/8 dev lo`), services and backends alike, so that every call\n\
         finds a route of the same kind and succeeds.\n\
         Afterwards the counters must show that all calls were translated or passed on as the table says.\n\n\
         * *Same socket*: one socket connects again and again. The programs find the service, choose a backend, rewrite\n\
           the address and write the socket's storage, which is there already.\n\
         * *Fresh socket*: each call is the first of its socket, timed without `socket()` and `close()`. The kernel allocates the\n\
           socket's storage, and in a memory cgroup accounts for it.\n\
         * *In use*: the {SMALL} services that are connected to stay in the processor's caches. *Each in turn*: every call is to\n\
           a service that no call was to for {LARGE} calls, so each map access misses the caches.\n\n\
         **Packets.** The kernel runs the attached ingress program on packets of the benchmark (`BPF_PROG_TEST_RUN`), each\n\
         run on a new packet, and its run-time statistics give the time. In turns with it run an empty program, whose time is\n\
         subtracted, and the yardstick: it parses, and finds one key in a hash map that is as large as the map of flows.\n\
         A round is a batch of {packet_batch} packets of each kind, of {flows} flows to node ports of {SMALL} services; the figures\n\
         are medians of the differences within each round. Towards another node the source is translated too, and the program\n\
         looks up the route. Afterwards the counters must show that all packets ended as the table says.\n\n\
         **Objects to maps.** The changes of the initial lists are made before the clock starts; it stops when the last map is written.\n\
         Maps are new each time. Writes are timed one by one inside, clock included.\n\n\
         **One endpoint.** An EndpointSlice of {ENDPOINTS} endpoints arrives in which one is replaced; the clock stops when the new set is\n\
         in force. Freeing what is retired waits for a grace period and is not part of it, as in the agent. Of the service\n\
         with {WIDE} endpoints, one of its ten slices arrives.\n\n\
         **Session affinity.** In one cluster, {SMALL} services with and {SMALL} without it; the figure is the median of the\n\
         differences within each round, of one client that has a backend already.\n\n\
         **Nothing changed.** All lists arrive again, as after a lost watch: the objects are compared, and nothing is written.\n\n\
         **Memory.** `VmRSS` of `sockeye run` on a folder with the whole cluster, once it is ready; the mapped tables, as far as\n\
         they are in use, are in it. A folder costs more than an API server: what the files hold is kept beside what was made of\n\
         it (docs/install.md has the figure for an API server).\n",
        packet_batch = packets::BATCH,
        flows = packets::FLOWS,
    )
}
