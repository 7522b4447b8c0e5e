//! The ends of a connection in different places: other namespaces, other roots, other users, no `/proc`. Where the kernel tells the library
//! what it must know, the connection is accelerated all the same; where it does not, it stays plain, with the reason.
//!
//! Most of this needs root, and the cases are ones of the ordinary kind without. Whatever a role mounts is its own namespace's and goes
//! with it.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{PermissionsExt, chroot};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_dumpable;
use nix::unistd::{Gid, Uid, fchdir, getegid, geteuid, setgroups, setresgid, setresuid};

use tssx_core::reason::Reason;

use super::limits::{ask, echo, echo_client, echo_server};
use crate::harness::{Case, Expect};
use crate::role::Role;
use crate::sys;

use Expect::Accelerated;

pub(super) const CASES: &[Case] = &[
    Case { name: "proc-shows-only-ones-own", server: hidden_server, client: hidden_client, expect: Accelerated },
    Case { name: "no-proc", server: procless_server, client: procless_client, expect: Accelerated },
    Case { name: "another-root-at-the-server", server: jailed_server, client: echo_client, expect: Accelerated },
    Case { name: "another-root-at-the-client", server: echo_server, client: jailed_client, expect: Accelerated },
    Case { name: "another-root-once-connected", server: echo_server, client: late_client, expect: Accelerated },
    Case { name: "another-mount-namespace", server: echo_server, client: mounted_client, expect: Accelerated },
    Case { name: "another-pid-namespace", server: far_server, client: far_client, expect: Accelerated },
    Case { name: "relatives-in-two-pid-namespaces", server: records_server, client: related_client, expect: Accelerated },
    Case { name: "relatives-that-are-both-process-1", server: records_server, client: twin_client, expect: Accelerated },
    Case { name: "another-user-namespace", server: echo_server, client: mapped_client, expect: Accelerated },
    Case {
        name: "a-user-namespace-without-users",
        server: echo_server,
        client: mapless_client,
        expect: Expect::PlainForRoot(Reason::PeerCredentials),
    },
    Case { name: "another-user-at-the-client", server: open_server, client: nobody_client, expect: Accelerated },
    Case {
        name: "another-user-than-the-one-that-listened",
        server: dropping_server,
        client: ask_at_socket,
        expect: Expect::PlainForRoot(Reason::PeerCredentials),
    },
    Case { name: "the-same-unprivileged-user", server: nobody_server, client: nobody_at_own, expect: Accelerated },
];

/// The USE_TSSX of a case whose ends call the socket by different names.
pub(super) fn selection(case: &str, directory: &Path) -> Option<OsString> {
    let within = |name: &str| directory.join(name).into_os_string();
    match case {
        "another-root-at-the-client" => Some([within("socket"), "/socket".into()].join(" ".as_ref())),
        "another-mount-namespace" => Some([within("socket"), within("elsewhere/socket")].join(" ".as_ref())),
        "the-same-unprivileged-user" | "proc-shows-only-ones-own" => Some(within("own")),
        _ => None,
    }
}

/// Once the server is ready.
fn ask_at_socket(role: &Role) {
    role.meet();
    echo_client(role);
}

fn ask_by(role: &Role, path: &Path) {
    let fd = sys::socket(libc::SOCK_STREAM);
    role.note("connect", sys::connect(fd, &path.to_string_lossy()));
    ask(role, fd);
    role.note("close", sys::close(fd));
}

fn is_root() -> bool {
    geteuid().is_root()
}

/// A mount namespace of one's own, from which nothing gets out.
fn private_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).expect("private mounts");
}

/// From now on this process has the rights of nobody; its memory may still be read by itself, for the ledger.
fn become_nobody_if_root() {
    if !is_root() {
        return;
    }
    let (user, group) = (Uid::from_raw(65534), Gid::from_raw(65534));
    setgroups(&[]).expect("no groups");
    setresgid(group, group, group).expect("another group");
    setresuid(user, user, user).expect("another user");
    set_dumpable(true).expect("prctl");
}

/// Files of the case are everybody's.
fn open_to_all(role: &Role) {
    for path in [role.directory(), &role.path()] {
        fs::set_permissions(path, Permissions::from_mode(0o777)).expect("our own files");
    }
}

/// A listener of this process as it is by now: the role's own was made before.
fn serve_own(role: &Role) {
    let listener = UnixListener::bind(role.directory().join("own")).expect("bind");
    role.meet();
    let fd = listener.accept().expect("accept").0.into_raw_fd();
    echo(fd);
    role.note("end", sys::read(fd, &mut [0]));
}

fn ask_own(role: &Role) {
    role.meet();
    ask_by(role, &role.directory().join("own"));
}

/// Nobody, who cannot see root's processes.
fn hide(role: &Role) {
    let root = is_root();
    if root {
        private_mounts();
        mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), Some("hidepid=2")).expect("a proc that hides");
        become_nobody_if_root();
    }
    role.note("process 1 is hidden", Path::new("/proc/1").exists() != root);
}

fn hidden_server(role: &Role) {
    open_to_all(role);
    hide(role);
    serve_own(role);
}

fn hidden_client(role: &Role) {
    hide(role);
    ask_own(role);
}

/// With no `/proc` while `body` runs. The end of a role needs it.
fn without_proc(role: &Role, body: fn(&Role)) {
    if !is_root() {
        return body(role);
    }
    private_mounts();
    mount(Some("none"), "/proc", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("an empty folder");
    assert!(!Path::new("/proc/self").exists());
    body(role);
    umount2("/proc", MntFlags::MNT_DETACH).expect("umount");
}

fn procless_server(role: &Role) {
    without_proc(role, echo_server);
}

fn procless_client(role: &Role) {
    without_proc(role, echo_client);
}

/// With the case's directory as the root while `body` runs; what is opened before stays open.
fn jailed(role: &Role, body: impl FnOnce(&Path)) {
    if !is_root() {
        return body(role.directory());
    }
    let root = File::open("/").expect("open");
    chroot(role.directory()).expect("chroot");
    std::env::set_current_dir("/").expect("chdir");
    body(Path::new("/"));
    fchdir(&root).expect("fchdir");
    chroot(".").expect("out again");
}

fn jailed_server(role: &Role) {
    jailed(role, |_| echo_server(role));
}

fn jailed_client(role: &Role) {
    jailed(role, |root| ask_by(role, &root.join("socket")));
}

fn late_client(role: &Role) {
    let fd = role.open();
    jailed(role, |_| ask(role, fd));
    role.note("close", sys::close(fd));
}

/// As in a container: the socket's folder is mounted at another place.
fn mounted_client(role: &Role) {
    let elsewhere = role.directory().join("elsewhere");
    fs::create_dir(&elsewhere).expect("mkdir");
    if is_root() {
        private_mounts();
        mount(Some(role.directory()), &elsewhere, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("a bind mount");
    } else {
        fs::hard_link(role.path(), elsewhere.join("socket")).expect("another name");
    }
    ask_by(role, &elsewhere.join("socket"));
}

/// The next child is process 1 of a namespace of its own.
fn other_pids() {
    if is_root() {
        unshare(CloneFlags::CLONE_NEWPID).expect("a pid namespace");
    }
}

fn far_server(role: &Role) {
    let fd = role.open();
    other_pids();
    let child = sys::in_child(|| {
        echo(fd);
        role.note("process 1", std::process::id() == 1 || !is_root());
    });
    role.note("close", sys::close(fd));
    role.note("child", child.wait());
}

fn far_client(role: &Role) {
    let fd = role.open();
    other_pids();
    let child = sys::in_child(|| {
        ask(role, fd);
        role.note("end", sys::read(fd, &mut [0]));
    });
    // As long as two processes hold an end, it does not move into a ring.
    role.note("close", sys::close(fd));
    role.note("child", child.wait());
}

const RECORD: usize = 4096;
const EACH: usize = 6000;

/// Each record is of one writer. None may be cut or lost.
fn records_server(role: &Role) {
    let fd = role.open_warm();
    let (mut whole, mut seen, mut into) = (true, [0; 2], vec![0; RECORD]);
    for _ in 0..2 * EACH {
        assert_eq!(sys::recv(fd, &mut into, libc::MSG_WAITALL), Ok(RECORD));
        whole &= into.iter().all(|byte| *byte == into[0]) && into[0] < 2;
        seen[usize::from(into[0] & 1)] += 1;
    }
    role.note("whole", (whole, seen));
    role.note("end", sys::read(fd, &mut [0]));
}

fn write_records(fd: i32, writer: u8) {
    for _ in 0..EACH {
        assert_eq!(sys::write(fd, &[writer; RECORD]), Ok(RECORD));
    }
}

fn related_client(role: &Role) {
    let fd = role.open_warm();
    other_pids();
    let child = sys::in_child(|| write_records(fd, 1));
    write_records(fd, 0);
    role.note("child", child.wait());
}

/// The same process id twice, and after a fork the same thread pointer.
fn twin_client(role: &Role) {
    let fd = role.open_warm();
    other_pids();
    let twin = sys::in_child(|| {
        other_pids();
        let twin = sys::in_child(|| write_records(fd, 1));
        write_records(fd, 0);
        assert_eq!(twin.wait(), "exit 0");
    });
    role.note("child", twin.wait());
}

/// Root of its own namespace, as which the server's user is seen too.
fn mapped_client(role: &Role) {
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).expect("a user namespace");
    fs::write("/proc/self/setgroups", "deny").expect("setgroups");
    fs::write("/proc/self/uid_map", format!("0 {user} 1")).expect("uid_map");
    fs::write("/proc/self/gid_map", format!("0 {group} 1")).expect("gid_map");
    echo_client(role);
}

/// To whom every user is the same: the other end could be anybody's.
fn mapless_client(role: &Role) {
    unshare(CloneFlags::CLONE_NEWUSER).expect("a user namespace");
    echo_client(role);
}

fn open_server(role: &Role) {
    open_to_all(role);
    role.meet();
    echo_server(role);
}

fn nobody_client(role: &Role) {
    become_nobody_if_root();
    ask_at_socket(role);
}

/// Prepares as root, serves as nobody.
fn dropping_server(role: &Role) {
    open_to_all(role);
    become_nobody_if_root();
    role.meet();
    echo_server(role);
}

fn nobody_server(role: &Role) {
    open_to_all(role);
    become_nobody_if_root();
    serve_own(role);
}

fn nobody_at_own(role: &Role) {
    become_nobody_if_root();
    ask_own(role);
}
