//! Freeing what is retired.

use bytemuck::Zeroable;
use lb_common::service::ServiceRecord;

use super::{Reclaimed, Writer};
use crate::{
    plan::actual::Actual,
    store::{StoreError, Write},
};

/// Waits for one grace period. Then the retired slots are free, and the retired records once they say so themselves.
///
/// A record that cannot be emptied stays retired; source ranges that cannot be deleted stay for the next time.
pub(super) fn reclaim(actual: &mut Actual, writer: &mut Writer<'_>) -> Result<Reclaimed, StoreError> {
    let has_ranges = actual.unused_source_ranges().next().is_some();
    let has_places = actual.slots().retired() != 0 || actual.positions().retired() != 0;
    if actual.records().retired().len() == 0 && !has_places && !has_ranges {
        return Ok(Reclaimed::default());
    }
    writer.write(&Write::Grace, actual)?;
    let unused = actual.unused_source_ranges();
    let unused = unused.flat_map(|(record, prefixes)| prefixes.iter().map(move |prefix| (record, *prefix)));
    for (record, prefix) in unused.collect::<Vec<_>>() {
        let (Ok(()) | Err(_)) = writer.write(&Write::DeleteSourceRange { record, prefix }, actual);
    }
    let freed = actual.free_retired();
    let mut records = 0;
    for index in freed.records {
        let emptied = Write::Record { index, record: ServiceRecord::zeroed() };
        if writer.write(&emptied, actual).is_ok() {
            records += 1;
        }
    }
    Ok(Reclaimed { slots: freed.slots, records, unblocked: 0 })
}
