//! Builds `minikv`, the bare-metal guest, and `cpubench`, a static Linux program, with the cargo that builds
//! this, and leaves their ELF files in `OUT_DIR`.
//!
//! They are compiled for the host's own Linux target, linked without any of the host's libraries: a
//! target without an operating system is one more thing to install, this one is always there. Its workspace
//! has a lock file of its own, whose packages are all among those of the outer one; so what was built offline
//! outside is built offline inside.
//!
//! Nothing of the outer build's environment may reach the guest: a `target-cpu=native`, a coverage flag or a
//! clippy driver would change the image, or make instructions that the guest must not have.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    println!("cargo::rerun-if-changed=build.rs");
    build(&manifest.join("minikv"), &out, "minikv", &["link.ld", "core/Cargo.toml", "core/src"]);
    build(&manifest.join("cpubench"), &out, "cpubench", &[]);
}

fn build(guest: &Path, out: &Path, name: &str, more: &[&str]) {
    for input in ["Cargo.toml", "Cargo.lock", "src"].iter().chain(more) {
        println!("cargo::rerun-if-changed={}", guest.join(input).display());
    }
    let target_dir = out.join(format!("{name}-target"));
    let available = cargo(guest, &target_dir)
        .args(["fetch", "--locked", "--offline", "--quiet", "--target", TARGET])
        .output()
        .is_ok_and(|output| output.status.success());
    let mut build = cargo(guest, &target_dir);
    build.args(["build", "--locked", "--release", "--bin", name, "--target", TARGET]);
    if available {
        build.arg("--offline");
    }
    let output = build.output().unwrap_or_else(|error| panic!("cannot start {build:?}: {error}"));
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        panic!("the guest program {name} does not build ({}):\n{text}", output.status);
    }
    let built = target_dir.join(TARGET).join("release").join(name);
    let image = out.join(format!("{name}.elf"));
    std::fs::copy(&built, &image)
        .unwrap_or_else(|error| panic!("cannot copy {} to {}: {error}", built.display(), image.display()));
}

/// A cargo that sees nothing of this one's settings.
fn cargo(guest: &Path, target_dir: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(guest);
    for (name, _) in env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        if leaks(text) {
            command.env_remove(&name);
        }
    }
    command.env("CARGO_TARGET_DIR", target_dir);
    command.env("CARGO_ENCODED_RUSTFLAGS", rustflags(guest).join("\x1f"));
    // The linker of the user's own configuration may not know the flags below.
    command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER", "cc");
    command.env("CARGO_INCREMENTAL", "0");
    command
}

/// Whether a variable could change what is built: compilers and wrappers, flags, profiles, targets, what
/// cargo tells build scripts of another package, and smoltcp's compile-time settings. Where cargo finds its
/// packages stays.
fn leaks(name: &str) -> bool {
    let kept = ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_HTTP_PROXY", "CARGO_HTTP_CAINFO"];
    if kept.contains(&name) || name.starts_with("CARGO_REGISTR") || name.starts_with("CARGO_SOURCE") {
        return false;
    }
    name.starts_with("CARGO")
        || name.starts_with("CLIPPY")
        || name.starts_with("SMOLTCP_")
        || name.starts_with("DEP_")
        || (name.starts_with("RUSTC") || name.starts_with("RUSTFLAGS") || name.starts_with("RUSTDOC"))
        || name == "__CARGO_DEFAULT_LIB_METADATA"
        || ["TARGET", "HOST", "PROFILE", "OPT_LEVEL", "DEBUG", "OUT_DIR", "NUM_JOBS"].contains(&name)
}

fn rustflags(guest: &Path) -> Vec<String> {
    let mut flags: Vec<String> = [
        "-Crelocation-model=static",
        "-Ccode-model=small",
        "-Ctarget-cpu=x86-64",
        "-Clink-arg=-nostartfiles",
        "-Clink-arg=-nostdlib",
        "-Clink-arg=-static",
        "-Clink-arg=-no-pie",
        "-Clink-arg=-Wl,--build-id=none",
        "-Clink-arg=-Wl,-z,max-page-size=4096",
        "-Clink-arg=-Wl,-z,noexecstack",
        "-Clink-arg=-Wl,-z,norelro",
    ]
    .map(String::from)
    .into();
    let script = guest.join("link.ld");
    if script.exists() {
        flags.push(format!("-Clink-arg=-Wl,-T,{}", script.display()));
    }
    // The same sources give the same image wherever they are: the two hosts of a pair compare its digest.
    flags.push(format!("--remap-path-prefix={}=guest", guest.display()));
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    if let Some(home) = home {
        flags.push(format!("--remap-path-prefix={}=cargo", home.display()));
    }
    flags
}
