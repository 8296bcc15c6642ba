//! Debian packages, by the distribution's own tools: `apt-get`, `apt-cache` and `dpkg-deb`. Nothing of it
//! needs root or changes the host: packages are fetched and unpacked into a directory of ours.
//!
//! apt checks the signature of its lists and the digest of each package. Where the host's lists are missing
//! or name packages that are gone, lists of our own are fetched beside the cache of guests.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// How much of a failed tool's messages is shown.
const SHOWN: usize = 2000;

/// Why packages cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AptError {
    /// The host has no such tools.
    #[error(
        "{tool} is not here: guest images are made of Debian packages, by Debian's own apt and dpkg. Build \
         them on Debian 12 or newer (a container will do: docker run debian:12), or give the guest's files \
         with --kernel and --initrd"
    )]
    NoTool {
        /// The program that is missing.
        tool: &'static str,
    },
    /// The host's distribution does not have it.
    #[error(
        "apt knows no package {package}: it is one of Debian's. Build guest images on Debian 12 or newer, or \
         give the guest's files with --kernel and --initrd"
    )]
    NoPackage {
        /// Its name.
        package: String,
    },
    /// A tool failed.
    #[error("{command} failed ({status}): {message}")]
    Failed {
        /// What was run.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it said.
        message: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A package that was fetched.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Package {
    /// Name of its file: package, version and architecture.
    pub file: String,
    /// BLAKE3 of the file.
    pub digest: String,
}

/// A package of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// Of each paragraph of `apt-cache show`, the package that is depended on in exactly one version and whose
/// name begins with `prefix`.
fn depended_on(paragraphs: &str, prefix: &str) -> Vec<Versioned> {
    let depends = paragraphs.lines().filter_map(|line| line.strip_prefix("Depends: "));
    depends
        .flat_map(|list| list.split(','))
        .filter_map(|depended| {
            let (name, version) = depended.trim().split_once(" (= ")?;
            let version = version.strip_suffix(')')?;
            name.starts_with(prefix).then(|| Versioned { name: name.into(), version: version.into() })
        })
        .collect()
}

/// Debian's package tools.
#[derive(Debug)]
pub struct Apt {
    /// Where lists of our own are, once the host's turn out not to do.
    lists: PathBuf,
    own_lists: bool,
}

impl Apt {
    /// The host's tools; `lists` is a directory for lists of our own.
    pub fn new(lists: &Path) -> Result<Self, AptError> {
        for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
            let found =
                Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            if found.is_err() {
                return Err(AptError::NoTool { tool });
            }
        }
        Ok(Self { lists: lists.to_path_buf(), own_lists: false })
    }

    /// What the versions of `package`, the newest first, depend on: of each the package whose name begins
    /// with `prefix`.
    pub fn dependencies(&mut self, package: &str, prefix: &str) -> Result<Vec<Versioned>, AptError> {
        let lines = self.with_lists(|apt| {
            let mut command = apt.command("apt-cache");
            run(command.args(["show", package]))
        });
        match lines {
            Err(AptError::Failed { .. }) => Err(AptError::NoPackage { package: package.into() }),
            lines => Ok(depended_on(&lines?, prefix)),
        }
    }

    /// The package that the newest version of `package` depends on and whose name begins with `prefix`.
    pub fn dependency(&mut self, package: &str, prefix: &str) -> Result<String, AptError> {
        let lines = self.with_lists(|apt| {
            let mut command = apt.command("apt-cache");
            run(command.args(["depends", "--important", package]))
        });
        let lines = match lines {
            Err(AptError::Failed { .. }) => return Err(AptError::NoPackage { package: package.into() }),
            lines => lines?,
        };
        let depends = lines.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        let found = depends.map(str::trim).find(|name| name.starts_with(prefix));
        found.map(String::from).ok_or_else(|| AptError::NoPackage { package: format!("{prefix}...") })
    }

    /// The files of `packages` and of all that they depend on, as apt would install them on a bare system.
    pub fn closure(&mut self, packages: &[&str]) -> Result<Vec<String>, AptError> {
        let lines = self.with_lists(|apt| {
            let mut command = apt.command("apt-get");
            command.args(["-y", "-o", "Dir::State::status=/dev/null", "--no-install-recommends"]);
            run(command.args(["--print-uris", "install"]).args(packages))
        })?;
        // 'http://host/path/name_version_arch.deb' name_version_arch.deb size digest
        let files = lines.lines().filter(|line| line.starts_with('\''));
        let mut names: Vec<String> = files
            .filter_map(|line| line.split_whitespace().nth(1))
            .filter_map(|file| {
                let (name, rest) = file.split_once('_')?;
                let (version, _) = rest.rsplit_once('_')?;
                Some(format!("{name}={}", version.replace("%3a", ":")))
            })
            .collect();
        names.sort();
        Ok(names)
    }

    /// Fetches packages (`name` or `name=version`) into `directory`; what was fetched, sorted.
    pub fn fetch(&mut self, packages: &[String], directory: &Path) -> Result<Vec<Package>, AptError> {
        self.with_lists(|apt| {
            let mut command = apt.command("apt-get");
            run(command.current_dir(directory).args(["-q", "download"]).args(packages))
        })?;
        let io = |source| AptError::Io { path: directory.to_path_buf(), source };
        let mut fetched = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                let bytes = std::fs::read(&path).map_err(io)?;
                let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                fetched.push(Package { file, digest: blake3::hash(&bytes).to_hex().to_string() });
            }
        }
        fetched.sort();
        Ok(fetched)
    }

    /// Unpacks a package's files into `into`, without running any of its scripts.
    pub fn unpack(&self, package: &Path, into: &Path) -> Result<(), AptError> {
        run(Command::new("dpkg-deb").arg("-x").arg(package).arg(into)).map(drop)
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        command.env("LC_ALL", "C").stdin(Stdio::null());
        if self.own_lists {
            let option = |name: &str, path: &str| format!("{name}={}", self.lists.join(path).display());
            command.arg("-o").arg(option("Dir::State::lists", "lists"));
            command.arg("-o").arg(option("Dir::Cache", "cache"));
        }
        command.args(["-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1"]);
        command
    }

    /// Tries with the host's lists; if that fails, fetches lists of our own and tries again.
    fn with_lists(&mut self, act: impl Fn(&Self) -> Result<String, AptError>) -> Result<String, AptError> {
        let first = act(self);
        if first.is_ok() || self.own_lists {
            return first;
        }
        for part in ["lists/partial", "cache/archives/partial"] {
            let path = self.lists.join(part);
            std::fs::create_dir_all(&path).map_err(|source| AptError::Io { path, source })?;
        }
        self.own_lists = true;
        run(self.command("apt-get").args(["-q", "update"]))?;
        act(self)
    }
}

/// Runs a tool to its end; what it printed.
pub(crate) fn run(command: &mut Command) -> Result<String, AptError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output: Output =
        command.output().map_err(|source| AptError::Io { path: name.clone().into(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let arguments = command.get_args().map(|argument| argument.to_string_lossy());
    let shown = std::iter::once(name.as_str().into()).chain(arguments).collect::<Vec<_>>().join(" ");
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.trim();
    let from = text.char_indices().rev().nth(SHOWN).map_or(0, |(at, _)| at);
    Err(AptError::Failed { command: shown, status: output.status, message: text[from..].to_string() })
}

#[cfg(test)]
#[path = "apt_tests.rs"]
mod tests;
