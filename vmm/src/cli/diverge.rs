//! `lockstep diverge`
/// Options.
#[derive(Debug, clap::Args)]
pub struct DivergeArgs {}
/// Runs the command.
pub fn run(_: &DivergeArgs) -> anyhow::Result<u8> {
    Ok(0)
}
