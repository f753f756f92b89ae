//! Values of flags that have a syntax of their own.

use std::{fmt, str::FromStr, time::Duration};

/// A pattern of device names, in the shell's syntax.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePattern(glob::Pattern);

impl DevicePattern {
    /// Whether a device of this name is meant.
    pub fn matches(&self, name: &str) -> bool {
        self.0.matches(name)
    }
}

impl FromStr for DevicePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty name".to_owned());
        }
        if matches!(text, "auto" | "none") {
            return Err("auto and none stand alone".to_owned());
        }
        if text.contains(['/', ' ']) {
            return Err("a device's name has no slash and no space".to_owned());
        }
        glob::Pattern::new(text)
            .map(Self)
            .map_err(|error| format!("{} at character {}", error.msg, error.pos))
    }
}

/// Which devices serve clients from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// Those that carry the node's addresses, and those with a default route.
    Auto,
    /// None.
    None,
    /// Those with such names.
    Named(Vec<DevicePattern>),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            _ => text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self::Named),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::Named(patterns) => {
                let patterns: Vec<_> = patterns.iter().map(DevicePattern::to_string).collect();
                f.write_str(&patterns.join(","))
            }
        }
    }
}

impl fmt::Display for DevicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').ok_or("give two ports, such as 61000-65535")?;
        let port = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is no port"));
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(format!("{first} is above {last}"));
        }
        // Below 1024 servers of the node listen, which return traffic would be taken from.
        if first < 1024 {
            return Err(format!("{first} is below 1024, where the node's own servers listen"));
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// How long an idle flow keeps its place: whole seconds, such as `90s` or `8h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// In seconds.
    pub seconds: u32,
}

impl Lifetime {
    /// Programs note the time of a packet once a second: below two seconds a busy flow could end.
    const LEAST: u64 = 2;
    /// Thirty days.
    const MOST: u64 = 30 * 24 * 3600;
}

impl FromStr for Lifetime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let duration = humantime::parse_duration(text)
            .map_err(|error| format!("{error}; give a time such as 90s, 2m or 8h"))?;
        if duration.subsec_nanos() != 0 {
            return Err("give whole seconds".to_owned());
        }
        match u32::try_from(duration.as_secs()) {
            Ok(seconds) if (Self::LEAST..=Self::MOST).contains(&u64::from(seconds)) => Ok(Self { seconds }),
            _ => Err("give a time from 2s to 30d".to_owned()),
        }
    }
}

impl fmt::Display for Lifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(Duration::from_secs(u64::from(self.seconds))).fmt(f)
    }
}
