//! A real API server with its controllers, the agent, and real connections: `cargo xtask e2e`.
//!
//! One control plane and one agent serve all tests, which run one after the other on the main thread (their processes end
//! with it), each in a namespace of the cluster of its own. The agent has the identity and the rights that `deploy/`
//! gives it.

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result};
use lb_tests::wait;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::{case::Case, world::World};

mod agent;
mod case;
mod deploy;
mod endpoints;
mod resilience;
mod selectors;
mod service_types;
mod world;

type Test = fn(&mut Case<'_>) -> Result<()>;

macro_rules! tests {
    ($($module:ident: $($name:ident),+;)+) => {
        [$($((concat!(stringify!($module), "::", stringify!($name)), $module::$name as Test)),+),+]
    };
}

fn main() -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    wait::catch_interrupts()?;
    let tests = tests! {
        deploy: manifests_are_valid, applies_to_every_node, agent_can_only_read;
        selectors: pods_become_backends, scaling_is_followed, readiness_is_followed,
            terminating_pods_serve_when_no_other_does, named_target_ports, one_number_for_two_protocols, both_families,
            kubernetes_service;
        service_types: node_port, load_balancer_and_external_ips, types_change_and_back, deleted_and_made_again,
            headless_is_left_alone;
        endpoints: outside_the_cluster_mirrored, outside_the_cluster_not_mirrored, mirroring_switched_off_and_on;
        resilience: agent_is_killed_and_started, api_server_stops_and_starts, api_server_forgets_what_the_agent_saw,
            agent_starts_before_the_api_server, wrong_kubeconfigs;
    };
    let world = Arc::new(Mutex::new(None));
    if !arguments.list {
        *lock(&world) = Some(World::start()?);
    }
    let trials = tests.map(|(name, test)| {
        let world = Arc::clone(&world);
        Trial::test(name, move || run(name, test, &mut lock(&world)))
    });
    let conclusion = libtest_mimic::run(&arguments, trials.into());
    let stopped = lock(&world).take();
    if conclusion.has_failed()
        && let Some(world) = stopped
    {
        world.keep_logs()?;
    }
    Ok(conclusion.exit_code())
}

fn run(name: &str, test: Test, world: &mut Option<World>) -> Result<(), Failed> {
    wait::check_interrupt().map_err(|error| format!("{error:#}"))?;
    let world = world.as_mut().context("no world").map_err(|error| format!("{error:#}"))?;
    let namespace = name.replace("::", "-").replace('_', "-");
    let outcome = Case::enter(world, &namespace).and_then(|mut case| {
        test(&mut case)?;
        case.leave()
    });
    outcome.map_err(|error| format!("{error:?}\n\n{}", world.describe(&namespace)).into())
}

fn lock(world: &Mutex<Option<World>>) -> MutexGuard<'_, Option<World>> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}
