//! Text for people, on the UART. Every byte is an exit, so there is little of it.

use core::fmt::{self, Write};

use crate::port::out8;

const UART_DATA: u16 = 0x3f8;

/// Writes to the UART, which takes bytes as fast as they come.
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| out8(UART_DATA, byte));
        Ok(())
    }
}

/// Prints a line on the UART.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        let _ = writeln!($crate::console::Console, $($arg)*);
    }};
}
