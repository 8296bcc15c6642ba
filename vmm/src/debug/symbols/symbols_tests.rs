//! Tests of symbol tables: whole, damaged, and those of a kernel made here.

use super::*;

fn symbols(list: &[(u64, u64, &str)]) -> Symbols {
    let symbol = |&(address, bytes, name): &(u64, u64, &str)| Symbol { address, bytes, name: name.into() };
    Symbols::sorted(list.iter().map(symbol).collect())
}

#[test]
fn an_address_belongs_to_the_symbol_before_it() {
    let symbols = symbols(&[(0x2000, 0x10, "b"), (0x1000, 0, "a"), (0x2000, 0, "alias"), (0x3000, 0, "c")]);
    assert_eq!(symbols.describe(0xfff), "?");
    assert_eq!(symbols.describe(0x1000), "a");
    assert_eq!(symbols.describe(0x1fff), "a+0xfff");
    assert_eq!(symbols.describe(0x200f), "b+0xf");
    assert_eq!(symbols.describe(0x2010), "?");
    assert_eq!(symbols.describe(0x3000 + MAX_OFFSET), "?");
    assert_eq!(symbols.address("alias"), Some(0x2000));
    assert_eq!(symbols.address("d"), None);
}

#[test]
fn minikv_has_names() {
    let symbols = Symbols::of_file(guest_images::MINIKV).expect("an ELF symbol table");
    let incr = symbols.address("minikv_core::commands::strings::incr").expect("a function");
    assert_eq!(symbols.describe(incr + 9), "minikv_core::commands::strings::incr+0x9");
    assert!(symbols.address("_start").is_some_and(|start| start >= 0x10_0000));
}

#[test]
fn damaged_elf_files_give_an_error_or_names_but_no_panic() {
    let good = guest_images::MINIKV;
    for cut in (0..good.len()).step_by(977) {
        let _ = Symbols::of_file(&good[..cut]);
    }
    let header = 64;
    let sections = number(good, 40, 8).expect("a header") as usize;
    for at in (0..header).chain(sections..good.len()) {
        let mut bad = good.to_vec();
        bad[at] ^= 0xff;
        let _ = elf::symbols(&bad);
    }
}

/// A kernel image of nothing but its symbol table, in the order of Linux 6.1 or that of 6.4.
fn kernel(names: &[(u64, String)], newer: bool) -> Vec<u8> {
    const BASE: u64 = 0xffff_ffff_8100_0000;
    let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte.max(1)]).collect();
    tokens[1] = b"Tsys_".to_vec();
    tokens[2] = b"init".to_vec();
    let align = |out: &mut Vec<u8>| out.resize(out.len().next_multiple_of(8), 0);
    let (mut table, mut index) = (Vec::new(), Vec::new());
    for token in &tokens {
        index.extend_from_slice(&(table.len() as u16).to_le_bytes());
        table.extend_from_slice(token);
        table.push(0);
    }
    align(&mut table);
    table.extend(index);
    let mut addresses = Vec::new();
    for (address, _) in names {
        let offset = (BASE - 1).wrapping_sub(*address) as i32;
        addresses.extend_from_slice(&offset.to_le_bytes());
    }
    align(&mut addresses);
    addresses.extend_from_slice(&BASE.to_le_bytes());
    let (mut spelt, mut markers) = (Vec::new(), Vec::new());
    for (number, (_, name)) in names.iter().enumerate() {
        if number % 256 == 0 {
            markers.extend_from_slice(&(spelt.len() as u32).to_le_bytes());
        }
        let codes: Vec<u8> = match name.strip_prefix("sys_") {
            Some(rest) => [&[1], rest.as_bytes()].concat(),
            None => [b"t", name.as_bytes()].concat(),
        };
        if codes.len() >= 0x80 {
            spelt.push(codes.len() as u8 | 0x80);
            spelt.push((codes.len() >> 7) as u8);
        } else {
            spelt.push(codes.len() as u8);
        }
        spelt.extend(codes);
    }
    align(&mut spelt);
    align(&mut markers);
    let count = (names.len() as u64).to_le_bytes().to_vec();
    let parts = match newer {
        false => [addresses, count, spelt, markers, table],
        true => [count, spelt, markers, table, addresses],
    };
    let mut image = vec![0x90; 4096];
    image.extend(parts.concat());
    image.extend([0xcc; 4096]);
    image
}

fn names() -> Vec<(u64, String)> {
    let long = "x".repeat(200);
    let name = |i: u64| match i % 3 {
        0 => format!("sys_call{i}"),
        1 => format!("function_{i}"),
        _ => format!("{long}{i}"),
    };
    (0..700).map(|i| (0xffff_ffff_8100_0000 + 64 * i, name(i))).collect()
}

#[test]
fn a_kernels_own_table_is_found_in_both_orders() {
    for newer in [false, true] {
        let names = names();
        let symbols = Symbols::of_memory(&kernel(&names, newer)).expect("a table");
        assert_eq!(symbols.len(), names.len());
        for (address, name) in &names {
            assert_eq!(symbols.describe(*address), *name);
        }
    }
}

#[test]
fn a_damaged_kernel_table_is_no_table_or_another_one_but_no_panic() {
    let good = kernel(&names(), false);
    assert!(Symbols::of_memory(&good[..good.len() / 2]).is_err());
    for at in (4096..good.len() - 4096).step_by(61) {
        let mut bad = good.clone();
        bad[at] = bad[at].wrapping_add(0x7f);
        let _ = Symbols::of_memory(&bad);
    }
    assert_eq!(Symbols::of_file(b"not a kernel"), Err(SymbolError::None));
    assert_eq!(Symbols::of_file(&[0; 100_000]), Err(SymbolError::None));
}
