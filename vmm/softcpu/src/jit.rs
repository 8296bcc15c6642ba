//! How instructions are executed: translated or interpreted. It changes nothing that a guest could tell.

use std::arch::is_x86_feature_detected as host_has;

use crate::Cpu;
use crate::native::{Native, self_test};

/// Whether code is translated into the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Jit {
    /// Where the host can.
    #[default]
    On,
    /// Everything is interpreted.
    Off,
    /// Both, on two processors that are compared.
    Check,
}

/// Why this host's processor cannot execute translated code, if so: it has to be an x86-64-v2.
fn lacking() -> Option<String> {
    let parts = [
        ("CMPXCHG16B", host_has!("cmpxchg16b")),
        ("POPCNT", host_has!("popcnt")),
        ("SSE3", host_has!("sse3")),
        ("SSSE3", host_has!("ssse3")),
        ("SSE4.1", host_has!("sse4.1")),
        ("SSE4.2", host_has!("sse4.2")),
    ];
    let lacking: Vec<&str> = parts.iter().filter(|(_, there)| !there).map(|(name, _)| *name).collect();
    (!lacking.is_empty()).then(|| format!("the host's processor has no {}", lacking.join(", ")))
}

fn new_translator(runs: u32) -> Result<Box<Native>, String> {
    if let Some(why) = lacking() {
        return Err(why);
    }
    if self_test::found().astray {
        return Err("translated code does not on this host what interpreted code does".into());
    }
    Native::new(runs)
}

/// What the self-test of translated code says of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelfTest {
    /// Forms that are interpreted, since translated they leave something else here.
    pub refused: Vec<String>,
    /// Digest of what all forms leave.
    pub digest: u64,
    /// The same on other hosts.
    pub pinned: u64,
}

/// Has each form that is translated executed both ways, once per process; `None` where nothing can be
/// translated.
pub fn self_test() -> Option<SelfTest> {
    untranslatable().is_none().then(|| {
        let found = self_test::found();
        let refused = found.refused.iter().map(|code| format!("{code:?}")).collect();
        SelfTest { refused, digest: found.digest, pinned: self_test::PINNED }
    })
}

/// Why nothing can be translated on this host, if so.
pub fn untranslatable() -> Option<String> {
    new_translator(crate::THRESHOLD).err()
}

impl Cpu {
    /// Sets whether code is translated. Where the host does not let it, `untranslated` says why.
    pub fn set_jit(&mut self, jit: Jit) {
        self.jit = jit;
        self.set_translation((jit != Jit::Off).then_some(crate::THRESHOLD));
    }

    /// Blocks are translated to code of the host from their run number `runs` on; `None`: never. False where
    /// the host does not let them.
    pub fn set_translation(&mut self, runs: Option<u32>) -> bool {
        (self.native, self.untranslated) = match runs.map(new_translator) {
            Some(Ok(native)) => (Some(native), None),
            Some(Err(why)) => (None, Some(why)),
            None => (None, None),
        };
        self.set_perf_map(self.perf_map);
        self.drop_all_code();
        self.untranslated.is_none()
    }

    /// Why code is interpreted that was to be translated.
    pub fn untranslated(&self) -> Option<&str> {
        self.untranslated.as_deref()
    }

    /// Whether code is to be translated.
    pub fn jit(&self) -> Jit {
        self.jit
    }

    /// Sets whether translated code is listed for `perf`.
    pub fn set_perf_map(&mut self, on: bool) {
        self.perf_map = on;
        if let Some(native) = &mut self.native {
            native.set_perf_map(on);
        }
    }

    /// Whether translated code is to be listed for `perf`.
    pub fn perf_map(&self) -> bool {
        self.perf_map
    }
}
