//! A copy that was replaced sends once more: the station must not stay where nobody is.

use super::*;

const INNER: Mac = Mac([2, 0, 0, 0, 0, 1]);
const GUEST: Mac = Mac([2, 0, 0, 0, 0, 2]);
const INSIDE: PortId = PortId(0);
const OLD: PortId = PortId(1);
const NEW: PortId = PortId(2);

fn frame(destination: Mac, source: Mac) -> Vec<u8> {
    [&destination.0[..], &source.0, &[0x88, 0xb5], &[0; 46]].concat()
}

fn input(switch: &mut Switch, from: PortId, frame: &[u8]) -> Vec<PortId> {
    let mut out = Vec::new();
    switch.input(0, from, frame, &mut |port, _| out.push(port));
    out
}

/// The guest moved from the old port to the new one.
fn moved() -> Switch {
    let mut switch = Switch::new(SwitchLimits::default(), INNER, INSIDE);
    switch.add_port(OLD);
    switch.add_port(NEW);
    input(&mut switch, OLD, &frame(INNER, GUEST));
    input(&mut switch, NEW, &frame(INNER, GUEST));
    switch
}

#[test]
fn a_last_frame_of_the_old_copy_holds_only_until_its_port_closes() {
    let mut switch = moved();
    input(&mut switch, OLD, &frame(INNER, GUEST));
    assert_eq!(input(&mut switch, INSIDE, &frame(GUEST, INNER)), [OLD]);
    switch.remove_port(0, OLD);
    assert_eq!(input(&mut switch, INSIDE, &frame(GUEST, INNER)), [NEW]);
    switch.remove_port(0, NEW);
    assert_eq!(input(&mut switch, INSIDE, &frame(GUEST, INNER)), [], "held");
}

#[test]
fn a_port_that_is_gone_is_no_place_to_return_to() {
    let mut switch = moved();
    switch.remove_port(0, OLD);
    assert_eq!(input(&mut switch, INSIDE, &frame(GUEST, INNER)), [NEW]);
    switch.remove_port(0, NEW);
    assert_eq!(input(&mut switch, INSIDE, &frame(GUEST, INNER)), [], "held");
    assert_eq!(switch.counters().moves, 1);
}
