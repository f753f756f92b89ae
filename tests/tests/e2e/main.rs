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
mod clients;
mod container;
mod deploy;
mod endpoints;
mod policies;
mod resilience;
mod selectors;
mod service_types;
mod world;

type Test = fn(&mut Case<'_>) -> Result<()>;

macro_rules! tests {
    ($($test:path,)+) => {
        [$((stringify!($test), $test as Test)),+]
    };
}

fn main() -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    wait::catch_interrupts()?;
    let tests = tests![
        deploy::manifests_are_valid,
        deploy::every_node_gets_an_agent,
        deploy::the_agent_can_only_read,
        deploy::an_agent_runs_as_the_daemonset_says,
        selectors::pods_become_backends,
        selectors::scaling_is_followed,
        selectors::readiness_is_followed,
        selectors::terminating_pods_serve_when_no_other_does,
        selectors::target_ports_are_found_by_name,
        selectors::one_number_serves_two_protocols,
        selectors::both_families_are_served,
        selectors::a_local_policy_keeps_to_the_node,
        selectors::the_api_server_is_reached_at_its_service,
        service_types::node_ports_answer_at_the_node,
        service_types::load_balancer_and_external_ips_come_and_go,
        service_types::types_change_and_change_back,
        service_types::a_deleted_service_is_gone_and_may_come_back,
        service_types::a_headless_service_is_left_alone,
        service_types::ports_come_and_go_and_share_a_number,
        service_types::labels_hide_what_they_are_for,
        service_types::balancers_say_which_addresses_are_theirs,
        endpoints::mirrored_endpoints_are_followed,
        endpoints::endpoints_that_ask_not_to_be_mirrored_are_left_alone,
        endpoints::mirroring_may_start_later,
        endpoints::a_slice_may_change_its_service,
        endpoints::ports_and_endpoints_may_stand_in_several_slices,
        policies::terminating_pods_are_the_last_resort,
        policies::unready_pods_are_published_on_request,
        policies::hints_are_followed_as_nodes_and_slices_change,
        policies::session_affinity_is_switched_at_run_time,
        clients::a_pod_reaches_itself_and_keeps_its_address,
        clients::datagrams_go_on_when_the_pod_behind_them_is_replaced,
        resilience::a_killed_agent_makes_up_for_what_it_missed,
        resilience::changes_apply_after_an_outage_of_the_api_server,
        resilience::a_watch_that_is_too_old_starts_anew,
        resilience::an_agent_may_start_before_the_api_server,
        resilience::a_wrong_kubeconfig_is_named,
    ];
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
