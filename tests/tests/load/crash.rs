//! Agents that are killed while they put a new generation into force.

use std::{
    env,
    io::{BufRead, BufReader, Write as _},
    process::{ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::address::Protocol;
use lb_tests::{
    probe::{Prober, Request},
    process::{Place, Process},
    server::Server,
};
use lb_userspace::{
    kernel::{Kernel, KernelConfig, cleanup},
    store::Store as _,
};

use crate::machine::{Ids, Machine, no_addresses, start, target};

/// Set in a process that is to be killed: the number of frontends, the pin directory, the cgroup.
const VICTIM: &str = "SOCKEYE_TEST_VICTIM";
/// How many are killed.
const ROUNDS: u32 = 20;

const ACTIVATING: &str = "activating";
const ACTIVE: &str = "active";

#[test]
fn an_agent_that_is_killed_at_any_moment_leaves_the_service_working() -> Result<()> {
    if let Ok(arguments) = env::var(VICTIM) {
        return be_victim(&arguments);
    }
    let machine = Machine::new()?;
    let _server = Server::start("backend", machine.place(), &[(Protocol::Tcp, 8080)])?;
    let prober = Prober::start("client", machine.place())?;
    drop(start(&machine.config)?);
    prober.answers(&Request::StartLoop(vec![target()?]))?;

    // Another size in each round: always a whole new generation, over whatever the last victim left.
    let victim = |round: u32| -> Result<(Process, BufReader<_>)> {
        let frontends = machine.config.capacity.frontends + round;
        spawn(&format!(
            "{frontends}\n{}\n{}",
            machine.config.bpffs.display(),
            machine.config.cgroup.display()
        ))
    };
    let (mut process, mut output) = victim(0)?;
    wait_for(&mut output, ACTIVATING)?;
    let begin = Instant::now();
    wait_for(&mut output, ACTIVE)?;
    let whole = begin.elapsed();
    process.kill()?;
    let mut interrupted = 0;
    for round in 1..=ROUNDS {
        let (mut process, mut output) = victim(round)?;
        wait_for(&mut output, ACTIVATING)?;
        let moment = whole * round / ROUNDS;
        let begin = Instant::now();
        while begin.elapsed() < moment {
            std::hint::spin_loop();
        }
        process.kill()?;
        interrupted += u32::from(wait_for(&mut output, ACTIVE).is_err());
    }
    // The last ones may have come through.
    assert!(interrupted > ROUNDS / 4, "{interrupted} of {ROUNDS} were interrupted");

    let kernel = Kernel::prepare(&machine.config)?;
    assert!(kernel.reused());
    let tables = kernel.store()?.read()?;
    assert_eq!((tables.frontends.len(), tables.services.len(), tables.backends.len()), (1, 1, 1));
    drop(kernel);
    let (kernel, _) = start(&machine.config)?;
    let report = prober.stop_loop()?;
    assert_eq!(report.failed, 0, "{:?}", report.failures);
    assert!(report.attempts > 100, "only {} attempts", report.attempts);
    for leftover in ["staged", "committed", "relinked"] {
        assert!(!machine.config.bpffs.join(leftover).exists(), "{leftover}");
    }
    let ids = Ids::of(&machine.config.bpffs, &kernel.attachments()?)?;
    drop(kernel);
    cleanup(&machine.config.bpffs)?;
    ids.wait_until_gone()
}

/// This test again, as the process that is to be killed.
fn spawn(arguments: &str) -> Result<(Process, BufReader<ChildStdout>)> {
    let mut command = Command::new(env::current_exe().context("finding this program")?);
    command.args(["--exact", "crash::an_agent_that_is_killed_at_any_moment_leaves_the_service_working"]);
    command
        .args(["--nocapture", "--quiet"])
        .env(VICTIM, arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut process = Process::spawn("an agent to be killed", command, Place::default())?;
    let output = process.child().stdout.take().context("no standard output")?;
    Ok((process, BufReader::new(output)))
}

fn wait_for(output: &mut impl BufRead, wanted: &str) -> Result<()> {
    let mut line = String::new();
    // The victim says its lines or ends: no deadline is needed.
    while line.trim() != wanted {
        line.clear();
        ensure!(output.read_line(&mut line)? > 0, "the victim ended before it was {wanted}");
    }
    Ok(())
}

fn be_victim(arguments: &str) -> Result<()> {
    let mut lines = arguments.lines();
    let mut next = || lines.next().context("too few arguments");
    let mut config = KernelConfig { flows: 1_024, datagrams: 1_024, ..KernelConfig::default() };
    config.capacity.frontends = next()?.parse()?;
    config.bpffs = next()?.into();
    config.cgroup = next()?.into();
    let mut kernel = Kernel::prepare(&config)?;
    kernel.configure(&no_addresses())?;
    let mut output = std::io::stdout();
    writeln!(output, "{ACTIVATING}")?;
    kernel.activate()?;
    writeln!(output, "{ACTIVE}")?;
    // Until it is killed.
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}
