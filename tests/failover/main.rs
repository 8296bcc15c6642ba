//! Failovers of whole pairs: the real processes, a checked load, and the plug pulled at random moments.
//!
//! ```text
//!   failovers    each kind of fault at a random moment; then linearizable answers, every connection kept,
//!                one live copy, and the disk's image equal to what the clients read last
//!   redundancy   a new backup by state transfer, again and again; transfers that are cut off or hang
//!   backup_reads backups that read the disk themselves, one after the other; what the log is spared
//!   redis_tools  Debian's redis-cli and redis-benchmark, across a failover
//!   nginx        Linux with nginx, loaded by ab, wrk and curl across a failover
//!   session      a shell on a TCP connection, across a failover
//!   tiers        one half translates, the other interprets
//!   restart      everything killed at once and started again on the same disk
//! ```
//!
//! Three machines: minikv on KVM, minikv on the software engine, and Linux with redis there; and Linux once
//! more with a backup that reads the disk itself. By default 20, 7, 10 and 4 failovers, six minutes. Two
//! hundred, a hundred, and twenty while Linux boots:
//!
//! ```text
//!   LOCKSTEP_FAILOVERS=200 cargo test --release -p lockstep --test failover failovers_of_minikv_on_kvm -- \
//!       --nocapture
//!   LOCKSTEP_FAILOVERS=100 cargo test --release -p lockstep --test failover failovers_of_linux -- \
//!       --nocapture
//!   LOCKSTEP_FAILOVERS=20 LOCKSTEP_FAILOVER_KIND=Boot cargo test --release -p lockstep --test failover \
//!       failovers_of_linux -- --nocapture
//! ```
//!
//! `LOCKSTEP_FAILOVER_SEED` sets the first seed; a failure prints the line that repeats it, and keeps the
//! directory with the disk and the logs. Clusters run one at a time. What a host lacks for a machine (KVM,
//! the guest's image, e2fsprogs) skips that machine's tests.

mod aof;
mod backup_reads;
mod disk_tools;
mod failovers;
mod guest_time;
mod image;
mod load_run;
mod machine;
mod nginx;
mod proxy;
mod redis_tools;
mod redundancy;
mod restart;
mod session;
mod spin;
mod summary;
mod support;
mod tiers;
mod tools;
