//! `lockstep guest`: makes guest images of Debian packages, lists them, and says where they are.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use guest_images::cache::{Cache, CacheError, Guest};
use guest_images::recipe::{FLAVOURS, RECIPES, build, is_known};

use crate::config::MINIKV;

/// Options of `lockstep guest`.
#[derive(Debug, Args)]
#[command(after_help = format!("Images that can be built:
{}Each with another of Debian's kernels: NAME-KERNEL. Kernels:
{}
minikv is embedded and need not be built. A built image is used by --guest NAME.

Examples:
  lockstep guest build busybox
  lockstep guest build busybox-generic
  lockstep guest list
  lockstep run --guest busybox", recipes(), kernels()))]
pub struct GuestArgs {
    /// Directory of guest images; $XDG_CACHE_HOME/lockstep or ~/.cache/lockstep without it.
    #[arg(long, value_name = "DIR", global = true)]
    pub cache: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub action: GuestAction,
}

/// What `lockstep guest` does.
#[derive(Debug, Subcommand)]
pub enum GuestAction {
    /// Make an image of Debian packages. Needs apt and dpkg, but neither root nor KVM.
    Build {
        /// Which; `lockstep guest --help` lists them.
        name: String,
    },
    /// List the images that were built.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the directory of an image.
    Path {
        /// A name, which stands for the image built last, or one of `lockstep guest list`.
        name: String,
    },
}

/// Runs the command.
pub fn run(args: &GuestArgs) -> anyhow::Result<u8> {
    let cache = Cache::new(args.cache.as_deref())?;
    match &args.action {
        GuestAction::Build { name } => {
            let guest = build(&cache, name, &mut |text| eprintln!("lockstep: {text}"))
                .with_context(|| format!("cannot build the guest image {name}"))?;
            println!("{}", guest.directory.display());
        }
        GuestAction::List { json: true } => {
            println!("{}", serde_json::to_string_pretty(&cache.list()?)?);
        }
        GuestAction::List { json: false } => list(&cache.list()?),
        GuestAction::Path { name } => {
            let guest = cache.find(name).map_err(|error| not_found(&cache, error))?;
            println!("{}", guest.directory.display());
        }
    }
    Ok(0)
}

/// What to do about a guest that is not there: which there are, how others are made, and how to bring one.
pub fn not_found(cache: &Cache, error: CacheError) -> anyhow::Error {
    let CacheError::Unknown { name, root } = &error else { return error.into() };
    let can_be_built = is_known(name);
    let built: Vec<String> =
        cache.list().unwrap_or_default().into_iter().map(|guest| guest.manifest.name).collect();
    let built: BTreeSet<String> = built.into_iter().chain([MINIKV.to_owned()]).collect();
    let there = built.into_iter().collect::<Vec<_>>().join(", ");
    let advice = match can_be_built {
        true => format!("it is made with: lockstep guest build {name}"),
        false => format!(
            "these can be made with `lockstep guest build NAME`:\n{}A guest of your own: --kernel FILE, and \
             --initrd, --cmdline and --disk-image as it needs them",
            recipes()
        ),
    };
    anyhow::anyhow!("there is no guest {name:?} in {}; there are: {there}; {advice}", root.display())
}

/// Builds a guest that is not there yet, or that older recipes made; minikv always is there.
pub fn build_if_missing(name: &str) -> anyhow::Result<()> {
    if name == MINIKV {
        return Ok(());
    }
    let cache = Cache::new(None)?;
    if !cache.find(name).is_ok_and(|guest| !guest.is_outdated()) {
        eprintln!("lockstep: building the guest image {name} of Debian packages (once)");
        build(&cache, name, &mut |text| eprintln!("  {text}"))
            .with_context(|| format!("cannot build the guest image {name}"))?;
    }
    Ok(())
}

fn list(guests: &[Guest]) {
    for guest in guests {
        let name = guest.directory.file_name().unwrap_or_default().to_string_lossy();
        let mark = if guest.current { '*' } else { ' ' };
        let manifest = &guest.manifest;
        let files = [Some(&manifest.kernel), manifest.initrd.as_ref(), manifest.disk.as_ref()];
        let bytes: u64 = files.iter().flatten().map(|file| file.bytes).sum();
        let old = if guest.is_outdated() { " (by another version of lockstep)" } else { "" };
        println!("{mark} {name:<32} {:>5} MiB   {}{old}", bytes.div_ceil(1 << 20), manifest.about);
    }
    if guests.is_empty() {
        println!("no images yet: lockstep guest build NAME makes one of");
        print!("{}", recipes());
    } else {
        println!("* stands for its name without the digest");
    }
}

fn recipes() -> String {
    RECIPES.iter().map(|recipe| format!("  {:<10} {}\n", recipe.name, recipe.about)).collect()
}

fn kernels() -> String {
    FLAVOURS.iter().map(|flavour| format!("  {:<10} {}\n", flavour.name, flavour.about)).collect()
}
