//! `sockeye version`: what this binary is.

use clap::Args;
use lb_common::config::LAYOUT_VERSION;
use serde::Serialize;

use super::Verdict;
use crate::{
    output::{FormatFlag, Table, print},
    version::{COMMIT, VERSION},
};

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Flags {
    #[command(flatten)]
    format: FormatFlag,
}

/// What this binary is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Binary {
    pub(super) version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) commit: Option<&'static str>,
    pub(super) layout_version: u32,
}

impl Table for Binary {
    fn table(&self) -> String {
        let commit = self.commit.map(|commit| format!(" ({commit})")).unwrap_or_default();
        format!("sockeye {}{commit}, map layout {}\n", self.version, self.layout_version)
    }
}

pub(super) fn run(flags: Flags) -> anyhow::Result<Verdict> {
    let Flags { format } = flags;
    let binary = Binary { version: VERSION, commit: COMMIT, layout_version: LAYOUT_VERSION };
    print(&binary, format.output)?;
    Ok(Verdict::Fine)
}
