//! The software CPU's translated code against its interpreter: the instruction alone, so that the fault
//! behind it sees its flags; and before others that read the flags, or overwrite them without a look.

use crate::soft::Soft;
use crate::state::{End, Stop, Vector};

/// What follows the instruction.
const TAILS: [&[u8]; 5] = [
    &[],
    // PUSHFQ; POP RAX
    &[0x9c, 0x58],
    // TEST EAX, EAX
    &[0x85, 0xc0],
    // ADC EAX, 1; SETGE CL
    &[0x83, 0xd0, 1, 0x0f, 0x9d, 0xc1],
    // JBE +2; XOR EDX, EDX
    &[0x76, 2, 0x31, 0xd2],
];

/// Two software CPUs, the second of which translates every block before it runs.
pub struct Both {
    interpreted: Soft,
    translated: Soft,
}

impl Both {
    /// As `Soft::new`.
    pub fn new(base: &[u8], selectors: (u16, u16)) -> Self {
        let mut translated = Soft::new(base, selectors);
        translated.translate();
        Self { interpreted: Soft::new(base, selectors), translated }
    }

    /// Runs the vector on both, with what follows by `number`; whether they agree.
    pub fn agree(&mut self, vector: &Vector, number: u64) -> Result<(), (End, End)> {
        let mut code = vector.code.clone();
        code.extend(TAILS[number as usize % TAILS.len()]);
        let (user, patches) = (vector.user.clone(), vector.patches.clone());
        // A block that does not fit below the limit would be interpreted.
        let vector = Vector { code, user, patches, stop: Stop::Breakpoint };
        let (expected, found) = (self.interpreted.run(&vector), self.translated.run(&vector));
        let same = expected == found && self.interpreted.data() == self.translated.data();
        self.interpreted.restore();
        self.translated.restore();
        if same { Ok(()) } else { Err((expected.end, found.end)) }
    }

    /// How many blocks were translated.
    pub fn translations(&self) -> u64 {
        self.translated.translations()
    }
}
