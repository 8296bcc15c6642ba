//! The pair against the 8259A's datasheet.

use super::*;

const FIRST: bool = false;
const SECOND: bool = true;
const COMMAND: bool = false;
const DATA: bool = true;
const EOI: u8 = 0x20;

/// Initialised as every PC system does: vectors 0x20 and 0x28, nothing masked.
fn pair_with(icw1: u8, icw4: u8) -> Pic {
    let mut pic = Pic::new();
    for (chip, base, icw3) in [(FIRST, 0x20, 0x04), (SECOND, 0x28, 0x02)] {
        pic.write(chip, COMMAND, icw1);
        pic.write(chip, DATA, base);
        pic.write(chip, DATA, icw3);
        if icw1 & 1 != 0 {
            pic.write(chip, DATA, icw4);
        }
        pic.write(chip, DATA, 0);
    }
    pic
}

fn pair() -> Pic {
    pair_with(0x11, 0x01)
}

fn pulse(pic: &mut Pic, irq: u8) {
    pic.set_line(irq, false);
    pic.set_line(irq, true);
    pic.set_line(irq, false);
}

fn in_service(pic: &mut Pic, chip: bool) -> u8 {
    pic.write(chip, COMMAND, 0x0b);
    pic.read(chip, COMMAND)
}

fn requests(pic: &mut Pic, chip: bool) -> u8 {
    pic.write(chip, COMMAND, 0x0a);
    pic.read(chip, COMMAND)
}

#[test]
fn powered_on_it_is_silent() {
    let mut pic = Pic::new();
    for irq in 0..16 {
        pic.set_line(irq, true);
    }
    assert!(!pic.intr());
    assert_eq!(pic.read(FIRST, DATA), 0xff);
    assert_eq!(pic.read(SECOND, DATA), 0xff);
}

#[test]
fn initialisation_sequence_programs_vectors_and_clears_state() {
    let mut pic = pair();
    pulse(&mut pic, 3);
    pulse(&mut pic, 12);
    assert_eq!(pic.acknowledge(), 0x2c);
    pic.write(FIRST, DATA, 0x55);
    pic.write(FIRST, COMMAND, 0x11);
    assert_eq!(in_service(&mut pic, FIRST), 0);
    assert_eq!(requests(&mut pic, FIRST), 0);
    pic.write(FIRST, DATA, 0x47);
    pic.write(FIRST, DATA, 0x04);
    pic.write(FIRST, DATA, 0x01);
    assert_eq!(pic.read(FIRST, DATA), 0, "ICW1 clears the mask");
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x41, "the low three bits of ICW2 do not count");
}

#[test]
fn single_and_short_sequences_expect_fewer_words() {
    let mut pic = Pic::new();
    // ICW1 without ICW4, single: only ICW2 follows.
    pic.write(FIRST, COMMAND, 0x12);
    pic.write(FIRST, DATA, 0x60);
    pic.write(FIRST, DATA, 0xfe);
    assert_eq!(pic.read(FIRST, DATA), 0xfe);
    // Cascaded without ICW4.
    pic.write(FIRST, COMMAND, 0x10);
    pic.write(FIRST, DATA, 0x60);
    pic.write(FIRST, DATA, 0x04);
    pic.write(FIRST, DATA, 0xfd);
    assert_eq!(pic.read(FIRST, DATA), 0xfd);
    // Single with ICW4.
    pic.write(FIRST, COMMAND, 0x13);
    pic.write(FIRST, DATA, 0x60);
    pic.write(FIRST, DATA, 0x03);
    pic.write(FIRST, DATA, 0xfb);
    assert_eq!(pic.read(FIRST, DATA), 0xfb);
    pulse(&mut pic, 2);
    assert!(pic.intr());
}

#[test]
fn an_edge_is_requested_once_until_the_line_rises_again() {
    let mut pic = pair();
    pic.set_line(4, true);
    assert_eq!(requests(&mut pic, FIRST), 1 << 4);
    assert_eq!(pic.acknowledge(), 0x24);
    pic.write(FIRST, COMMAND, EOI);
    assert!(!pic.intr(), "the line is still high");
    pic.set_line(4, false);
    pic.set_line(4, true);
    assert!(pic.intr());
}

#[test]
fn a_level_is_requested_as_long_as_it_lasts() {
    let mut pic = pair();
    pic.write_elcr(SECOND, 1 << 2);
    pic.set_line(10, true);
    assert_eq!(pic.acknowledge(), 0x2a);
    assert!(!pic.intr(), "in service");
    pic.write(SECOND, COMMAND, EOI);
    pic.write(FIRST, COMMAND, EOI);
    assert!(pic.intr(), "and again");
    assert_eq!(pic.acknowledge(), 0x2a);
    pic.set_line(10, false);
    pic.write(SECOND, COMMAND, EOI);
    pic.write(FIRST, COMMAND, EOI);
    assert!(!pic.intr());
}

#[test]
fn elcr_keeps_to_the_inputs_that_can_be_levels() {
    let mut pic = pair();
    pic.write_elcr(FIRST, 0xff);
    pic.write_elcr(SECOND, 0xff);
    assert_eq!(pic.read_elcr(FIRST), 0xf8);
    assert_eq!(pic.read_elcr(SECOND), 0xde);
}

#[test]
fn ltim_makes_every_input_a_level() {
    let mut pic = pair_with(0x19, 0x01);
    pic.set_line(0, false);
    pic.set_line(4, true);
    assert_eq!(pic.acknowledge(), 0x24);
    pic.write(FIRST, COMMAND, EOI);
    assert!(pic.intr());
}

#[test]
fn lower_inputs_go_first_and_interrupt_higher_ones() {
    let mut pic = pair();
    pulse(&mut pic, 5);
    pulse(&mut pic, 3);
    assert_eq!(pic.acknowledge(), 0x23);
    assert!(!pic.intr(), "5 waits for 3");
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x21);
    assert_eq!(in_service(&mut pic, FIRST), 1 << 1 | 1 << 3);
    pic.write(FIRST, COMMAND, EOI);
    assert_eq!(in_service(&mut pic, FIRST), 1 << 3, "non-specific EOI ends the highest");
    pic.write(FIRST, COMMAND, 0x60 | 3);
    assert_eq!(in_service(&mut pic, FIRST), 0);
    assert_eq!(pic.acknowledge(), 0x25);
}

#[test]
fn the_second_chip_stands_between_1_and_3() {
    let mut pic = pair();
    pulse(&mut pic, 3);
    pulse(&mut pic, 14);
    pulse(&mut pic, 8);
    assert_eq!(pic.acknowledge(), 0x28);
    assert_eq!(in_service(&mut pic, FIRST), 1 << 2);
    assert_eq!(in_service(&mut pic, SECOND), 1);
    pic.write(SECOND, COMMAND, EOI);
    assert!(!pic.intr(), "input 2 of the first chip is still in service");
    pic.write(FIRST, COMMAND, EOI);
    assert_eq!(pic.acknowledge(), 0x2e);
    pic.write(SECOND, COMMAND, EOI);
    pic.write(FIRST, COMMAND, EOI);
    assert_eq!(pic.acknowledge(), 0x23);
}

#[test]
fn special_fully_nested_lets_the_second_chip_interrupt_itself() {
    let mut pic = pair_with(0x11, 0x11);
    pulse(&mut pic, 14);
    assert_eq!(pic.acknowledge(), 0x2e);
    pulse(&mut pic, 9);
    assert!(pic.intr());
    assert_eq!(pic.acknowledge(), 0x29);
}

#[test]
fn masked_inputs_wait() {
    let mut pic = pair();
    pic.write(FIRST, DATA, 1 << 4);
    pulse(&mut pic, 4);
    assert!(!pic.intr());
    assert!(!pic.unmasked(4));
    assert_eq!(requests(&mut pic, FIRST), 1 << 4);
    pic.write(FIRST, DATA, 0);
    assert!(pic.intr());
    pic.write(FIRST, DATA, 1 << 2);
    assert!(!pic.unmasked(8), "masked at the cascade");
    pic.write(FIRST, DATA, 0);
    assert!(pic.unmasked(8));
    pic.write(SECOND, DATA, 1);
    assert!(!pic.unmasked(8));
}

#[test]
fn spurious_acknowledges_get_input_7_and_set_nothing() {
    let mut pic = pair();
    assert_eq!(pic.acknowledge(), 0x27);
    assert_eq!(in_service(&mut pic, FIRST), 0);
    // A level that falls in time.
    pic.write_elcr(FIRST, 1 << 5);
    pic.set_line(5, true);
    pic.set_line(5, false);
    assert_eq!(pic.acknowledge(), 0x27);
}

#[test]
fn spurious_acknowledge_of_the_second_chip_leaves_the_cascade_in_service() {
    let mut pic = pair();
    // The request goes after the first chip has passed it on.
    pulse(&mut pic, 12);
    let [first, second] = &mut pic.chips;
    first.edges |= 1 << CASCADE_IRQ;
    second.edges = 0;
    assert_eq!(pic.acknowledge(), 0x2f);
    assert_eq!(in_service(&mut pic, FIRST), 1 << 2);
    assert_eq!(in_service(&mut pic, SECOND), 0);
}

#[test]
fn auto_eoi_ends_at_once() {
    let mut pic = pair_with(0x11, 0x03);
    pulse(&mut pic, 4);
    pulse(&mut pic, 6);
    assert_eq!(pic.acknowledge(), 0x24);
    assert_eq!(in_service(&mut pic, FIRST), 0);
    assert_eq!(pic.acknowledge(), 0x26);
}

#[test]
fn auto_eoi_on_the_second_chip_loses_nothing() {
    let mut pic = pair_with(0x11, 0x03);
    pulse(&mut pic, 9);
    pulse(&mut pic, 11);
    assert_eq!(pic.acknowledge(), 0x29);
    assert_eq!(pic.acknowledge(), 0x2b);
    assert!(!pic.intr());
}

#[test]
fn rotation_moves_the_served_input_to_the_end() {
    let mut pic = pair();
    pulse(&mut pic, 4);
    assert_eq!(pic.acknowledge(), 0x24);
    pic.write(FIRST, COMMAND, 0xa0); // rotate on non-specific EOI: now 5, 6, 7, 0, …, 4
    pulse(&mut pic, 4);
    pulse(&mut pic, 6);
    assert_eq!(pic.acknowledge(), 0x26);
    pic.write(FIRST, COMMAND, 0xe0 | 6); // rotate on specific EOI: now 7, 0, …
    pulse(&mut pic, 0);
    pulse(&mut pic, 7);
    assert_eq!(pic.acknowledge(), 0x27);
    pic.write(FIRST, COMMAND, 0x60 | 7);
    pic.write(FIRST, COMMAND, 0xc0 | 3); // set priority: 4 is the highest
    assert_eq!(pic.acknowledge(), 0x24);
}

#[test]
fn rotation_in_auto_eoi_mode() {
    let mut pic = pair_with(0x11, 0x03);
    pic.write(FIRST, COMMAND, 0x80);
    pulse(&mut pic, 3);
    assert_eq!(pic.acknowledge(), 0x23);
    pulse(&mut pic, 3);
    pulse(&mut pic, 5);
    assert_eq!(pic.acknowledge(), 0x25, "3 is last now");
    pic.write(FIRST, COMMAND, 0x00);
    assert_eq!(pic.acknowledge(), 0x23);
    pulse(&mut pic, 6);
    pulse(&mut pic, 5);
    assert_eq!(pic.acknowledge(), 0x26, "the order stays as it was: 6 first");
}

#[test]
fn special_mask_mode_lets_lower_priorities_through() {
    let mut pic = pair();
    pulse(&mut pic, 3);
    assert_eq!(pic.acknowledge(), 0x23);
    pulse(&mut pic, 6);
    assert!(!pic.intr());
    pic.write(FIRST, COMMAND, 0x68);
    pic.write(FIRST, DATA, 1 << 3);
    assert_eq!(pic.acknowledge(), 0x26);
    // A non-specific EOI does not end what is masked.
    pic.write(FIRST, COMMAND, EOI);
    assert_eq!(in_service(&mut pic, FIRST), 1 << 3);
    pic.write(FIRST, COMMAND, 0x48);
    pulse(&mut pic, 6);
    assert!(!pic.intr());
}

#[test]
fn poll_acknowledges_by_a_read() {
    let mut pic = pair();
    pic.write(FIRST, COMMAND, 0x0c);
    assert_eq!(pic.read(FIRST, COMMAND), 0);
    pulse(&mut pic, 10);
    pulse(&mut pic, 13);
    pic.write(FIRST, COMMAND, 0x0c);
    assert_eq!(pic.read(FIRST, COMMAND), 0x82);
    pic.write(SECOND, COMMAND, 0x0c);
    assert_eq!(pic.read(SECOND, DATA), 0x82);
    assert_eq!(pic.read(SECOND, DATA), 0, "one read is one poll: this is the mask");
    assert_eq!(in_service(&mut pic, SECOND), 1 << 2);
    pic.write(SECOND, COMMAND, EOI);
    pic.write(FIRST, COMMAND, EOI);
    assert_eq!(pic.acknowledge(), 0x2d);
}
