//! The groups of options in `--help`, the same for all commands.

/// What the machine is.
pub const MACHINE: &str = "Machine";
/// Its disk.
pub const DISK: &str = "Disk";
/// Its network.
pub const NETWORK: &str = "Network";
/// The other half.
pub const PAIR: &str = "Pair";
/// Looking into the guest.
pub const DEBUGGING: &str = "Debugging";
/// The log in a file.
pub const RECORDING: &str = "Recording";
