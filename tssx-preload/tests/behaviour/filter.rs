//! A seccomp filter that makes system calls fail, as containers have it.
#![allow(unsafe_code, reason = "hands a filter to the kernel")]

use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, c_long, sock_filter, sock_fprog};

/// From now on these calls of this process fail with EPERM, seccomp(2).
pub(crate) fn refuse(calls: &[c_long]) {
    let step = |code: u32, jump_true: u8, k: u32| sock_filter { code: code as u16, jt: jump_true, jf: 0, k };
    // The system call's number is the first word of `struct seccomp_data`.
    let mut program = vec![step(BPF_LD | BPF_W | BPF_ABS, 0, 0)];
    for (index, call) in calls.iter().enumerate() {
        let refusal = calls.len() - index; // behind the other comparisons and "allow"
        program.push(step(BPF_JMP | BPF_JEQ | BPF_K, refusal as u8, *call as u32));
    }
    program.push(step(BPF_RET | BPF_K, 0, libc::SECCOMP_RET_ALLOW));
    program.push(step(BPF_RET | BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32));
    let filter = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: prctl(2) with plain numbers, and then with a live program that the kernel copies.
    let installed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) == 0
    };
    assert!(installed, "cannot install a filter: {}", std::io::Error::last_os_error());
}
