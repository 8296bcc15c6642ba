//! Images stored, listed, found and damaged.

use super::*;

fn contents(command_line: &str) -> Contents {
    Contents {
        kernel: "vmlinux".into(),
        initrd: Some("initrd".into()),
        disk: None,
        command_line: command_line.into(),
        memory_mib: 256,
        packages: vec![Package { file: "linux_1_amd64.deb".into(), digest: "00".into() }],
    }
}

struct Place {
    _directory: tempfile::TempDir,
    cache: Cache,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = Cache::new(Some(directory.path())).expect("a cache");
        Self { _directory: directory, cache }
    }

    fn store(&self, name: &str, command_line: &str) -> Guest {
        let workshop = self.cache.workshop().expect("a workshop");
        let made = workshop.path().join("out");
        std::fs::create_dir(&made).expect("made");
        std::fs::write(made.join("vmlinux"), b"kernel").expect("written");
        std::fs::write(made.join("initrd"), b"disk").expect("written");
        self.cache.store(name, "about it", &made, contents(command_line)).expect("stored")
    }
}

#[test]
fn an_image_is_found_by_its_name_and_by_its_digest() {
    let place = Place::new();
    let stored = place.store("busybox", "quiet");
    assert!(stored.current);
    let name = stored.directory.file_name().unwrap().to_str().unwrap().to_string();
    assert!(name.starts_with("busybox-") && stored.manifest.digest.starts_with(&name[8..]), "{name}");
    for wanted in ["busybox", &name] {
        let found = place.cache.find(wanted).expect("found");
        assert_eq!(found.manifest, stored.manifest);
        assert_eq!(found.read(&found.manifest.kernel).expect("read"), b"kernel");
    }
    assert_eq!(stored.manifest.kernel.bytes, 6);
}

#[test]
fn the_same_again_is_the_same_image_and_another_is_the_current_one() {
    let place = Place::new();
    let first = place.store("busybox", "quiet");
    assert_eq!(place.store("busybox", "quiet"), first);
    let second = place.store("busybox", "loud");
    place.store("another", "quiet");
    let listed = place.cache.list().expect("listed");
    let names: Vec<(&str, bool)> = listed.iter().map(|g| (g.manifest.name.as_str(), g.current)).collect();
    assert_eq!(names, [("another", true), ("busybox", true), ("busybox", false)]);
    assert_eq!(place.cache.find("busybox").expect("found").manifest, second.manifest);
    assert_ne!(first.manifest.digest, second.manifest.digest);
    // Nothing of the builds is left behind.
    let left = std::fs::read_dir(place.cache.guests()).unwrap().flatten();
    assert!(left.map(|entry| entry.file_name()).all(|name| !name.to_string_lossy().starts_with('.')));
}

#[test]
fn names_do_not_lead_out_of_the_cache() {
    let place = Place::new();
    place.store("busybox", "quiet");
    for name in ["", ".", "..", "../guests/busybox", "busybox/", "/", "nginx", "a\0b"] {
        assert!(matches!(place.cache.find(name), Err(CacheError::Unknown { .. })), "{name:?}");
    }
    assert!(Place::new().cache.list().expect("empty").is_empty());
}

#[test]
fn changed_files_are_noticed() {
    let place = Place::new();
    let guest = place.store("busybox", "quiet");
    std::fs::write(guest.directory.join("initrd"), b"disc").expect("written");
    let initrd = guest.manifest.initrd.clone().expect("it has one");
    assert!(matches!(guest.read(&initrd), Err(CacheError::Changed { .. })));
    let manifest = guest.directory.join(MANIFEST);
    let text = std::fs::read_to_string(&manifest).expect("read").replace("quiet", "quick");
    std::fs::write(&manifest, text).expect("written");
    assert!(matches!(place.cache.find("busybox"), Err(CacheError::Manifest { .. })));
    std::fs::write(&manifest, "{").expect("written");
    assert!(matches!(place.cache.list(), Err(CacheError::Manifest { .. })));
}
