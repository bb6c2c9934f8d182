//! What is read of the engine's answers: few fields, each of which an engine may leave out, send as
//! `null`, or send with words that are not known yet. An entry of a list that cannot be read costs
//! only itself.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::time::Time;

/// One entry of `/containers/json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Listed {
    pub id: String,
    #[serde(deserialize_with = "nullable")]
    pub names: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub image: String,
    #[serde(rename = "ImageID", deserialize_with = "nullable")]
    pub image_id: String,
    #[serde(deserialize_with = "nullable")]
    pub command: String,
    #[serde(deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub state: String,
    /// Text for people, such as `Up 9 seconds (unhealthy)`.
    #[serde(deserialize_with = "nullable")]
    pub status: String,
    /// Left out when it is 0, and unless sizes were asked for.
    pub size_rw: Option<u64>,
    pub size_root_fs: Option<u64>,
}

/// `/containers/{id}/json`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Inspected {
    pub id: String,
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// The id of the image.
    #[serde(deserialize_with = "nullable")]
    pub image: String,
    #[serde(deserialize_with = "nullable")]
    pub path: String,
    #[serde(deserialize_with = "nullable")]
    pub args: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub restart_count: u64,
    #[serde(deserialize_with = "nullable")]
    pub state: InspectedState,
    #[serde(deserialize_with = "nullable")]
    pub config: InspectedConfig,
    #[serde(deserialize_with = "nullable")]
    pub host_config: HostConfig,
    #[serde(deserialize_with = "nullable")]
    pub network_settings: NetworkSettings,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct InspectedState {
    #[serde(deserialize_with = "nullable")]
    pub status: String,
    /// 0 when nothing runs.
    #[serde(deserialize_with = "nullable")]
    pub pid: u32,
    #[serde(deserialize_with = "nullable")]
    pub started_at: String,
    pub health: Option<InspectedHealth>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct InspectedHealth {
    #[serde(deserialize_with = "nullable")]
    pub status: String,
    #[serde(deserialize_with = "nullable")]
    pub failing_streak: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct InspectedConfig {
    #[serde(deserialize_with = "nullable")]
    pub image: String,
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HostConfig {
    #[serde(deserialize_with = "nullable")]
    pub network_mode: String,
    /// 0 is the default of 1024.
    #[serde(deserialize_with = "nullable")]
    pub cpu_shares: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetworkSettings {
    #[serde(deserialize_with = "nullable")]
    pub networks: BTreeMap<String, Network>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Network {
    #[serde(rename = "IPAddress", deserialize_with = "nullable")]
    pub address: String,
    #[serde(rename = "GlobalIPv6Address", deserialize_with = "nullable")]
    pub address6: String,
}

/// One entry of `/images/json`, and the part of `/images/{name}/json` that names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Image {
    pub id: String,
    #[serde(deserialize_with = "nullable")]
    pub repo_tags: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub repo_digests: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub size: u64,
    /// Not sent from API 1.44 on.
    pub virtual_size: Option<u64>,
}

/// `/volumes`, of which only the number counts.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Volumes {
    #[serde(deserialize_with = "nullable")]
    pub volumes: Vec<serde::de::IgnoredAny>,
}

/// `/info`: the machine's size, and what the storage driver says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Info {
    pub mem_total: Option<u64>,
    #[serde(rename = "NCPU")]
    pub processors: Option<u32>,
    #[serde(deserialize_with = "nullable")]
    pub driver_status: Vec<Vec<String>>,
}

/// `/system/df`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DiskUsage {
    #[serde(deserialize_with = "nullable")]
    pub layers_size: u64,
    #[serde(deserialize_with = "nullable")]
    pub images: Vec<UsedImage>,
    #[serde(deserialize_with = "nullable")]
    pub containers: Vec<Listed>,
    #[serde(deserialize_with = "nullable")]
    pub volumes: Vec<UsedVolume>,
    #[serde(deserialize_with = "nullable")]
    pub build_cache: Vec<UsedCache>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct UsedImage {
    /// Containers that use it; -1 when that was not counted.
    #[serde(deserialize_with = "nullable")]
    pub containers: i64,
    #[serde(deserialize_with = "nullable")]
    pub size: i64,
    #[serde(deserialize_with = "nullable")]
    pub shared_size: i64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct UsedVolume {
    #[serde(deserialize_with = "nullable")]
    pub usage_data: VolumeUsage,
}

/// -1 stands for "not known".
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct VolumeUsage {
    #[serde(deserialize_with = "nullable")]
    pub size: i64,
    #[serde(deserialize_with = "nullable")]
    pub ref_count: i64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct UsedCache {
    #[serde(deserialize_with = "nullable")]
    pub size: i64,
    #[serde(deserialize_with = "nullable")]
    pub in_use: bool,
    #[serde(deserialize_with = "nullable")]
    pub shared: bool,
}

/// `/containers/{id}/stats`. cgroup v1 and v2 differ in the keys and in the case of the words.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Stats {
    #[serde(deserialize_with = "nullable")]
    pub pids_stats: PidsStats,
    #[serde(deserialize_with = "nullable")]
    pub cpu_stats: CpuStats,
    #[serde(deserialize_with = "nullable")]
    pub memory_stats: MemoryStats,
    #[serde(deserialize_with = "nullable")]
    pub blkio_stats: BlkioStats,
    /// Absent for a container in the host's network.
    #[serde(deserialize_with = "nullable")]
    pub networks: BTreeMap<String, InterfaceStats>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PidsStats {
    pub current: Option<u64>,
    /// 2^64 - 1 stands for "no limit" on cgroup v2.
    pub limit: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct CpuStats {
    #[serde(deserialize_with = "nullable")]
    pub cpu_usage: CpuUsage,
    #[serde(deserialize_with = "nullable")]
    pub throttling_data: Throttling,
}

/// Nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct CpuUsage {
    pub total_usage: Option<u64>,
    pub usage_in_usermode: Option<u64>,
    pub usage_in_kernelmode: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Throttling {
    pub periods: Option<u64>,
    pub throttled_periods: Option<u64>,
    /// Nanoseconds.
    pub throttled_time: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct MemoryStats {
    pub usage: Option<u64>,
    pub max_usage: Option<u64>,
    pub failcnt: Option<u64>,
    /// The host's memory when the container has no limit.
    pub limit: Option<u64>,
    #[serde(deserialize_with = "nullable")]
    pub stats: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct BlkioStats {
    #[serde(deserialize_with = "nullable")]
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    #[serde(deserialize_with = "nullable")]
    pub io_serviced_recursive: Vec<BlkioEntry>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct BlkioEntry {
    #[serde(deserialize_with = "nullable")]
    pub op: String,
    #[serde(deserialize_with = "nullable")]
    pub value: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct InterfaceStats {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// One line of `/events`, as sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct WireEvent {
    /// Old engines say `status`, `id` and `from` only.
    pub status: Option<String>,
    pub id: Option<String>,
    pub from: Option<String>,
    #[serde(rename = "Type")]
    pub kind: Option<String>,
    #[serde(rename = "Action")]
    pub action: Option<String>,
    #[serde(rename = "Actor", deserialize_with = "nullable")]
    pub actor: Actor,
    pub time: Option<i64>,
    /// The whole time in nanoseconds, not the fraction alone.
    #[serde(rename = "timeNano")]
    pub time_nano: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Actor {
    #[serde(rename = "ID", deserialize_with = "nullable")]
    pub id: String,
    #[serde(rename = "Attributes", deserialize_with = "nullable")]
    pub attributes: BTreeMap<String, String>,
}

/// The text of an error answer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Refusal {
    pub message: String,
}

/// Reads a list, leaving out entries that cannot be read; the second figure is how many.
///
/// # Errors
///
/// The text is no JSON list.
pub fn list<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<(Vec<T>, usize)> {
    let entries: Option<Vec<&RawValue>> = serde_json::from_slice(json)?;
    let entries = entries.unwrap_or_default();
    let all = entries.len();
    let read: Vec<T> =
        entries.iter().filter_map(|entry| serde_json::from_str(entry.get()).ok()).collect();
    let bad = all - read.len();
    Ok((read, bad))
}

/// `null` is as good as nothing.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A time as the engine writes it, `2026-11-21T21:46:23.006915423Z`, or with an offset as Podman
/// does. The zero time of the engine's language, year 1, means "never".
pub fn time(text: &str) -> Option<Time> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let rest = text.get(19..)?;
    let zone = rest.find(['Z', '+', '-'])?;
    let fraction =
        rest[..zone].trim_start_matches('.').get(..3).map_or(Some(0), |ms| ms.parse().ok());
    let offset = match rest[zone..].split_at_checked(1)? {
        ("Z", "") => 0,
        (sign, offset) => {
            let (hours, minutes) = offset.split_once(':')?;
            let seconds =
                hours.parse::<u8>().ok()? as i64 * 3600 + minutes.parse::<u8>().ok()? as i64 * 60;
            if sign == "-" { -seconds } else { seconds }
        }
    };
    // Days since 1970-01-01 in the proleptic Gregorian calendar; the year begins in March, so that
    // the leap day is its last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - offset;
    Some(Time(seconds * 1000 + fraction?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        // Seconds by date(1).
        for (text, ms) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2026-11-21T21:46:23.006915423Z", Some(1_795_297_583_006)),
            ("2026-11-21T23:46:23.5+02:00", Some(1_795_297_583_000)),
            ("2026-11-21T19:16:23.500-02:30", Some(1_795_297_583_500)),
            ("2000-02-29T12:00:00Z", Some(951_825_600_000)),
            ("2000-03-01T00:00:00Z", Some(951_868_800_000)),
            ("2100-03-01T00:00:00Z", Some(4_107_542_400_000)),
            ("0001-01-01T00:00:00Z", None),
            ("2026-11-21", None),
            ("2026-13-21T21:46:23Z", None),
            ("2026-11-21T21:46:23", None),
            ("2026-11-21T21:46:23+x", None),
            ("é026-11-21T21:46:23Z", None),
            ("", None),
        ] {
            assert_eq!(time(text), ms.map(Time), "{text}");
        }
    }

    #[test]
    fn a_bad_entry_costs_only_itself() {
        let text = br#"[{"Id":"a"}, {"Id":1}, null, {"Id":"b","Labels":null,"New":{}}]"#;
        let (read, bad) = list::<Listed>(text).expect("a list");
        assert_eq!(read.iter().map(|c| &*c.id).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(bad, 2);
        assert_eq!(list::<Listed>(b"null").expect("nothing").0, []);
        assert!(list::<Listed>(b"{}").is_err());
    }

    #[test]
    fn the_largest_number_is_read() {
        let text = r#"{"pids_stats":{"current":1,"limit":18446744073709551615}}"#;
        let stats: Stats = serde_json::from_str(text).expect("stats");
        assert_eq!(stats.pids_stats.limit, Some(u64::MAX));
    }
}
