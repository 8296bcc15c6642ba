//! Debian's own clients: processes beside the cluster, what they say in files of its directory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, bail, ensure};
use lockstep::cluster::Cluster;

use crate::support::in_directory;

/// Whether `tool` is there; says so loudly if not.
pub fn have(tool: &str, package: &str, test: &str) -> bool {
    let started = Command::new(tool).arg("--version").stdin(Stdio::null()).output();
    if started.is_err() {
        eprintln!("SKIPPED {test}: no {tool} here: apt-get install {package}");
    }
    started.is_ok()
}

/// Runs until a tool is disturbed in time.
const MAX_ATTEMPTS: u32 = 3;

/// Runs `body` in a new directory until it says that what it was to disturb was under way. A host that pauses
/// a test for long enough lets it end first: then again.
pub fn until_disturbed(body: impl Fn(&Path) -> anyhow::Result<bool>) -> anyhow::Result<()> {
    for _ in 0..MAX_ATTEMPTS {
        if in_directory(&body)? {
            return Ok(());
        }
    }
    bail!("the load ended {MAX_ATTEMPTS} times before it could be disturbed")
}

/// A tool under way.
pub struct Tool {
    name: String,
    child: Child,
    directory: PathBuf,
}

impl Tool {
    /// Starts `program`; `name` is its own among those of the cluster.
    pub fn start(cluster: &Cluster, name: &str, program: &str, arguments: &[String]) -> anyhow::Result<Self> {
        let directory = cluster.directory().to_path_buf();
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(File::create(directory.join(format!("{name}.out")))?)
            .stderr(File::create(directory.join(format!("{name}.err")))?)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        Ok(Self { name: name.into(), child, directory })
    }

    /// Whether it has not ended yet.
    pub fn runs(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// What it has said so far: standard output, then its errors; a line that overwrote itself is many.
    pub fn said(&self) -> anyhow::Result<String> {
        let text = |kind: &str| std::fs::read_to_string(self.directory.join(format!("{}.{kind}", self.name)));
        Ok(format!("{}\n{}", text("out")?, text("err")?).replace('\r', "\n"))
    }

    /// Waits for its normal end: exit code 0, and nothing said of an error. What it said.
    pub fn finish(mut self, cluster: &mut Cluster) -> anyhow::Result<String> {
        let mut status: Option<ExitStatus> = None;
        let waited = cluster.wait(&self.name, |_| {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        });
        let said = self.said()?;
        waited.with_context(|| said.clone())?;
        let status = status.context("it ended")?;
        ensure!(
            status.success() && !said.to_lowercase().contains("error"),
            "{}: {status}:\n{said}",
            self.name
        );
        Ok(said)
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        // Not if it ended: it was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
