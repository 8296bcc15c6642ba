//! The serial port against the PC16550D's datasheet.

use super::*;

const DATA: u16 = 0;
const IER: u16 = 1;
const IIR: u16 = 2;
const FCR: u16 = 2;
const LCR: u16 = 3;
const MCR: u16 = 4;
const LSR: u16 = 5;
const MSR: u16 = 6;
const SCR: u16 = 7;

/// Interrupt line connected, FIFOs on.
fn uart(trigger: u8) -> Uart {
    let mut uart = Uart::new();
    uart.write(MCR, MCR_OUT2 | MCR_DTR | MCR_RTS);
    uart.read(MSR);
    uart.write(FCR, FCR_ENABLE | trigger << 6);
    uart
}

#[test]
fn it_is_a_16550a() {
    let mut uart = Uart::new();
    assert_eq!(uart.read(IIR), IIR_NONE);
    uart.write(FCR, FCR_ENABLE);
    assert_eq!(uart.read(IIR), IIR_FIFOS | IIR_NONE);
    uart.write(SCR, 0x5a);
    assert_eq!(uart.read(SCR), 0x5a);
    uart.write(IER, 0xff);
    assert_eq!(uart.read(IER), 0x0f);
    assert_eq!(uart.read(LSR), 0x60);
    assert_eq!(uart.read(MSR), 0xb0);
}

#[test]
fn divisor_latch_hides_data_and_ier() {
    let mut uart = Uart::new();
    uart.write(LCR, LCR_DLAB | 3);
    uart.write(DATA, 1);
    uart.write(IER, 0x12);
    assert_eq!((uart.read(DATA), uart.read(IER)), (1, 0x12));
    uart.write(LCR, 3);
    assert_eq!(uart.read(IER), 0);
    assert_eq!(uart.take_sent(), None);
}

#[test]
fn sent_bytes_gather_into_lines() {
    let mut uart = uart(0);
    for &byte in b"hello" {
        uart.write(DATA, byte);
    }
    assert!(!uart.has_line());
    uart.write(DATA, b'\n');
    assert!(uart.has_line());
    assert_eq!(uart.take_sent().unwrap(), b"hello\n");
    assert_eq!(uart.take_sent(), None);
    for _ in 0..TX_GATHER {
        assert!(!uart.has_line());
        uart.write(DATA, b'.');
    }
    assert!(uart.has_line());
}

#[test]
fn received_bytes_interrupt_at_the_trigger_level_and_by_timeout() {
    for (trigger, level) in [(0, 1), (1, 4), (2, 8), (3, 14)] {
        let mut uart = uart(trigger);
        uart.write(IER, IER_RECEIVED);
        assert!(!uart.line());
        for _ in 1..level {
            uart.receive(b"a");
            assert_eq!(uart.read(IIR), IIR_FIFOS | IIR_TIMEOUT);
        }
        uart.receive(b"a");
        assert_eq!(uart.read(IIR), IIR_FIFOS | IIR_RECEIVED);
        assert!(uart.line());
        for _ in 0..level {
            assert_eq!(uart.read(LSR) & LSR_DATA, LSR_DATA);
            assert_eq!(uart.read(DATA), b'a');
        }
        assert!(!uart.line());
        assert_eq!(uart.read(LSR) & LSR_DATA, 0);
    }
}

#[test]
fn fifo_overrun_is_told_once() {
    let mut uart = uart(0);
    uart.write(IER, IER_LINE_STATUS | IER_RECEIVED);
    assert_eq!(uart.room(), 16);
    uart.receive(&[b'x'; 16]);
    assert_eq!(uart.room(), 0);
    assert_eq!(uart.read(IIR) & 0x0f, IIR_RECEIVED);
    uart.receive(b"y");
    assert_eq!(uart.read(IIR) & 0x0f, IIR_LINE_STATUS, "line status has the highest priority");
    assert_eq!(uart.read(LSR) & LSR_OVERRUN, LSR_OVERRUN);
    assert_eq!(uart.read(LSR) & LSR_OVERRUN, 0);
    let received: Vec<u8> = (0..16).map(|_| uart.read(DATA)).collect();
    assert_eq!(received, [b'x'; 16], "the FIFO keeps what it had");
}

#[test]
fn without_fifo_there_is_room_for_one() {
    let mut uart = Uart::new();
    assert_eq!(uart.room(), 1);
    uart.receive(b"ab");
    assert_eq!(uart.read(LSR) & (LSR_DATA | LSR_OVERRUN), LSR_DATA | LSR_OVERRUN);
    assert_eq!(uart.read(DATA), b'a');
}

#[test]
fn fifo_control_clears() {
    let mut uart = uart(0);
    uart.receive(b"abc");
    uart.write(FCR, FCR_ENABLE | FCR_CLEAR_RX);
    assert_eq!(uart.read(LSR) & LSR_DATA, 0);
    assert_eq!(uart.read(DATA), 0);
    uart.receive(b"def");
    assert_eq!(uart.room(), 10);
    uart.write(FCR, 0);
    assert_eq!(uart.read(LSR) & LSR_DATA, 0, "turning FIFOs off clears them");
    uart.write(IER, IER_RECEIVED);
    uart.write(FCR, FCR_ENABLE);
    let received: Vec<u8> = (0..6).map(|_| uart.read(DATA)).collect();
    assert_eq!(received, *b"abcdef", "what nobody read waits");
    uart.receive(b"abc");
    uart.write(FCR, FCR_ENABLE | FCR_CLEAR_RX);
    assert_eq!(uart.read(LSR) & LSR_DATA, 0);
    assert_eq!(uart.room(), 16, "a driver that listens may drop it");
}

/// What Linux 6.1 does when the port is opened (`serial8250_do_startup`, `set_termios`) and closed.
#[test]
fn nothing_typed_is_lost_while_linux_opens_and_closes_the_port() {
    fn clear_fifos(uart: &mut Uart) {
        uart.write(FCR, FCR_ENABLE);
        uart.write(FCR, FCR_ENABLE | FCR_CLEAR_RX | 1 << 2);
        uart.write(FCR, 0);
        for register in [LSR, DATA, IIR, MSR] {
            uart.read(register);
        }
    }
    let typed: Vec<u8> = (0..200).collect();
    let (mut waiting, mut got) = (VecDeque::from(typed.clone()), Vec::new());
    let mut uart = Uart::new();
    let mut offer = |uart: &mut Uart| {
        let room = if uart.listens() { uart.room().min(waiting.len()) } else { 0 };
        uart.receive(&waiting.drain(..room).collect::<Vec<_>>());
    };
    for _ in 0..5 {
        clear_fifos(&mut uart);
        uart.write(LCR, 3);
        for (register, value) in [(MCR, MCR_OUT2), (IER, IER_TRANSMITTER_EMPTY), (IER, 0)] {
            uart.write(register, value);
            offer(&mut uart);
        }
        for register in [LSR, DATA, IIR, MSR] {
            uart.read(register);
        }
        for (register, value) in [
            (IER, IER_RECEIVED | IER_LINE_STATUS),
            (LCR, LCR_DLAB | 3),
            (DATA, 1),
            (LCR, 3),
            (FCR, FCR_ENABLE),
            (FCR, FCR_ENABLE | 0x80),
            (MCR, MCR_OUT2 | MCR_DTR | MCR_RTS),
        ] {
            uart.write(register, value);
            offer(&mut uart);
        }
        assert!(uart.line());
        while uart.read(LSR) & LSR_DATA != 0 && got.len() % 40 != 39 {
            got.push(uart.read(DATA));
            offer(&mut uart);
        }
        got.push(uart.read(DATA));
        offer(&mut uart);
        uart.write(IER, 0);
        uart.write(MCR, MCR_DTR);
        clear_fifos(&mut uart);
        assert_eq!(uart.read(LSR) & LSR_OVERRUN, 0);
    }
    assert_eq!(got, typed);
}

#[test]
fn transmitter_interrupt_comes_when_enabled_and_after_each_byte() {
    let mut uart = uart(0);
    uart.write(IER, IER_TRANSMITTER_EMPTY);
    assert!(uart.line());
    assert_eq!(uart.read(IIR) & 0x0f, IIR_TRANSMITTER_EMPTY);
    assert!(!uart.line(), "reading IIR takes it back");
    uart.write(DATA, b'a');
    assert!(uart.line());
    assert_eq!(uart.read(IIR) & 0x0f, IIR_TRANSMITTER_EMPTY);
    // Enabling it anew raises it anew.
    uart.write(IER, 0);
    uart.write(IER, IER_TRANSMITTER_EMPTY);
    assert!(uart.line());
    // Reading IIR for another reason does not take it back.
    uart.write(IER, IER_TRANSMITTER_EMPTY | IER_RECEIVED);
    uart.receive(b"x");
    assert_eq!(uart.read(IIR) & 0x0f, IIR_RECEIVED);
    uart.read(DATA);
    assert_eq!(uart.read(IIR) & 0x0f, IIR_TRANSMITTER_EMPTY);
}

#[test]
fn out2_connects_the_line() {
    let mut uart = uart(0);
    uart.write(IER, IER_TRANSMITTER_EMPTY);
    assert!(uart.line());
    uart.write(MCR, 0);
    assert!(!uart.line());
}

#[test]
fn loopback_returns_what_is_sent_and_the_modem_outputs() {
    let mut uart = uart(0);
    uart.write(MCR, MCR_LOOP);
    assert_eq!(uart.room(), 0, "the wire is disconnected");
    uart.receive(b"lost");
    assert_eq!(uart.read(LSR) & LSR_DATA, 0);
    uart.write(DATA, b'z');
    assert_eq!(uart.take_sent(), None);
    assert_eq!(uart.read(DATA), b'z');
    uart.read(MSR);
    for (output, input) in [(MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD)] {
        uart.write(MCR, MCR_LOOP | output);
        assert_eq!(uart.read(MSR) & 0xf0, input);
    }
}

#[test]
fn modem_changes_interrupt_until_read() {
    let mut uart = uart(0);
    uart.write(IER, IER_MODEM_STATUS);
    // Into loopback with RTS and DTR on: DCD falls, CTS and DSR stay.
    uart.write(MCR, MCR_LOOP | MCR_RTS | MCR_DTR);
    assert_eq!(uart.read(IIR) & 0x0f, IIR_MODEM_STATUS);
    assert_eq!(uart.read(MSR), MSR_CTS | MSR_DSR | 0x08);
    assert_eq!(uart.read(IIR) & 0x0f, IIR_NONE);
    // RI counts when it falls only.
    uart.write(MCR, MCR_LOOP | MCR_RTS | MCR_DTR | MCR_OUT1);
    assert_eq!(uart.read(MSR) & 0x0f, 0);
    uart.write(MCR, MCR_LOOP | MCR_RTS | MCR_DTR);
    assert_eq!(uart.read(MSR) & 0x0f, 0x04);
}
