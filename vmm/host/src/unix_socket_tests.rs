//! Sockets are bound over nothing, over dead sockets, and over nothing else.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};

use super::*;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// No temporary name is left over.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_new_socket_is_its_owners_and_can_be_reached() {
    let directory = directory();
    let path = directory.path().join("s");
    let (listener, file) = bind(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    UnixStream::connect(&path).unwrap().write_all(b"x").unwrap();
    let mut byte = [0];
    listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
    assert_eq!(names(directory.path()), ["s"]);
    file.remove();
    assert!(!path.exists());
}

#[test]
fn files_directories_links_pipes_and_devices_stay() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("file"), b"precious").unwrap();
    std::fs::write(at("empty"), b"").unwrap();
    std::fs::create_dir(at("directory")).unwrap();
    std::os::unix::fs::symlink("file", at("link")).unwrap();
    std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
    nix::unistd::mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
    let names = ["file", "empty", "directory", "link", "dangling", "pipe"];
    let whats = ["a file", "a file", "a directory", "a symbolic link", "a symbolic link", "a pipe"];
    for (name, what) in names.iter().zip(whats) {
        let error = bind(&at(name)).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains(&at(name).display().to_string()), "{error}");
        assert!(at(name).symlink_metadata().is_ok(), "{name} is still there");
    }
    assert_eq!(std::fs::read(at("file")).unwrap(), b"precious");
    assert_eq!(self::names(directory.path()).len(), names.len());
    let error = bind(Path::new("/dev/null")).unwrap_err().to_string();
    assert!(error.contains("/dev/null"), "{error}");
}

#[test]
fn a_dead_socket_is_replaced_and_one_that_is_served_is_not() {
    let directory = directory();
    let path = directory.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    let (first, of_first) = bind(&path).unwrap();
    assert!(matches!(bind(&path), Err(BindError::Served { .. })));
    UnixStream::connect(&path).unwrap();
    first.accept().unwrap();
    // One whose queue is full answers nothing, and lives all the same.
    listen(&first, Backlog::new(0).unwrap()).unwrap();
    let mut waiting = Vec::new();
    while try_connect(&path) != Err(Errno::EAGAIN) {
        waiting.push(());
        assert!(waiting.len() < 100, "the queue is never full");
    }
    assert!(matches!(bind(&path), Err(BindError::Served { .. })));
    drop(first);
    let (_second, of_second) = bind(&path).unwrap();
    of_first.remove();
    assert!(path.exists(), "another's socket is not removed");
    of_second.remove();
    assert!(!path.exists());
}

#[test]
fn datagram_sockets_count_as_well() {
    let directory = directory();
    let path = directory.path().join("s");
    let served = UnixDatagram::bind(&path).unwrap();
    assert!(matches!(bind(&path), Err(BindError::Served { .. })));
    drop(served);
    bind(&path).unwrap();
}

#[test]
fn of_many_at_once_over_a_dead_socket_one_gets_it() {
    let directory = directory();
    let path = directory.path().join("s");
    for _ in 0..20 {
        drop(UnixListener::bind(&path).unwrap());
        let start = std::sync::Arc::new(std::sync::Barrier::new(8));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (path, start) = (path.clone(), start.clone());
                let work = move || {
                    start.wait();
                    bind(&path)
                };
                std::thread::Builder::new().spawn(work).unwrap()
            })
            .collect();
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
        UnixStream::connect(&path).unwrap();
        drop(results);
        std::fs::remove_file(&path).unwrap();
    }
    assert!(names(directory.path()).is_empty());
}

#[test]
fn paths_that_cannot_be_are_refused_by_name() {
    let directory = directory();
    let long = directory.path().join("x".repeat(120));
    assert!(bind(&long).unwrap_err().to_string().contains("107"));
    let fits = directory.path().join("y".repeat(PATH_MAX - 1 - directory.path().as_os_str().len()));
    bind(&fits).unwrap();
    assert!(matches!(bind(Path::new("/")), Err(BindError::NoName { .. })));
    let error = bind(&directory.path().join("no/such/s")).unwrap_err().to_string();
    assert!(error.contains("no/such/s"), "{error}");
}
