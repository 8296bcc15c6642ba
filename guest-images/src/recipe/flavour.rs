//! Debian's kernels: each image can be had with any of them.

use super::{RECIPES, Recipe};

/// One of Debian's kernels.
#[derive(Debug, Clone, Copy)]
pub struct Flavour {
    /// What follows the recipe's name and a dash in the name of an image that has it; the first of `FLAVOURS`
    /// is meant where nothing does.
    pub name: &'static str,
    /// The package that depends on the newest kernel of its kind.
    pub(super) package: &'static str,
    /// Which of its versions hang on this machine.
    pub(super) hangs: fn(&str) -> bool,
    /// One line about it.
    pub about: &'static str,
}

/// All of them.
pub const FLAVOURS: &[Flavour] = &[
    Flavour {
        name: "cloud",
        package: "linux-image-cloud-amd64",
        hangs: |_| false,
        about: "drivers for virtual machines alone; the default",
    },
    Flavour {
        name: "generic",
        package: "linux-image-amd64",
        hangs: |_| false,
        about: "Debian's standard kernel",
    },
    Flavour {
        name: "rt",
        package: "linux-image-rt-amd64",
        hangs: queues_irq_work_twice,
        about: "PREEMPT_RT; of 6.1 none newer than 6.1.190, which need a local APIC",
    },
];

/// Whether this version of a PREEMPT_RT kernel can hang where an interrupt work waits for the next tick, as
/// it does without a local APIC: RCU may then initialise and queue one that is queued. Linux 6.1.191 got the
/// change that allows it (b41642c87716), and 6.1.192 had not yet the one that mends it (61399e0c5410);
/// releases after 6.1 got both.
fn queues_irq_work_twice(version: &str) -> bool {
    let Some(rest) = version.strip_prefix("6.1.") else { return false };
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().is_ok_and(|patch: u32| patch >= 191)
}

/// What the image `name` is made by, if there is such a one: `RECIPE` or `RECIPE-FLAVOUR`.
pub(super) fn parse(name: &str) -> Option<(&'static Recipe, Flavour)> {
    let recipe = |name: &str| RECIPES.iter().find(|recipe| recipe.name == name);
    if let Some(recipe) = recipe(name) {
        return Some((recipe, FLAVOURS[0]));
    }
    let (start, end) = name.rsplit_once('-')?;
    let flavour = FLAVOURS[1..].iter().find(|flavour| flavour.name == end)?;
    Some((recipe(start)?, *flavour))
}

/// Whether an image of this name can be built.
pub fn is_known(name: &str) -> bool {
    parse(name).is_some()
}

#[cfg(test)]
#[path = "flavour_tests.rs"]
mod tests;
