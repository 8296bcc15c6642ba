//! The control socket of a replay, for `lockstep status`.

use std::path::Path;
use std::sync::Arc;

use logchannel::pair::PairConfig;
use serde_json::json;

use crate::engine::EngineKind;
use crate::io::clock::HostClock;
use crate::io::control;
use crate::meter::Meter;
use crate::pair::threads::start;

/// Answers `status` at `path` until the process ends: of a replay of this machine, which tells `meter`.
pub fn serve_replay(path: &Path, machine: &PairConfig, meter: Arc<Meter>) -> anyhow::Result<()> {
    let socket = control::bind(path)?;
    let (vm, engine) = (machine.vm.clone(), EngineKind::named(&machine.engine));
    let started_ns = HostClock.now_ns();
    let looks = meter.clone();
    start("meter", move || looks.keep_looking())?;
    let answer = move |request: &str| {
        if request != "status" {
            return control::error("a replay answers status alone");
        }
        let now_ns = HostClock.now_ns();
        let mut status = json!({
            "role": "replay",
            "vm": vm,
            "pid": std::process::id(),
            "engine": engine.map(|engine| engine.to_string()),
            "uptime_s": (now_ns - started_ns) as f64 / 1e9,
        });
        if let Some(guest) = engine.and_then(|engine| meter.status(now_ns, engine.clock())) {
            status["guest"] = serde_json::to_value(guest).expect("plain data");
        }
        status.to_string()
    };
    start("control", move || control::serve(&socket, answer))?;
    Ok(())
}
