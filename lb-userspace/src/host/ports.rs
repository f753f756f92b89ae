//! Sets of ports, as the kernel writes and reads them. Pure.

use std::{collections::BTreeSet, fmt, str::FromStr};

use crate::config::PortRange;

/// A set of ports. As text: `8080,61000-65535`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ports(BTreeSet<u16>);

impl Ports {
    /// All of a range.
    pub(crate) fn of(range: PortRange) -> Self {
        Self((range.first..=range.last).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that are in both.
    pub(crate) fn and(&self, others: &Self) -> Self {
        Self(&self.0 & &others.0)
    }

    /// Those that are not among the others.
    pub(crate) fn without(&self, others: &Self) -> Self {
        Self(&self.0 - &others.0)
    }

    /// The ranges that they make up, in order.
    fn ranges(&self) -> Vec<PortRange> {
        let mut ranges: Vec<PortRange> = Vec::new();
        for port in self.0.iter().copied() {
            match ranges.last_mut() {
                Some(range) if range.last.checked_add(1) == Some(port) => range.last = port,
                _ => ranges.push(PortRange { first: port, last: port }),
            }
        }
        ranges
    }
}

impl FromStr for Ports {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut ports = BTreeSet::new();
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            ports.extend(first.parse::<u16>()?..=last.parse()?);
        }
        Ok(Self(ports))
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.ranges().into_iter().map(|PortRange { first, last }| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        });
        f.write_str(&ranges.collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> Ports {
        text.parse().unwrap()
    }

    #[test]
    fn text_is_read_and_written_as_the_kernel_does() {
        for (text, normal) in [
            ("", ""),
            ("\n", ""),
            ("8080\n", "8080"),
            ("80,81,82,90", "80-82,90"),
            ("65534-65535,0", "0,65534-65535"),
            ("10-20,15-30", "10-30"),
        ] {
            assert_eq!(ports(text).to_string(), normal);
        }
        for bad in ["80-", "x", "70000", "1 2"] {
            assert!(bad.parse::<Ports>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sets_are_cut_and_taken_away() {
        let (low, high) = (ports("10-20"), ports("15-30,65535"));
        assert_eq!(low.and(&high), ports("15-20"));
        assert_eq!(high.without(&low), ports("21-30,65535"));
        assert!(low.without(&low).is_empty());
    }
}
