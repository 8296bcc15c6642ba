//! The data directory: names, locks, what survives.

use super::*;
use crate::protocol::Purpose;

fn open(root: &Path) -> Result<Store, StoreError> {
    open_as(root, Duration::ZERO, None)
}

fn open_as(root: &Path, grace: Duration, machine: Option<&str>) -> Result<Store, StoreError> {
    let limits = Limits { max_vms: 3, max_disks: 2, ..Limits::default() };
    let options = StoreOptions { limits, grace, machine: machine.map(str::to_string) };
    Store::open(root, options, Arc::default())
}

fn request(expect: Generation, claimant: Claimant, purpose: Purpose) -> ClaimRequest {
    ClaimRequest { expect, claimant, purpose, local: false }
}

fn claim(store: &Store, vm: &str, expect: Generation, claimant: Claimant) -> Result<Decision, StoreError> {
    match store.claim(vm, request(expect, claimant, Purpose::Failover))?.0 {
        Verdict::Decided(decision) => Ok(decision),
        Verdict::Held(state) => panic!("a claim of a pair was delayed: {state:?}"),
    }
}

fn code<T>(result: Result<T, StoreError>) -> ErrorCode {
    match result {
        Ok(_) => panic!("not refused"),
        Err(error) => error.code(),
    }
}

#[test]
fn state_survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let (vm, disk) = store.open_disk("vm", "root", Some(4096)).unwrap();
    assert!(claim(&store, "vm", 0, 7).unwrap().is_won());
    vm.fenced(1, || Ok(disk.write(1, 512, &[9; 512])?)).unwrap();
    drop((store, vm, disk));
    let store = open(dir.path()).unwrap();
    let holding = Holding { generation: 1, holder: Some(7) };
    assert_eq!(store.query("vm").unwrap().holding, holding);
    assert_eq!(claim(&store, "vm", 0, 7).unwrap(), Decision::Repeat(holding));
    let (_, disk) = store.open_disk("vm", "root", None).unwrap();
    assert_eq!(disk.bytes(), 4096);
    assert_eq!(disk.read(1, 512, 512).unwrap(), [9; 512]);
}

#[test]
fn a_second_server_is_refused_with_the_first_ones_process() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let message = open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("in use") && message.contains(&std::process::id().to_string()), "{message}");
    drop(store);
    open(dir.path()).unwrap();
}

#[test]
fn names_cannot_leave_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("data")).unwrap();
    for name in ["..", ".", "", "../x", "/x", "a/../../x", "a\0b"] {
        assert_eq!(code(store.open_disk(name, "root", Some(512))), ErrorCode::Invalid, "{name:?}");
        assert_eq!(code(store.open_disk("vm", name, Some(512))), ErrorCode::Invalid, "{name:?}");
        assert_eq!(code(claim(&store, name, 0, 1)), ErrorCode::Invalid);
        assert_eq!(code(store.query(name)), ErrorCode::Invalid);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(store.statistics().0, 0, "a refused name creates nothing");
}

#[test]
fn limits_and_sizes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    for bytes in [0, 511, 5 << 40] {
        assert_eq!(code(store.open_disk("a", "x", Some(bytes))), ErrorCode::Invalid);
    }
    store.open_disk("a", "x", Some(512)).unwrap();
    store.open_disk("a", "x.img", Some(512)).unwrap();
    assert_eq!(code(store.open_disk("a", "z", Some(512))), ErrorCode::Limit);
    assert_eq!(code(store.open_disk("a", "x", Some(1024))), ErrorCode::Conflict);
    assert_eq!(code(store.open_disk("a", "nope", None)), ErrorCode::NotFound);
    assert_eq!(code(store.open_disk("nope", "x", None)), ErrorCode::NotFound);
    claim(&store, "b", 0, 1).unwrap();
    claim(&store, "c", 0, 1).unwrap();
    assert_eq!(code(claim(&store, "d", 0, 1)), ErrorCode::Limit);
}

#[test]
fn a_lost_claim_or_a_query_creates_no_vm() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    assert_eq!(claim(&store, "vm", 4, 1).unwrap(), Decision::Lost(Holding::default()));
    assert_eq!(store.query("vm").unwrap(), VmState::default());
    assert_eq!(store.statistics().0, 0);
}

#[test]
fn a_damaged_record_stops_its_vm_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    for vm in ["bad", "good", "gone"] {
        store.open_disk(vm, "x", Some(512)).unwrap();
        claim(&store, vm, 0, 1).unwrap();
    }
    drop(store);
    let record = dir.path().join("vms/bad/generation");
    let mut bytes = std::fs::read(&record).unwrap();
    bytes[9] ^= 1;
    std::fs::write(&record, bytes).unwrap();
    std::fs::remove_file(dir.path().join("vms/gone/generation")).unwrap();
    let store = open(dir.path()).unwrap();
    for vm in ["bad", "gone"] {
        assert_eq!(code(store.query(vm)), ErrorCode::Failed);
        assert_eq!(code(claim(&store, vm, 0, 2)), ErrorCode::Failed);
        assert_eq!(code(store.open_disk(vm, "x", None)), ErrorCode::Failed);
    }
    assert_eq!(store.query("good").unwrap().holding.generation, 1);
}

#[test]
fn leftovers_of_a_crash_are_cleared_or_ignored() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    std::fs::create_dir_all(dir.path().join("new/vm/disks")).unwrap();
    std::fs::create_dir_all(dir.path().join("vms/.hidden")).unwrap();
    let store = open(dir.path()).unwrap();
    assert_eq!(store.statistics().0, 0);
    store.open_disk("vm", "x", Some(512)).unwrap();
    std::fs::write(dir.path().join("vms/vm/disks/y.new"), b"half").unwrap();
    assert_eq!(store.open_disk("vm", "y", Some(1024)).unwrap().1.bytes(), 1024);
}

#[test]
fn foreign_directories_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("format"), "lockstep disk store 3\n").unwrap();
    assert!(matches!(open(dir.path()), Err(StoreError::Format { .. })));
    std::fs::remove_file(dir.path().join("format")).unwrap();
    std::fs::create_dir(dir.path().join("vms")).unwrap();
    assert!(matches!(open(dir.path()), Err(StoreError::Format { .. })));
}

#[test]
fn a_write_of_an_older_generation_is_finished_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let (vm, disk) = store.open_disk("vm", "x", Some(512)).unwrap();
    claim(&store, "vm", 0, 1).unwrap();
    let (entered, inside) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let (vm, disk) = (&vm, &disk);
        let writer = scope.spawn(move || {
            vm.fenced(1, || {
                entered.send(()).unwrap();
                released.recv().unwrap();
                Ok(disk.write(1, 0, &[1; 512])?)
            })
        });
        inside.recv().unwrap();
        let claim = scope.spawn(|| claim(&store, "vm", 1, 2));
        assert!(!claim.is_finished(), "a claim waits for the write inside the fence");
        release.send(()).unwrap();
        assert!(claim.join().unwrap().unwrap().is_won());
        writer.join().unwrap().unwrap();
    });
    let late = vm.fenced(1, || Ok(disk.write(1, 0, &[2; 512])?));
    assert!(matches!(late, Err(StoreError::Refused(Refusal::Fenced(_)))));
    assert_eq!(disk.read(1, 0, 512).unwrap(), [1; 512]);
}
