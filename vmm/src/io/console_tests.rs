//! A console's file.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

#[test]
fn a_console_file_keeps_the_last_bytes_within_twice_its_limit_and_is_its_owners() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("console");
    std::fs::write(&path, "of an earlier start\n").unwrap();
    let mut file = ConsoleFile::open(&path, 1000).unwrap();
    for number in 0..500 {
        writeln!(file, "line {number:04}").unwrap();
    }
    let older = std::fs::read_to_string(directory.path().join("console.1")).unwrap();
    let newer = std::fs::read_to_string(&path).unwrap();
    assert!(older.len() <= 1000 && newer.len() <= 1000, "{} and {} bytes", older.len(), newer.len());
    let lines: Vec<String> = older.lines().chain(newer.lines()).map(String::from).collect();
    let last = (500 - lines.len()..500).map(|number| format!("line {number:04}"));
    assert_eq!(lines, last.collect::<Vec<_>>(), "the last lines, none missing");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_limit_of_none_and_a_device_are_never_put_aside() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("console");
    let mut file = ConsoleFile::open(&path, 0).unwrap();
    file.write_all(&[b'x'; 5000]).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 5000);
    let mut device = ConsoleFile::open(Path::new("/dev/null"), 10).unwrap();
    (0..10).for_each(|_| device.write_all(&[b'x'; 9]).unwrap());
    assert!(!Path::new("/dev/null.1").exists());
}
