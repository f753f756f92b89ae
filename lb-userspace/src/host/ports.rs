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

    /// Those that are in either.
    pub(crate) fn or(&self, others: &Self) -> Self {
        Self(&self.0 | &others.0)
    }

    /// Those that are not among the others.
    pub(crate) fn without(&self, others: &Self) -> Self {
        Self(&self.0 - &others.0)
    }

    /// The ranges that they make up, in order.
    pub(crate) fn ranges(&self) -> Vec<PortRange> {
        let mut ranges: Vec<PortRange> = Vec::new();
        for port in self.0.iter().copied() {
            match ranges.last_mut() {
                Some(range) if range.last.checked_add(1) == Some(port) => range.last = port,
                _ => ranges.push(PortRange { first: port, last: port }),
            }
        }
        ranges
    }

    /// The longest range; the first of several.
    pub(crate) fn longest_range(&self) -> Option<PortRange> {
        // The last of equal ones is the maximum, so that the order is turned round.
        self.ranges().into_iter().rev().max_by_key(|range| range.last - range.first)
    }
}

impl FromIterator<u16> for Ports {
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        Self(ports.into_iter().collect())
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
    fn sets_are_joined_cut_and_taken_away() {
        let (low, high) = (ports("10-20"), ports("15-30,65535"));
        assert_eq!(low.and(&high), ports("15-20"));
        assert_eq!(low.or(&high), ports("10-30,65535"));
        assert_eq!(high.without(&low), ports("21-30,65535"));
        assert!(low.without(&low).is_empty());
    }

    #[test]
    fn the_longest_range_is_found() {
        for (text, first, last) in [("1,5-9,20-24", 5, 9), ("7", 7, 7), ("0-65535", 0, 65_535), ("1-2,4-8", 4, 8)] {
            assert_eq!(ports(text).longest_range(), Some(PortRange { first, last }), "{text}");
        }
        assert_eq!(Ports::default().longest_range(), None);
    }
}
