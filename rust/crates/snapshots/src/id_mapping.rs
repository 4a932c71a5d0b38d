//! The ids of a container in a user namespace, as containerd's clients write them into labels.

use std::fmt;

use crate::error::{Error, Result};
use crate::model::Labels;

/// The label that maps the users of a container to those of the host.
pub const UID_MAPPING_LABEL: &str = "containerd.io/snapshot/uidmapping";
/// The label that maps the groups of a container to those of the host.
pub const GID_MAPPING_LABEL: &str = "containerd.io/snapshot/gidmapping";

/// How many ranges the kernel takes (user_namespaces(7), Linux 4.15).
const MAX_RANGES: usize = 340;

/// A user and a group.
pub(crate) type Owner = (u32, u32);

/// The users and groups of a container, and those that they are on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMapping {
    uids: Ranges,
    gids: Ranges,
}

impl IdMapping {
    /// The mapping that the labels of a snapshot ask for, if they do.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidArgument`](crate::Code) when one of the two labels is there without the
    /// other, or is not a list of ranges `<in the container>:<on the host>:<length>`, separated by
    /// commas, that the kernel would take and that maps root.
    pub fn of(labels: &Labels) -> Result<Option<Self>> {
        let value = |label| labels.get(label).filter(|value| !value.is_empty());
        let parse = |label, value: &String| {
            Ranges::parse(value).map_err(|reason| Error::IdMapping {
                label,
                value: value.clone(),
                reason,
            })
        };
        match (value(UID_MAPPING_LABEL), value(GID_MAPPING_LABEL)) {
            (None, None) => Ok(None),
            (Some(uids), Some(gids)) => Ok(Some(Self {
                uids: parse(UID_MAPPING_LABEL, uids)?,
                gids: parse(GID_MAPPING_LABEL, gids)?,
            })),
            (Some(value), None) => Err(lonely(UID_MAPPING_LABEL, value)),
            (None, Some(value)) => Err(lonely(GID_MAPPING_LABEL, value)),
        }
    }

    /// What the container's root is on the host.
    pub(crate) fn root(&self) -> Owner {
        (self.uids.root, self.gids.root)
    }

    /// The options by which containerd maps a mount (`core/mount`, 2.0 and newer).
    pub(crate) fn mount_options(&self) -> [String; 2] {
        [
            format!("uidmap={}", self.uids),
            format!("gidmap={}", self.gids),
        ]
    }

    /// The options by which fuse-overlayfs maps what it shows. It separates ranges by colons too.
    pub(crate) fn fuse_options(&self) -> [String; 2] {
        let options = [
            format!("uidmapping={}", self.uids),
            format!("gidmapping={}", self.gids),
        ];
        options.map(|option| option.replace(',', ":"))
    }
}

fn lonely(label: &'static str, value: &str) -> Error {
    Error::IdMapping {
        label,
        value: value.to_owned(),
        reason: "users and groups are mapped together, and the other label is missing",
    }
}

/// The lines of a `uid_map` or `gid_map` file, of which one maps root.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ranges {
    ranges: Vec<Range>,
    root: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    container: u32,
    host: u32,
    length: u32,
}

impl Ranges {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let mut ranges: Vec<Range> = Vec::new();
        for item in text.split(',') {
            let range = Range::parse(item)?;
            if ranges.len() == MAX_RANGES {
                return Err("it has more than 340 ranges, which is what the kernel takes");
            }
            if ranges.iter().any(|other| range.overlaps(*other)) {
                return Err("its ranges overlap");
            }
            ranges.push(range);
        }
        let root = ranges.iter().find(|range| range.container == 0);
        let root = root.ok_or("it does not map root, which is 0")?.host;
        Ok(Self { ranges, root })
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            let Range {
                container,
                host,
                length,
            } = range;
            let separator = if index == 0 { "" } else { "," };
            write!(f, "{separator}{container}:{host}:{length}")?;
        }
        Ok(())
    }
}

impl Range {
    fn parse(text: &str) -> Result<Self, &'static str> {
        // `parse` alone would take a sign too.
        let number = |digits: &str| {
            let decimal = digits.bytes().all(|byte| byte.is_ascii_digit());
            decimal.then(|| digits.parse().ok()).flatten()
        };
        let numbers: Option<Vec<u32>> = text.split(':').map(number).collect();
        let Some(&[container, host, length]) = numbers.as_deref() else {
            return Err("each range is <in the container>:<on the host>:<length>, in decimal");
        };
        if length == 0 {
            return Err("a range is empty");
        }
        // The last id, 4294967295, stands for none.
        if container.checked_add(length).is_none() || host.checked_add(length).is_none() {
            return Err("a range goes beyond the last id, 4294967294");
        }
        Ok(Self {
            container,
            host,
            length,
        })
    }

    fn overlaps(self, other: Self) -> bool {
        let meet = |a: u32, b: u32| a < b + other.length && b < a + self.length;
        meet(self.container, other.container) || meet(self.host, other.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn mapping(uids: &str, gids: &str) -> Result<Option<IdMapping>> {
        let labels = [(UID_MAPPING_LABEL, uids), (GID_MAPPING_LABEL, gids)];
        IdMapping::of(
            &labels
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        )
    }

    #[test]
    fn what_clients_write() {
        assert_eq!(mapping("", "").unwrap(), None);
        assert_eq!(IdMapping::of(&Labels::new()).unwrap(), None);
        let one = mapping("0:100000:65536", "0:200000:65536")
            .unwrap()
            .unwrap();
        assert_eq!(one.root(), (100_000, 200_000));
        assert_eq!(
            one.mount_options(),
            ["uidmap=0:100000:65536", "gidmap=0:200000:65536"]
        );
        let several = mapping("1:1:10,0:100000:1", "0:0:4294967295")
            .unwrap()
            .unwrap();
        assert_eq!(several.root(), (100_000, 0));
        assert_eq!(
            several.fuse_options(),
            ["uidmapping=1:1:10:0:100000:1", "gidmapping=0:0:4294967295"]
        );
    }

    #[test]
    fn what_the_kernel_would_refuse() {
        let many: Vec<_> = (0..=340).map(|id| format!("{id}:{id}:1")).collect();
        mapping(&many[1..].join(","), "0:0:1").unwrap_err();
        mapping(&many[..340].join(","), "0:0:1").unwrap();
        for bad in [
            "0",
            "0:1",
            "0:1:2:3",
            "0:1:x",
            "0:1:x:3",
            "0:1:",
            "::",
            "-0:1:2",
            "+0:1:2",
            "0: 1:2",
            "0x0:1:2",
            "0:1:0",
            "0:100000:65536,",
            ",0:100000:65536",
            "0:100000:65536;1:2:3",
            "0:100000:65536 garbage",
            "0:4294967295:1",
            "0:4294967294:2",
            "0:1:4294967296",
            "1:100000:65536",
            "0:100000:10,9:200000:10",
            "0:100000:10,10:100009:10",
            many.join(",").as_str(),
        ] {
            let error = mapping(bad, "0:100000:65536").unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{bad}");
            let message = error.to_string();
            let quoted = format!("{bad:?}");
            assert!(
                message.contains(UID_MAPPING_LABEL) && message.contains(&quoted),
                "{message}"
            );
            let error = mapping("0:100000:65536", bad).unwrap_err();
            assert!(error.to_string().contains(GID_MAPPING_LABEL), "{error}");
        }
        for (uids, gids) in [("0:0:1", ""), ("", "0:0:1")] {
            let error = mapping(uids, gids).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
            assert!(error.to_string().contains("missing"), "{error}");
        }
    }
}
