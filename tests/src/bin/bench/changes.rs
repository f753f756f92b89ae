//! How fast the maps follow the objects: all of a large cluster at once, and one endpoint of it.

use std::time::{Duration, Instant};

use anyhow::ensure;

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
    datapath.serve(services)?;
    let mut times = Vec::with_capacity(changes);
    let mut generation = 0;
    while times.len() < changes {
        generation += 1;
        for number in objects::scattered(services).take(changes - times.len()) {
            let change = objects::replaced_endpoint(number, generation);
            let start = Instant::now();
            datapath.pipeline.apply(change);
            let report = datapath.pipeline.sync(&mut datapath.store);
            let elapsed = start.elapsed();
            ensure!(report.written > 0 && report.dirty == 0, "the change was not written: {report:?}");
            times.push(milliseconds(elapsed) * 1000.0);
            // What the reconciler does when things are quiet; off the clock, as it is off the path of a change.
            if datapath.pipeline.summary().slots.retired > services.min(1_000) {
                datapath.pipeline.reclaim(&mut datapath.store)?;
            }
        }
    }
    datapath.remove(corner)?;
    Ok(Single {
        median: median(&times),
        p99: quantile(&times, 0.99),
        worst: quantile(&times, 1.0),
        changes: times.len(),
    })
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
