//! How fast the maps follow the objects: all of a large cluster at once, and one endpoint of it.

use std::time::{Duration, Instant};

use anyhow::ensure;
use lb_userspace::model::Change;

use crate::{
    datapath::Datapath,
    machine::Corner,
    objects,
    statistics::{median, quantile},
};

/// From objects in memory to maps; medians, in milliseconds.
pub(crate) struct Bulk {
    /// All in.
    pub(crate) total: f64,
    /// Of that, inside the store's writes.
    pub(crate) writes: f64,
}

/// From the event to the last store, in microseconds.
pub(crate) struct Single {
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) worst: f64,
    /// How many were measured.
    pub(crate) changes: usize,
}

/// Fills empty maps, so many times.
pub(crate) fn bulk(corner: &Corner, services: u32, rounds: usize) -> anyhow::Result<Bulk> {
    let (mut total, mut writes) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut datapath = Datapath::new(corner)?;
        let changes = objects::initial(services);
        let start = Instant::now();
        for change in changes {
            datapath.pipeline.apply(change);
        }
        datapath.sync()?;
        total.push(milliseconds(start.elapsed()));
        writes.push(milliseconds(datapath.store.take()));
        let backends = datapath.pipeline.summary().backends;
        ensure!(backends == (services * objects::ENDPOINTS) as usize, "{backends} backends are in force");
        datapath.remove(corner)?;
    }
    Ok(Bulk { total: median(&total), writes: median(&writes) })
}

/// Replaces one endpoint of one Service, then of another, all over the cluster.
pub(crate) fn single(corner: &Corner, services: u32, changes: usize) -> anyhow::Result<Single> {
    let mut datapath = Datapath::new(corner)?;
    datapath.serve(objects::initial(services))?;
    let generations = (1..).flat_map(|generation| {
        objects::scattered(services).map(move |number| objects::replaced_endpoint(number, generation))
    });
    let single = one_by_one(&mut datapath, generations.take(changes), 1_000)?;
    datapath.remove(corner)?;
    Ok(single)
}

/// Replaces one endpoint of the wide Service, again and again.
pub(crate) fn wide(corner: &Corner, changes: usize) -> anyhow::Result<Single> {
    let mut datapath = Datapath::new(corner)?;
    datapath.serve(objects::initial_wide())?;
    let single = one_by_one(
        &mut datapath,
        (1..).map(objects::replaced_wide_endpoint).take(changes),
        20 * objects::WIDE,
    )?;
    datapath.remove(corner)?;
    Ok(single)
}

/// Times each change from the event to the last store. Frees what is retired when it is more than so many slots: what the
/// reconciler does when things are quiet is off the clock, as it is off the path of a change.
fn one_by_one(
    datapath: &mut Datapath,
    changes: impl Iterator<Item = Change>,
    most_retired: u32,
) -> anyhow::Result<Single> {
    let mut times = Vec::new();
    for change in changes {
        let start = Instant::now();
        datapath.pipeline.apply(change);
        let report = datapath.pipeline.sync(&mut datapath.store);
        let elapsed = start.elapsed();
        ensure!(report.written > 0 && report.dirty == 0, "the change was not written: {report:?}");
        times.push(milliseconds(elapsed) * 1000.0);
        if datapath.pipeline.summary().slots.retired > most_retired {
            datapath.pipeline.reclaim(&mut datapath.store)?;
        }
    }
    Ok(Single {
        median: median(&times),
        p99: quantile(&times, 0.99),
        worst: quantile(&times, 1.0),
        changes: times.len(),
    })
}

/// All lists arrive again and nothing in them has changed, as after a lost watch: the median, in milliseconds.
pub(crate) fn unchanged(corner: &Corner, services: u32, rounds: usize) -> anyhow::Result<f64> {
    let mut datapath = Datapath::new(corner)?;
    datapath.serve(objects::initial(services))?;
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let changes = objects::initial(services);
        let start = Instant::now();
        for change in changes {
            datapath.pipeline.apply(change);
        }
        let report = datapath.sync()?;
        times.push(milliseconds(start.elapsed()));
        ensure!(report.written == 0, "nothing had changed, but there were {} writes", report.written);
    }
    datapath.remove(corner)?;
    Ok(median(&times))
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
