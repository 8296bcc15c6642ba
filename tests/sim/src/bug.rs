//! Mistakes that can be planted, to see that the simulator finds them.
//!
//! None of them is in production code: each is made at a seam, by the driver around the protocol or by the
//! disk server's model, in the way in which a real driver or server would make it.

/// A planted mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Bug {
    /// The primary's driver takes an entry as acked once the transport has taken its bytes.
    AckBeforeReceipt,
    /// The primary's driver lets an output go when it is made.
    OutputBeforeAck,
    /// The backup's driver goes live when the claim is won, without the entries it has not executed yet.
    LiveBeforeLastEntry,
    /// The primary's driver answers its own claim.
    PrimarySkipsTestAndSet,
    /// The disk server executes requests of any generation.
    FenceNotChecked,
    /// The backup's driver acks entries whose data it has not read from the shared disk yet.
    AckBeforeRead,
    /// The disk server still executes what it reads from a connection whose owner has opened a later one.
    OldConnectionServed,
    /// The primary's driver lets the guest run on after it was handed over.
    RunsPastHandOver,
    /// The backup's driver takes being handed over to for having won.
    HandOverSkipsTestAndSet,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 9] = [
        Bug::AckBeforeReceipt,
        Bug::OutputBeforeAck,
        Bug::LiveBeforeLastEntry,
        Bug::PrimarySkipsTestAndSet,
        Bug::FenceNotChecked,
        Bug::AckBeforeRead,
        Bug::OldConnectionServed,
        Bug::RunsPastHandOver,
        Bug::HandOverSkipsTestAndSet,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Bug::AckBeforeReceipt => "ack-before-receipt",
            Bug::OutputBeforeAck => "output-before-ack",
            Bug::LiveBeforeLastEntry => "live-before-last-entry",
            Bug::PrimarySkipsTestAndSet => "primary-skips-test-and-set",
            Bug::FenceNotChecked => "fence-not-checked",
            Bug::AckBeforeRead => "ack-before-read",
            Bug::OldConnectionServed => "old-connection-served",
            Bug::RunsPastHandOver => "runs-past-hand-over",
            Bug::HandOverSkipsTestAndSet => "hand-over-skips-test-and-set",
        }
    }
}
