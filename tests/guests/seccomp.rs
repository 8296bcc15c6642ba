//! System calls that a process is refused.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the process that `command` starts refused memory files, as some hosts refuse those that can be
/// executed.
pub fn refuse_memory_files(command: &mut Command) {
    let filter = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let refuse = |errno: i32| libc::SECCOMP_RET_ERRNO | errno as u32;
    let program = [
        filter((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, 0),
        filter((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, 1, libc::SYS_memfd_create as u32),
        filter((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, refuse(libc::EACCES)),
        filter((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let mut program = program;
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: a number is all that it is given.
        let bound = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } == 0;
        let mode = libc::SECCOMP_MODE_FILTER;
        // SAFETY: the program is alive during the call, and nothing else is pointed to.
        let done = bound && unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) } == 0;
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: it makes two system calls and allocates nothing.
    unsafe { command.pre_exec(install) };
}
