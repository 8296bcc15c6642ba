//! `lockstep disk-server`: the same server as the binary `disk-server`.

/// Runs the command.
pub fn run(options: &disk_server::Options) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(disk_server::run(options.clone())) {
        Ok(()) => Ok(0),
        Err(error) => {
            eprintln!("lockstep: {}", host::errors::Chain(&error));
            Ok(error.exit_code())
        }
    }
}
