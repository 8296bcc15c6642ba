//! Mistakes planted in the translator: each shows, by comparison with the interpreter, in each of 20 guests
//! that do what it is about.

use softcpu::Mistake;

use crate::mistakes::guests;
use crate::run::{INTERPRETED, MOST, PLANTED, TRANSLATED, difference, first_difference, run};

const TRIES: u32 = 20;

#[test]
fn every_planted_mistake_is_found() {
    let mut found = Vec::new();
    for (name, mistake) in Mistake::ALL {
        let mut tries = 0;
        for number in 0..TRIES {
            let guest = guests(mistake)(number);
            PLANTED.set(None);
            assert_eq!(first_difference(&guest, &[]), None, "{name}, guest {number}, nothing planted");
            let expected = run(&guest, INTERPRETED, MOST, &[]);
            PLANTED.set(Some(mistake));
            tries += u32::from(difference(&expected, &run(&guest, TRANSLATED, MOST, &[])).is_some());
        }
        found.push((name, tries));
    }
    assert!(found.iter().all(|(_, tries)| *tries == TRIES), "found so often of {TRIES}: {found:?}");
}

#[test]
fn mistakes_have_names() {
    for (name, mistake) in Mistake::ALL {
        assert_eq!(Mistake::named(name), Some(mistake));
    }
    assert_eq!(Mistake::named("none"), None);
}
