//! Problems in the log: each once when it appears, and once when it is gone.

use std::collections::BTreeSet;

use tracing::{info, warn};

use crate::model::Problem;

/// The status tells all of them; the log says how many it leaves out.
const LINES: usize = 50;

/// What the log tells of.
#[derive(Debug, Default)]
pub(super) struct ProblemLog {
    known: BTreeSet<Problem>,
}

impl ProblemLog {
    /// Logs how the problems differ from those of the last time.
    pub(super) fn update(&mut self, problems: Vec<Problem>) {
        let now: BTreeSet<_> = problems.into_iter().collect();
        let (new, gone): (Vec<_>, Vec<_>) =
            (now.difference(&self.known).collect(), self.known.difference(&now).collect());
        for Problem { object, field, what } in new.iter().take(LINES) {
            warn!(object, field, "{what}");
        }
        for Problem { object, field, what } in gone.iter().take(LINES) {
            info!(object, field, "no longer: {what}");
        }
        let left_out = new.len().saturating_sub(LINES) + gone.len().saturating_sub(LINES);
        if left_out > 0 {
            warn!(left_out, "there are more changes of problems than the log tells; see sockeye status");
        }
        self.known = now;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged for a list of problems after another one.
    fn logged(log: &mut ProblemLog, objects: impl IntoIterator<Item = u32>) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .without_time()
            .with_target(false)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let problems = objects.into_iter().map(|number| Problem {
            object: format!("Service {number}"),
            field: "spec".to_owned(),
            what: "wrong".to_owned(),
        });
        tracing::subscriber::with_default(subscriber, || log.update(problems.collect()));
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_problem_is_logged_when_it_comes_and_when_it_goes() {
        let mut log = ProblemLog::default();
        assert_eq!(logged(&mut log, [1]), " WARN wrong object=\"Service 1\" field=\"spec\"\n");
        assert_eq!(logged(&mut log, [1]), "");
        let both = logged(&mut log, [2]);
        assert!(both.contains("WARN wrong object=\"Service 2\""), "{both}");
        assert!(both.contains("INFO no longer: wrong object=\"Service 1\""), "{both}");
    }

    #[test]
    fn a_flood_of_problems_is_cut() {
        let mut log = ProblemLog::default();
        let flood = logged(&mut log, 0..1_000);
        assert_eq!(flood.lines().count(), LINES + 1);
        assert!(flood.ends_with("see sockeye status left_out=950\n"), "{flood}");
    }
}
