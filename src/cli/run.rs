//! `tallyd run`, and `tallyd` alone.

use crate::config::{self, Loaded, Sources};
use crate::intake::{Passed, Untouched};
use crate::{logging, server, sys};

/// Runs until told to stop. Returns the exit code.
pub fn run(sources: &Sources) -> anyhow::Result<u8> {
    sys::set_up_allocator();
    let passed = Passed::receive()?;
    let loaded = match config::load(sources) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(config::EXIT_CODE);
        }
    };
    let mut loaded = loaded;
    if let Err(error) = loaded.config.resolve_secrets() {
        eprintln!("error: {error}");
        return Ok(config::EXIT_CODE);
    }
    logging::start(&loaded.config.logging)?;
    tracing::info!("tallyd {} starts", env!("CARGO_PKG_VERSION"));
    for file in &loaded.files {
        tracing::info!("read {}", file.display());
    }
    for note in &loaded.notes {
        tracing::info!("{note}");
    }
    server::run(&loaded.config, untouched(&loaded), passed)?;
    Ok(0)
}

/// A default listener is one whose settings nobody has given a value, be it the default's.
fn untouched(loaded: &Loaded) -> Untouched {
    let all = |paths: &[&str]| {
        let given = |path| {
            loaded.settings.iter().any(|s| s.path == path && s.source != config::Source::Default)
        };
        !paths.iter().any(|path| given(*path))
    };
    Untouched {
        udp: all(&[
            "intake.port",
            "intake.bind_host",
            "intake.non_local_traffic",
            "intake.udp_sockets",
        ]),
        socket: all(&["intake.socket"]),
        status: all(&["status.listen"]),
    }
}
