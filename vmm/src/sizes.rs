//! Sizes on the command line: MiB, or with a unit.

use anyhow::{bail, ensure};

/// Units and how many KiB they are; a trailing `iB` or `B` may be written as well.
const UNITS: [(char, u64); 4] = [('K', 1), ('M', 1 << 10), ('G', 1 << 20), ('T', 1 << 30)];
const KIB_PER_MIB: u64 = 1 << 10;

/// Parses a size: a plain number is MiB, others have a unit of powers of two, as 512M or 2G. In MiB.
pub fn mib(text: &str) -> anyhow::Result<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    ensure!(!text.trim_start().starts_with('-'), "a size is not negative");
    ensure!(!number.is_empty(), "a number of MiB, or a size with a unit, as 512M or 2G");
    ensure!(!unit.starts_with(['.', ',']), "a whole number, as 1536M instead of 1.5G");
    let number: u64 = match number.parse() {
        Ok(number) => number,
        Err(_) => bail!("it is far too large"),
    };
    let kib_per_unit = match unit {
        "" => KIB_PER_MIB,
        _ => {
            let letter = unit.trim_end_matches(['B', 'b']).trim_end_matches('i');
            let known = UNITS.iter().find(|(name, _)| letter.eq_ignore_ascii_case(&name.to_string()));
            match known {
                Some((_, kib)) => *kib,
                None => bail!("unknown unit {unit:?}: K, M, G or T"),
            }
        }
    };
    let Some(kib) = number.checked_mul(kib_per_unit) else { bail!("it is far too large") };
    ensure!(kib.is_multiple_of(KIB_PER_MIB), "not a whole number of MiB");
    Ok(kib / KIB_PER_MIB)
}

#[cfg(test)]
mod tests {
    use super::mib;

    #[test]
    fn plain_numbers_are_mib_and_units_are_powers_of_two() {
        for (text, expected) in [
            ("64", 64),
            ("0", 0),
            ("512M", 512),
            ("2G", 2048),
            ("2g", 2048),
            ("2GiB", 2048),
            ("2GB", 2048),
            ("2 G", 2048),
            ("20G", 20480),
            ("1T", 1 << 20),
            ("4096K", 4),
            ("17179869184G", 1 << 44),
        ] {
            assert_eq!(mib(text).unwrap_or_else(|error| panic!("{text}: {error}")), expected, "{text}");
        }
    }

    #[test]
    fn everything_else_says_what_is_wrong() {
        for (text, word) in [
            ("", "number"),
            ("-5", "negative"),
            ("-2G", "negative"),
            ("G", "number"),
            ("two", "number"),
            ("1.5G", "1536M"),
            ("2X", "unit"),
            ("2GG", "unit"),
            ("1K", "whole number of MiB"),
            ("18446744073709551616", "too large"),
            ("18446744073709551615", "too large"),
            ("17592186044416T", "too large"),
            ("0x40", "unit"),
        ] {
            let error = mib(text).expect_err(text).to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }
}
