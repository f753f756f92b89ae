//! A client that is told on its standard input what to ask, and tells on its standard output what it saw: one line of
//! JSON for each request and each response (`lb_tests::probe`).

use std::io::{self, BufRead as _, Write as _};

use anyhow::{Context as _, Result};
use lb_tests::probe::sockets::Sockets;

fn main() -> Result<()> {
    let mut sockets = Sockets::default();
    for line in io::stdin().lock().lines() {
        let line = line.context("reading a request")?;
        let request = serde_json::from_str(&line).with_context(|| format!("the request {line}"))?;
        let response = serde_json::to_string(&sockets.answer(request)).context("writing a response")?;
        writeln!(io::stdout(), "{response}").context("sending a response")?;
    }
    Ok(())
}
