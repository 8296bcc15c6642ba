//! A TAP device: the host kernel's end of an Ethernet link (Linux, Documentation/networking/tuntap.rst).
//!
//! One read or write moves one frame. The reader waits in `poll` for the device or for `Closer::close`.

// TUNSETIFF has no safe wrapper.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{BackendError, PATIENCE_MS};
use crate::stream::is_not_now;
use crate::wire::{FrameBatch, MAX_FRAME_LEN, MIN_FRAME_LEN, is_frame_len};

const DEVICE: &str = "/dev/net/tun";
/// Frames taken by one `read`.
const FRAMES_PER_READ: usize = 64;

const NO_RIGHT: &str = "; it needs CAP_NET_ADMIN: use `lockstep lan` instead, or run as root";
const NO_DRIVER: &str = "; the host has no TAP driver (modprobe tun): use `lockstep lan` instead";
const NO_TAP: &str = "; there is a network device of that name, but it is not a TAP device";
const BUSY: &str = "; another process uses it";
const BAD_NAME: &str = "; a device name has 1 to 15 characters and neither '/' nor spaces";

mod ioctl {
    // _IOW('T', 202, int): the argument is a pointer to an ifreq all the same.
    nix::ioctl_write_ptr_bad!(
        /// Attaches an open /dev/net/tun to the interface that the request names.
        tunsetiff,
        nix::request_code_write!(b'T', 202, core::mem::size_of::<libc::c_int>()),
        libc::ifreq
    );
}

/// An attached TAP device.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Attaches to the TAP device `name`; if it does not exist, it is made where `create` says so.
    pub(super) fn open(name: &str, create: bool) -> Result<Self, BackendError> {
        let fail = |source: io::Error, hint| BackendError::Tap { name: name.to_owned(), source, hint };
        let bytes = name.as_bytes();
        let valid = (1..libc::IFNAMSIZ).contains(&bytes.len())
            && bytes.iter().all(|b| b.is_ascii_graphic() && *b != b'/' && *b != b'%');
        if !valid {
            return Err(fail(io::ErrorKind::InvalidInput.into(), BAD_NAME));
        }
        let hint = |error: &io::Error| match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => NO_RIGHT,
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => NO_DRIVER,
            Some(libc::EINVAL) => NO_TAP,
            Some(libc::EBUSY) => BUSY,
            _ => "",
        };
        if !create && index_of(name).is_none() {
            return Err(BackendError::NoTap { name: name.to_owned() });
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
        let file = options.open(DEVICE).map_err(|error| {
            let hint = hint(&error);
            fail(error, hint)
        })?;
        attach(&file, bytes).map_err(|errno| {
            let error = io::Error::from(errno);
            let hint = hint(&error);
            fail(error, hint)
        })?;
        warn_unless_connected(name);
        Ok(Self(file))
    }

    pub(super) fn split(self) -> io::Result<(TapReader, TapWriter, TapCloser)> {
        let file = Arc::new(self.0);
        let closed = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        Ok((
            TapReader { file: file.clone(), closed: closed.clone() },
            TapWriter { file, full: false },
            TapCloser(closed),
        ))
    }
}

/// The index of the interface with this name in this thread's network namespace.
fn index_of(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok().filter(|&index| index != 0)
}

/// Says what keeps frames from leaving a device that is there.
fn warn_unless_connected(name: &str) {
    let mut interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let up = interfaces.any(|interface| {
        interface.interface_name == name && interface.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP)
    });
    if !up {
        tracing::warn!("the TAP device {name} is down: ip link set {name} up");
    }
    // sysfs shows the network namespace that it was mounted in, which need not be this thread's.
    let directory = std::path::Path::new("/sys/class/net").join(name);
    let index = std::fs::read_to_string(directory.join("ifindex")).ok();
    let same = index.and_then(|text| text.trim().parse().ok()) == index_of(name);
    if same && !directory.join("master").exists() {
        tracing::warn!(
            "the TAP device {name} is in no bridge: frames reach this host alone, as far as it has an \
             address there (ip link set {name} master BRIDGE)"
        );
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "flags of 16 bits, and bytes of a name, as C has them"
)]
fn attach(file: &File, name: &[u8]) -> Result<(), Errno> {
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    // SAFETY: `file` is an open descriptor for the whole call; `request` is an ifreq with a name that ends in
    // zero (its length was checked) and flags, which is what TUNSETIFF reads; it lives until the call
    // returns, and the kernel keeps no pointer to it.
    unsafe { ioctl::tunsetiff(file.as_raw_fd(), &request) }.map(drop)
}

#[derive(Debug)]
pub(super) struct TapReader {
    file: Arc<File>,
    closed: Arc<EventFd>,
}

impl TapReader {
    pub(super) fn read(&mut self, batch: &mut FrameBatch) -> Result<(), BackendError> {
        let before = batch.len();
        loop {
            self.wait()?;
            while batch.len() - before < FRAMES_PER_READ {
                let mut frame = [0; MAX_FRAME_LEN];
                match (&*self.file).read(&mut frame) {
                    Ok(count) if count >= MIN_FRAME_LEN => batch.push(&frame[..count]),
                    Ok(_) => {}
                    Err(error) if is_not_now(&error) => break,
                    Err(error) => return Err(BackendError::Io(error)),
                }
            }
            if batch.len() > before {
                return Ok(());
            }
        }
    }

    fn wait(&self) -> Result<(), BackendError> {
        loop {
            let mut set = [
                PollFd::new(self.closed.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.file.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut set, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(BackendError::Io(errno.into())),
                Ok(_) => {}
            }
            if set[0].any().unwrap_or(false) {
                return Err(BackendError::Closed);
            }
            if set[1].any().unwrap_or(false) {
                return Ok(());
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct TapWriter {
    file: Arc<File>,
    full: bool,
}

impl TapWriter {
    pub(super) fn write(&mut self, frames: &[&[u8]]) -> Result<usize, BackendError> {
        let mut sent = 0;
        for frame in frames.iter().filter(|f| is_frame_len(f.len())) {
            loop {
                match (&*self.file).write(frame) {
                    Ok(_) => {
                        self.full = false;
                        sent += 1;
                        break;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if is_not_now(&error) && !self.full && self.wait()? => {}
                    Err(error) if is_not_now(&error) => {
                        self.full = true;
                        break;
                    }
                    // The interface is down: its cable is out, frames are lost.
                    Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
                    Err(error) => return Err(BackendError::Io(error)),
                }
            }
        }
        Ok(sent)
    }

    fn wait(&self) -> Result<bool, BackendError> {
        let mut set = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut set, PollTimeout::from(PATIENCE_MS)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(true),
            Err(errno) => Err(BackendError::Io(errno.into())),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct TapCloser(Arc<EventFd>);

impl TapCloser {
    pub(super) fn close(&self) {
        // It can only fail when its counter is full: then it is readable all the same.
        let _ = self.0.write(1);
    }
}
