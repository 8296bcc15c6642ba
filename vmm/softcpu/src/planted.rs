//! Mistakes that tests plant: decoded code that outlives a write to its bytes, and those of a translator that
//! differs from the interpreter.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use iced_x86::Code;

use crate::Cpu;
use crate::ram::PAGE;

/// Code that the guest has overwritten and the processor still executes.
pub struct StaleCode {
    /// From this position on the guest's writes drop no decoded code.
    from: u64,
    /// Pages as they were when the first of their writes was lost.
    pages: BTreeMap<u64, Vec<u8>>,
}

impl Default for StaleCode {
    fn default() -> Self {
        Self { from: u64::MAX, pages: BTreeMap::new() }
    }
}

impl StaleCode {
    /// Makes of bytes read at `gpa`, all of one page, what the processor takes them for.
    pub(crate) fn show(&self, gpa: u64, bytes: &mut [u8]) {
        let offset = (gpa % PAGE) as usize;
        if let Some(was) =
            self.pages.get(&(gpa / PAGE)).and_then(|page| page.get(offset..offset + bytes.len()))
        {
            bytes.copy_from_slice(was);
        }
    }

    /// The page's code is dropped after all.
    pub(crate) fn forget(&mut self, gpa: u64) {
        self.pages.remove(&(gpa / PAGE));
    }
}

impl Cpu {
    /// Plants it: from a position on, writes of the guest drop no code that was decoded from their page.
    pub fn lose_invalidations_from(&mut self, position: u64) {
        self.stale.from = position;
    }

    /// Whether the guest's write to code at `gpa`, which is next, drops nothing.
    pub(crate) fn loses_invalidation(&mut self, gpa: u64) -> bool {
        if self.retired < self.stale.from {
            return false;
        }
        let (first, ram) = (gpa - gpa % PAGE, &self.ram);
        self.stale.pages.entry(gpa / PAGE).or_insert_with(|| {
            let mut page = vec![0; PAGE as usize];
            ram.read(first, &mut page);
            page
        });
        true
    }
}

static ODD_FORM: OnceLock<Code> = OnceLock::new();

/// Plants it: this process' translators make nothing of a form that they copy, named as by
/// `iced_x86::Code`. It is to be said before anything is translated. False for a name of none.
pub fn plant_odd_form(name: &str) -> bool {
    let code = Code::values().find(|code| format!("{code:?}") == name);
    code.is_some_and(|code| ODD_FORM.set(code).is_ok())
}

/// The form that translators make nothing of.
pub(crate) fn odd_form() -> Option<Code> {
    ODD_FORM.get().copied()
}

/// A mistake of the translator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// Edges to other pages stay linked when the code there is dropped.
    StaleEdge,
    /// The stack's page stays at hand when it may not be written any more without a look.
    StaleStackPage,
    /// SUB and CMP do not keep their flags.
    LostFlag,
    /// A block does not keep the flags of its last instructions, which only what follows it could see.
    LostEdgeFlag,
    /// A branch that is taken out of the middle of a block counts one step too few.
    MiscountedEdge,
    /// CLFLUSH does nothing, not even fault.
    LostClflush,
    /// The check of the stack walks the page tables, for accesses that may not happen.
    WalkingCheck,
    /// The stack's page stays at hand when user code asks for aligned accesses.
    StackKeptOverAc,
    /// CALL pushes before it looks at its target.
    EarlyPush,
}

impl Mistake {
    /// All, with their names.
    pub const ALL: [(&str, Self); 9] = [
        ("stale-edge", Self::StaleEdge),
        ("stale-stack-page", Self::StaleStackPage),
        ("lost-flag", Self::LostFlag),
        ("lost-edge-flag", Self::LostEdgeFlag),
        ("miscounted-edge", Self::MiscountedEdge),
        ("lost-clflush", Self::LostClflush),
        ("walking-check", Self::WalkingCheck),
        ("stack-kept-over-ac", Self::StackKeptOverAc),
        ("early-push", Self::EarlyPush),
    ];

    /// The mistake of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, mistake)| *mistake)
    }
}

impl Cpu {
    /// Plants it: the translator makes the mistake in what it does from a position on.
    pub fn plant(&mut self, mistake: Mistake, from: u64) {
        self.mistake = Some((mistake, from));
    }

    /// Every block that is translated from now on is audited before it runs, as in builds with debug
    /// assertions.
    pub fn audit_translations(&mut self) {
        if let Some(native) = &mut self.native {
            native.audits = true;
        }
    }

    /// Whether the translator makes a mistake now.
    pub(crate) fn makes(&self, mistake: Mistake) -> bool {
        self.mistake.is_some_and(|(planted, from)| planted == mistake && self.retired >= from)
    }
}
