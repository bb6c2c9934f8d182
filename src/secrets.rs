//! Secrets that a program of the operator's gives: the Agent's `secret_backend_command`.
//!
//! A value `ENC[HANDLE]` stands for what that program answers for HANDLE. It is asked once, at the
//! start, for all of them. Errors name handles, and never a value.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::sys;

/// Where values written as `ENC[HANDLE]` come from: keys and addresses of proxies may be written so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Path of the program that is asked for secrets: JSON in, JSON out, as the Agent's
    /// secret_backend_command. It belongs to root or to the user of tallyd, and nobody else may
    /// write it.
    pub command: String,
    /// Its arguments. Shown as stars.
    pub arguments: Vec<String>,
    /// Seconds it may take.
    pub timeout: u64,
    /// Bytes that it may write.
    pub output_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { command: String::new(), arguments: Vec::new(), timeout: 30, output_max: 1024 * 1024 }
    }
}

/// The handle in a text `ENC[HANDLE]`.
pub fn handle(text: &str) -> Option<&str> {
    text.trim().strip_prefix("ENC[")?.strip_suffix(']')
}

/// What the program writes: a value or an error for each handle.
type Answer = BTreeMap<String, Secret>;

#[derive(Deserialize)]
struct Secret {
    value: Option<String>,
    error: Option<String>,
}

/// Asks the program for these handles. To be called before the process has threads that it would
/// have to wait for.
///
/// # Errors
/// In one line, when it cannot be trusted or run, or does not give every value.
pub fn fetch(
    config: &Config,
    handles: &BTreeSet<String>,
) -> anyhow::Result<BTreeMap<String, String>> {
    let command = Path::new(&config.command);
    trusted(command).with_context(|| format!("cannot run {}", command.display()))?;
    let question = serde_json::json!({"version": "1.0", "secrets": handles}).to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async {
        let asked = ask(config, question.as_bytes());
        let answer = tokio::time::timeout(Duration::from_secs(config.timeout), asked).await;
        answer.unwrap_or_else(|_| bail!("no answer within {} s", config.timeout))
    });
    let answer = answer.with_context(|| command.display().to_string())?;
    values(&answer, handles).with_context(|| command.display().to_string())
}

/// Whoever may write the program may read what it is asked for.
fn trusted(command: &Path) -> anyhow::Result<()> {
    let file = fs::metadata(command)?;
    ensure!(file.is_file(), "it is no file");
    let own = sys::user();
    ensure!([0, own].contains(&file.uid()), "it belongs neither to root nor to the user {own}");
    ensure!(file.mode() & 0o022 == 0, "others than its owner may write it");
    Ok(())
}

/// Runs the program, which gets the question, and returns what it writes. What it says on standard
/// error may hold secrets and goes nowhere. It is killed when nobody waits for it any more.
async fn ask(config: &Config, question: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut program = Command::new(&config.command)
        .args(&config.arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot be run")?;
    let (Some(mut stdin), Some(stdout)) = (program.stdin.take(), program.stdout.take()) else {
        bail!("cannot be talked to");
    };
    let tell = async move {
        // One that needs no question may not read it.
        let _ = stdin.write_all(question).await;
    };
    let mut answer = Vec::new();
    let mut bounded = stdout.take(config.output_max as u64 + 1);
    let (read, ()) = tokio::join!(bounded.read_to_end(&mut answer), tell);
    read.context("cannot be read")?;
    ensure!(answer.len() <= config.output_max, "writes more than {} bytes", config.output_max);
    let status = program.wait().await?;
    ensure!(status.success(), "fails ({status}); run it by hand to see why");
    Ok(answer)
}

/// Takes the values out of an answer. What is around them is no secret.
fn values(answer: &[u8], handles: &BTreeSet<String>) -> anyhow::Result<BTreeMap<String, String>> {
    // The parser's own words may repeat a value.
    let mut answer: Answer = serde_json::from_slice(answer).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        anyhow!(
            "expected {{\"HANDLE\": {{\"value\": TEXT, \"error\": TEXT or null}}}}, found something \
             else at line {line} column {column}"
        )
    })?;
    let value = |handle: &String| {
        let Some(secret) = answer.remove(handle) else { bail!("gives nothing for {handle}") };
        if let Some(error) = secret.error.filter(|error| !error.is_empty()) {
            let repeats = secret.value.is_some_and(|v| !v.is_empty() && error.contains(&v));
            let error: String = error.chars().filter(|c| !c.is_control()).take(200).collect();
            bail!("has no {handle}: {}", if repeats { "an error" } else { &error });
        }
        let value = secret.value.unwrap_or_default().trim().to_owned();
        ensure!(!value.is_empty(), "gives an empty value for {handle}");
        ensure!(self::handle(&value).is_none(), "gives another ENC[...] for {handle}");
        Ok((handle.clone(), value))
    };
    handles.iter().map(value).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn handles(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn handles_are_what_stands_in_the_brackets() {
        for (text, expected) in [
            ("ENC[a]", Some("a")),
            (" ENC[a b/c]\n", Some("a b/c")),
            ("ENC[]", Some("")),
            ("ENC[a", None),
            ("xENC[a]", None),
            ("enc[a]", None),
            ("", None),
        ] {
            assert_eq!(handle(text), expected, "{text:?}");
        }
    }

    #[test]
    fn answers() {
        let wanted = handles(&["a", "b"]);
        let asked = |text: &str| match values(text.as_bytes(), &wanted) {
            Ok(values) => values.into_values().collect::<Vec<_>>().join(","),
            Err(error) => error.to_string(),
        };
        let shape = "expected {\"HANDLE\": {\"value\": TEXT, \"error\": TEXT or null}}, found \
                     something else at line 1 column ";
        for (answer, expected) in [
            (
                r#"{"a":{"value":"s3cret","error":null},"b":{"value":" x\n"}}"#,
                "s3cret,x".to_owned(),
            ),
            (r#"{"a":{"value":"s3cret"}}"#, "gives nothing for b".to_owned()),
            (
                r#"{"a":{"value":"s3cret","error":"not\nfound"},"b":{"value":"x"}}"#,
                "has no a: notfound".to_owned(),
            ),
            (
                r#"{"a":{"value":"s3cret","error":"s3cret is wrong"},"b":{"value":"x"}}"#,
                "has no a: an error".to_owned(),
            ),
            (
                r#"{"a":{"value":"s3cret"},"b":{"value":" "}}"#,
                "gives an empty value for b".to_owned(),
            ),
            (
                r#"{"a":{"value":"ENC[s3cret]"},"b":{"value":"x"}}"#,
                "gives another ENC[...] for a".to_owned(),
            ),
            (r#"{"a":"s3cret"}"#, format!("{shape}13")),
            ("s3cret", format!("{shape}1")),
            ("", format!("{shape}0")),
        ] {
            assert_eq!(asked(answer), expected, "{answer}");
        }
    }

    /// A program of this shell script.
    fn program(folder: &tempfile::TempDir, script: &str, mode: u32) -> Config {
        let path = folder.path().join("backend");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        Config { command: path.display().to_string(), timeout: 9, ..Config::default() }
    }

    #[test]
    fn a_program_gets_the_handles_and_gives_the_values() {
        let folder = tempfile::tempdir().unwrap();
        let script = r#"cat >"$1"; echo '{"a":{"value":"s3cret","error":null}}'"#;
        let question = folder.path().join("question");
        let mut config = program(&folder, script, 0o700);
        config.arguments = vec![question.display().to_string()];
        let values = fetch(&config, &handles(&["a"])).unwrap();
        assert_eq!(values.into_iter().collect::<Vec<_>>(), [("a".to_owned(), "s3cret".to_owned())]);
        let question = fs::read_to_string(question).unwrap();
        assert_eq!(question, r#"{"version":"1.0","secrets":["a"]}"#);
    }

    #[test]
    fn programs_that_fail() {
        let folder = tempfile::tempdir().unwrap();
        let answer = r#"echo '{"a":{"value":"s3cret"}}'"#;
        for (script, mode, expected) in [
            (answer, 0o722, "others than its owner may write it"),
            (answer, 0o702, "others than its owner may write it"),
            ("echo s3cret >&2; echo s3cret; exit 3", 0o700, "fails (exit status: 3)"),
            ("exec sleep 60", 0o700, "no answer within 1 s"),
            ("exec >&-; exec sleep 60", 0o700, "no answer within 1 s"),
            ("exec yes s3cret", 0o700, "writes more than 100 bytes"),
            ("echo s3cret", 0o700, "found something else at line 1 column 1"),
        ] {
            let config = program(&folder, script, mode);
            let config = Config { timeout: 1, output_max: 100, ..config };
            let error = format!("{:#}", fetch(&config, &handles(&["a"])).unwrap_err());
            assert!(error.contains(expected), "{script}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
        let missing = Config { command: "/no/such/program".to_owned(), ..Config::default() };
        let error = format!("{:#}", fetch(&missing, &handles(&["a"])).unwrap_err());
        assert!(error.starts_with("cannot run /no/such/program: No such file"), "{error}");
    }
}
