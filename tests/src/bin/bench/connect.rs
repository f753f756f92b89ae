//! What the programs add to `connect()`.
//!
//! Each round measures the same system calls in two sibling cgroups, one with the programs and one without, in turns,
//! on one CPU. What drifts over minutes (frequency, neighbours of the virtual machine) hits both alike.

use std::net::SocketAddr;

use anyhow::Context as _;
use lb_tests::cgroup::enter;

use crate::{
    machine::Corner,
    objects,
    sockets::{BATCH, Destination, connect_fresh, reconnect},
    statistics::{median, median_difference},
};

/// What is connected to.
pub(crate) struct Targets {
    /// Frontends, in the order in which they are visited.
    pub(crate) hits: Vec<SocketAddr>,
    /// What they are compared with: addresses that are no service's, or other frontends.
    pub(crate) misses: Vec<SocketAddr>,
}

impl Targets {
    /// All frontends of a cluster, and as many strangers.
    pub(crate) fn of(services: u32) -> Self {
        Self { hits: objects::frontends(services), misses: objects::strangers(services) }
    }

    /// The first so many frontends, and as many after them.
    pub(crate) fn of_two_kinds(number: u32) -> Self {
        Self { hits: objects::frontends_of(0..number), misses: objects::frontends_of(number..2 * number) }
    }

    /// Only the first of them.
    pub(crate) fn first(mut self, number: u32) -> Self {
        self.hits.truncate(number as usize);
        self.misses.truncate(number as usize);
        self
    }
}

/// Nanoseconds a call, one value a round.
#[derive(Default)]
struct Rounds {
    without: Vec<f64>,
    miss: Vec<f64>,
    hit: Vec<f64>,
}

/// One row of the table.
pub(crate) struct Added {
    /// Median of the calls without programs, in nanoseconds.
    pub(crate) without: f64,
    /// Added to a call whose destination is no service.
    pub(crate) miss: f64,
    /// Added to a call that is translated.
    pub(crate) hit: f64,
    /// By how much the one kind of destination costs more than the other: `miss` over `hit`, pair by pair.
    pub(crate) between: f64,
}

/// The three kinds of calls.
pub(crate) struct Figures {
    /// `connect()` on a fresh socket.
    pub(crate) fresh: Added,
    /// `connect()` again on the same socket.
    pub(crate) again: Added,
    /// `close()` of the fresh socket.
    pub(crate) close: Added,
}

/// Measures in so many rounds.
pub(crate) fn measure(corner: &Corner, targets: &Targets, rounds: usize) -> anyhow::Result<Figures> {
    let hits = batches(&targets.hits);
    let misses = batches(&targets.misses);
    let (mut fresh, mut again, mut close) = (Rounds::default(), Rounds::default(), Rounds::default());
    let (with, without) = (corner.with_programs.path(), corner.without_programs.path());
    for round in 0..rounds {
        // Each measurement has a batch of its own: the one before must not have warmed the caches for it.
        let batch = |all: &[Vec<Destination>], number: usize| -> anyhow::Result<_> {
            let index = (2 * round + number) % all.len();
            all.get(index).cloned().context("nothing to connect to")
        };
        let (hits, again_hits) = (batch(&hits, 0)?, batch(&hits, 1)?);
        let (misses, again_misses) = (batch(&misses, 0)?, batch(&misses, 1)?);
        let mut with_programs = || -> anyhow::Result<()> {
            enter(with)?;
            let (hit, miss) = (connect_fresh(&hits)?, connect_fresh(&misses)?);
            fresh.hit.push(hit.connect);
            fresh.miss.push(miss.connect);
            close.hit.push(hit.close);
            close.miss.push(miss.close);
            again.hit.push(reconnect(&again_hits)?);
            again.miss.push(reconnect(&again_misses)?);
            Ok(())
        };
        let mut without_programs = || -> anyhow::Result<()> {
            enter(without)?;
            let timing = connect_fresh(&hits)?;
            fresh.without.push(timing.connect);
            close.without.push(timing.close);
            again.without.push(reconnect(&again_hits)?);
            Ok(())
        };
        if round % 2 == 0 {
            with_programs()?;
            without_programs()?;
        } else {
            without_programs()?;
            with_programs()?;
        }
    }
    Ok(Figures { fresh: fresh.added(), again: again.added(), close: close.added() })
}

impl Rounds {
    fn added(&self) -> Added {
        Added {
            without: median(&self.without),
            miss: median_difference(&self.miss, &self.without),
            hit: median_difference(&self.hit, &self.without),
            between: median_difference(&self.miss, &self.hit),
        }
    }
}

/// Whole batches; a short list is repeated to fill one.
fn batches(addresses: &[SocketAddr]) -> Vec<Vec<Destination>> {
    let length = addresses.len().next_multiple_of(BATCH);
    let endless: Vec<SocketAddr> = addresses.iter().copied().cycle().take(length).collect();
    endless.chunks(BATCH).map(|batch| batch.iter().copied().map(Destination::from).collect()).collect()
}
