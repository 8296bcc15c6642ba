//! Something that stands between primary and backup on the logging channel, or before the disk server: it
//! passes bytes on, until it is told to cut, to swallow, to hold or to change them.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::harness::wait_until;

/// The way that bytes go, on a logging channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Entries; before a disk server, requests.
    ToBackup,
    /// Acks; answers.
    ToPrimary,
}

/// What is done to the next bytes of one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tamper {
    /// They come twice.
    Replay,
    /// One bit is another.
    Flip,
    /// The first half is missing.
    Truncate,
    /// Their frame claims to be as long as can be written down.
    Oversize,
    /// Their frame claims another version.
    Version,
    /// Bytes that are no frame come instead.
    Garbage,
}

impl Tamper {
    /// All of them.
    pub const ALL: [Tamper; 6] =
        [Tamper::Replay, Tamper::Flip, Tamper::Truncate, Tamper::Oversize, Tamper::Version, Tamper::Garbage];

    fn apply(self, bytes: &mut Vec<u8>) {
        match self {
            Tamper::Replay => bytes.extend_from_within(..),
            Tamper::Flip => bytes[24] ^= 4,
            Tamper::Truncate => drop(bytes.drain(..bytes.len() / 2)),
            Tamper::Oversize => bytes[16..20].fill(0xff),
            Tamper::Version => bytes[4] ^= 0x55,
            Tamper::Garbage => bytes.iter_mut().for_each(|byte| *byte = byte.wrapping_mul(167) ^ 0x5a),
        }
    }
}

/// What becomes of connections after the first ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Later {
    /// They pass, as the first.
    Pass,
    /// What comes on them for the target is kept until `release`.
    Hold,
    /// They are closed at once.
    Refuse,
}

#[derive(Default)]
struct Shared {
    swallow: AtomicBool,
    hold: AtomicBool,
    /// `release` was called: nothing is held any more.
    released: AtomicBool,
    held: AtomicUsize,
    tamper: Mutex<Option<(Way, Tamper)>>,
    streams: Mutex<Vec<TcpStream>>,
}

/// The relay. It ends its connections when dropped, and takes no more once it was cut.
pub struct Relay {
    address: String,
    shared: Arc<Shared>,
}

impl Relay {
    /// Waits for connections on an address of its own, and passes each on to `target`.
    pub fn start(target: &str) -> Self {
        Self::start_with(target, usize::MAX, Later::Pass)
    }

    /// The same, but only for the first so many connections.
    pub fn start_with(target: &str, first: usize, later: Later) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("an address for the relay");
        let address = listener.local_addr().expect("its address").to_string();
        let shared = Arc::new(Shared::default());
        let (of_thread, target) = (shared.clone(), target.to_string());
        start("relay", move || serve(&listener, &target, first, later, &of_thread));
        Self { address, shared }
    }

    /// Where the primary connects.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Ends both connections: each half sees its channel break.
    pub fn cut(&self) {
        for stream in lock(&self.shared.streams).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Takes bytes from both halves from now on, and passes none on.
    pub fn swallow(&self) {
        self.shared.swallow.store(true, Ordering::Release);
    }

    /// Keeps what comes for the target from now on.
    pub fn hold(&self) {
        self.shared.released.store(false, Ordering::Release);
        self.shared.hold.store(true, Ordering::Release);
    }

    /// Bytes kept so far.
    pub fn held(&self) -> usize {
        self.shared.held.load(Ordering::Acquire)
    }

    /// Passes on what was kept, even if whoever sent it is gone.
    pub fn release(&self) {
        self.shared.released.store(true, Ordering::Release);
        self.shared.hold.store(false, Ordering::Release);
    }

    /// Changes the next bytes of one way.
    pub fn tamper(&self, way: Way, tamper: Tamper) {
        *lock(&self.shared.tamper) = Some((way, tamper));
    }

    /// Whether that has happened.
    pub fn tampered(&self) -> bool {
        lock(&self.shared.tamper).is_none()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.release();
        self.cut();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(name: &str, body: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().name(name.into()).spawn(body).expect("a thread");
}

fn serve(listener: &TcpListener, target: &str, first: usize, later: Later, shared: &Arc<Shared>) {
    for number in 0.. {
        let Ok((primary, _)) = listener.accept() else { return };
        let is_later = number >= first;
        if is_later && later == Later::Refuse {
            continue;
        }
        let holds = is_later && later == Later::Hold;
        let Ok(backup) = TcpStream::connect(target) else { return };
        for stream in [&primary, &backup] {
            let _ = stream.set_nodelay(true);
            lock(&shared.streams).extend(stream.try_clone());
        }
        let (Ok(from), Ok(to)) = (primary.try_clone(), backup.try_clone()) else { return };
        let of_thread = shared.clone();
        start("relay-to-target", move || pump(from, to, Way::ToBackup, holds, &of_thread));
        let of_thread = shared.clone();
        start("relay-back", move || pump(backup, primary, Way::ToPrimary, false, &of_thread));
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, way: Way, holds: bool, shared: &Shared) {
    let mut buffer = vec![0; 64 << 10];
    let is_held = || {
        let asked = shared.hold.load(Ordering::Acquire);
        way == Way::ToBackup && (asked || holds && !shared.released.load(Ordering::Acquire))
    };
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if shared.swallow.load(Ordering::Acquire) {
            continue;
        }
        if is_held() {
            shared.held.fetch_add(count, Ordering::AcqRel);
            wait_until("the relay to let go", || !is_held());
        }
        let mut bytes = buffer[..count].to_vec();
        let mut tamper = lock(&shared.tamper);
        // Only what begins a frame is changed, and is long enough to have a header.
        if bytes.starts_with(b"LKLC")
            && bytes.len() > 24
            && let Some((_, how)) = tamper.take_if(|(of, _)| *of == way)
        {
            how.apply(&mut bytes);
        }
        drop(tamper);
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    if !shared.swallow.load(Ordering::Acquire) {
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}
