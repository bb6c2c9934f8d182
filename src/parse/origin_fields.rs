//! What stands inside the fields `c:`, `e:` and `card:`. Nothing here can refuse a message: a part
//! that cannot be read counts as absent, as in the Agent.

use serde::{Deserialize, Serialize};

/// Local data, `c:`: what the client knows of its container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalData<'a> {
    /// Empty when absent.
    pub container_id: &'a [u8],
    /// The inode of the container's cgroup.
    pub inode: Option<u64>,
}

/// External data, `e:`: what an admission controller has told the client of its pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExternalData<'a> {
    /// Whether the sender is an init container.
    pub init: bool,
    /// Empty when absent.
    pub container_name: &'a [u8],
    /// Empty when absent.
    pub pod_uid: &'a [u8],
}

/// How many tags the origin of a sample should bring.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Cardinality {
    /// None at all.
    None,
    /// Those that all copies of a service share.
    Low,
    /// And those of the pod or task.
    #[serde(alias = "orch")]
    Orchestrator,
    /// And those of the single container.
    High,
}

impl Cardinality {
    /// The word used in settings.
    pub const fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Low => "low",
            Self::Orchestrator => "orchestrator",
            Self::High => "high",
        }
    }

    /// Reads the word of `card:` or of the tag `dd.internal.card:`, in any case. `None` means the
    /// configured default.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let is = |word: &str| text.eq_ignore_ascii_case(word.as_bytes());
        let all = [Self::None, Self::Low, Self::Orchestrator, Self::High];
        all.into_iter()
            .find(|level| is(level.word()))
            .or_else(|| is("orch").then_some(Self::Orchestrator))
    }
}

/// Reads `ci-<id>`, `in-<inode>`, a comma-separated list of these, or a bare container id as old
/// clients send it.
pub fn parse_local(text: &[u8]) -> LocalData<'_> {
    let mut data = LocalData::default();
    for item in text.split(|&b| b == b',') {
        match item {
            [b'c', b'i', b'-', id @ ..] => data.container_id = id,
            [b'i', b'n', b'-', inode @ ..] => data.inode = parse_inode(inode),
            // Only as the whole text, not in a list.
            bare if bare.len() == text.len() => data.container_id = bare,
            _ => {}
        }
    }
    data
}

/// 0 is no inode.
fn parse_inode(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    // Unlike Go, the standard library takes a sign here.
    if text.starts_with('+') {
        return None;
    }
    text.parse().ok().filter(|&inode| inode != 0)
}

/// Reads a comma-separated list of `it-<bool>`, `cn-<container name>` and `pu-<pod uid>`.
pub fn parse_external(text: &[u8]) -> ExternalData<'_> {
    let mut data = ExternalData::default();
    for item in text.split(|&b| b == b',') {
        match item {
            [b'i', b't', b'-', word @ ..] => data.init = go_true(word),
            [b'c', b'n', b'-', name @ ..] => data.container_name = name,
            [b'p', b'u', b'-', uid @ ..] => data.pod_uid = uid,
            _ => {}
        }
    }
    data
}

/// The words that Go reads as true; all others are false, or wrong and then false too.
fn go_true(word: &[u8]) -> bool {
    matches!(word, b"1" | b"t" | b"T" | b"TRUE" | b"true" | b"True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_data() {
        for (text, container_id, inode) in [
            ("", "", None),
            ("ci-abc", "abc", None),
            ("abc", "abc", None),
            ("cid-abc", "cid-abc", None),
            ("in-77", "", Some(77)),
            ("in-0", "", None),
            ("in-x", "", None),
            ("in-+5", "", None),
            ("in-18446744073709551615", "", Some(u64::MAX)),
            ("in-18446744073709551616", "", None),
            ("in-77,ci-abc", "abc", Some(77)),
            ("abc,def", "", None),
            ("abc,", "", None),
            (",ci-a", "a", None),
        ] {
            let expected = LocalData { container_id: container_id.as_bytes(), inode };
            assert_eq!(parse_local(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn external_data() {
        for (text, init, container_name, pod_uid) in [
            ("", false, "", ""),
            ("it-true,cn-web,pu-1f2e", true, "web", "1f2e"),
            ("it-false,cn-Web", false, "Web", ""),
            ("it-yes,xx-1,pu-", false, "", ""),
        ] {
            let expected = ExternalData {
                init,
                container_name: container_name.as_bytes(),
                pod_uid: pod_uid.as_bytes(),
            };
            assert_eq!(parse_external(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn cardinalities() {
        assert_eq!(Cardinality::parse(b"none"), Some(Cardinality::None));
        assert_eq!(Cardinality::parse(b"Low"), Some(Cardinality::Low));
        assert_eq!(Cardinality::parse(b"orch"), Some(Cardinality::Orchestrator));
        assert_eq!(Cardinality::parse(b"ORCHESTRATOR"), Some(Cardinality::Orchestrator));
        assert_eq!(Cardinality::parse(b"high"), Some(Cardinality::High));
        for text in ["", "bogus", "hig", "high "] {
            assert_eq!(Cardinality::parse(text.as_bytes()), None, "{text}");
        }
    }
}
