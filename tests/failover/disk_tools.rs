//! File systems in images, read and changed by Debian's e2fsprogs without mounting them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

/// Of e2fsprogs, which making a guest's disk needs too.
const TOOLS: [&str; 2] = ["e2fsck", "debugfs"];

/// What is needed and is not here.
pub fn missing() -> Option<String> {
    let runs = |tool: &&str| {
        let found = Command::new(tool).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.is_ok_and(|status| status.success())
    };
    let missing = TOOLS.iter().find(|tool| !runs(tool))?;
    Some(format!("no {missing} here: apt-get install e2fsprogs"))
}

/// A disk's image is mostly holes.
pub fn copy_sparse(from: &Path, to: &Path) -> anyhow::Result<()> {
    const BLOCK: usize = 64 << 10;
    let mut source = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
    let mut target = File::create(to)?;
    target.set_len(source.metadata()?.len())?;
    let mut block = vec![0; BLOCK];
    loop {
        let count = source.read(&mut block)?;
        if count == 0 {
            return Ok(());
        }
        match block[..count].iter().all(|&byte| byte == 0) {
            true => drop(target.seek(SeekFrom::Current(count as i64))?),
            false => target.write_all(&block[..count])?,
        }
    }
}

/// Replays the journal and checks what it left: a file system whose writes were all done up to a moment, and
/// none after it, needs no repair.
pub fn check_file_system(image: &Path) -> anyhow::Result<()> {
    let output = Command::new("e2fsck").args(["-f", "-p"]).arg(image).output()?;
    // e2fsck(8): 1 says that what a journal is for was done.
    let sound = matches!(output.status.code(), Some(0 | 1));
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(sound, "e2fsck: {}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Has debugfs do `requests` to an image, one after the other; what it complained of, since its exit code
/// says nothing.
pub fn debugfs(image: &Path, write: bool, requests: &[String]) -> anyhow::Result<String> {
    let mut command = Command::new("debugfs");
    command.args(write.then_some("-w")).args(["-f", "-"]).arg(image).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("debugfs")?;
    child.stdin.take().context("it is piped")?.write_all((requests.join("\n") + "\n").as_bytes())?;
    Ok(format!("debugfs: {}", String::from_utf8_lossy(&child.wait_with_output()?.stderr)))
}
