//! The command line: one file per subcommand.

mod capture;
mod check;
mod client;
pub mod config;
mod doctor;
mod dry_run;
mod health;
mod names;
mod run;
mod send;
mod stats;
mod tap;
mod top;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::Sources;
use crate::logging::one_line;

/// A statsd and DogStatsD compatible aggregation server. Without a command it runs.
#[derive(Debug, Parser)]
#[command(name = "tallyd", version, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    configuration: Configuration,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Where settings come from besides their defaults and the environment.
#[derive(Debug, Args)]
struct Configuration {
    /// Read this file instead of /etc/tallyd/tallyd.yaml.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Read this Datadog Agent file instead of /etc/datadog-agent/datadog.yaml.
    #[arg(long, global = true, value_name = "FILE")]
    datadog_config: Option<PathBuf>,
    /// Change one setting, such as intake.port=8135; may be repeated.
    #[arg(long, global = true, value_name = "SETTING=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Receive, aggregate and deliver until told to stop.
    Run,
    /// Send one metric, event or service check to a running server.
    Send(send::Send),
    /// Check the configuration, or this file, and open nothing.
    Check {
        /// A tallyd.yaml.
        file: Option<PathBuf>,
    },
    /// Print every setting with its value, where it comes from, and what it means.
    Config {
        /// Print JSON instead of YAML.
        #[arg(long)]
        json: bool,
        /// Print what becomes of the Agent's settings and variables instead.
        #[arg(long, conflicts_with = "json")]
        agent_keys: bool,
    },
    /// Say what is found of sockets, mounts, namespaces, cgroups and engine, and which flag is
    /// missing: exit code 0 or 1.
    Doctor {
        /// Print JSON instead of lines.
        #[arg(long)]
        json: bool,
    },
    Top(top::Top),
    Stats(stats::Stats),
    Tap(tap::Tap),
    Cost(dry_run::CostOf),
    Capture(capture::Capture),
    Replay(capture::Replay),
    Diff(dry_run::Diff),
    /// Ask a running server whether it is up: exit code 0 or 1.
    Health {
        /// Its address; the configured one when left out.
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
    },
}

impl Configuration {
    fn sources(self) -> Sources {
        Sources {
            config_file: self.config,
            datadog_file: self.datadog_config,
            environment: std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
            overrides: self.set,
            search_default_places: true,
        }
    }
}

/// Runs the program on the process's own arguments.
///
/// Exit codes: 0; 1 for what failed at run time; 2 for wrong arguments; 78 for a wrong
/// configuration.
pub fn main() -> ExitCode {
    let Arguments { configuration, command } = Arguments::parse();
    let mut sources = configuration.sources();
    let result = match command.unwrap_or(Command::Run) {
        Command::Run => run::run(&sources),
        Command::Send(send) => send.run(),
        Command::Check { file } => {
            sources.config_file = file.or(sources.config_file);
            check::run(&sources, &mut io::stdout(), &mut io::stderr()).map_err(Into::into)
        }
        Command::Config { agent_keys: true, .. } => {
            config::agent_keys(&mut io::stdout()).map(|()| 0).map_err(Into::into)
        }
        Command::Config { json, .. } => {
            config::run(&sources, json, &mut io::stdout(), &mut io::stderr()).map_err(Into::into)
        }
        Command::Doctor { json } => {
            doctor::run(&sources, json, &mut io::stdout()).map_err(Into::into)
        }
        Command::Top(top) => top.run(&sources),
        Command::Stats(stats) => stats.run(&sources),
        Command::Tap(tap) => tap.run(&sources),
        Command::Cost(cost) => cost.run(&sources),
        Command::Capture(capture) => capture.run(&sources),
        Command::Replay(replay) => replay.run(),
        Command::Diff(diff) => diff.run(),
        Command::Health { address } => health::run(&sources, address),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Whoever reads standard error may have gone as well.
            let _ = io::Write::write_all(
                &mut io::stderr(),
                format!("error: {}\n", one_line(&error)).as_bytes(),
            );
            ExitCode::FAILURE
        }
    }
}
