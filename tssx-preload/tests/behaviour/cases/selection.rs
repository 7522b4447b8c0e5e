//! Which sockets USE_TSSX means: abstract names, patterns, escapes, and one socket by several paths. The connection is
//! accelerated in each case, which the ledger proves.

use std::ffi::OsString;
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::harness::{Case, Expect};
use crate::role::Role;
use crate::sys;

pub(super) const CASES: &[Case] = &[
    Case { name: "selected-abstract-name", server: abstract_server, client: abstract_client, expect: Expect::Accelerated },
    Case { name: "selected-by-a-pattern", server: serve_1, client: ask_1, expect: Expect::Accelerated },
    Case { name: "selected-by-a-star", server: serve_1, client: ask_1, expect: Expect::Accelerated },
    Case { name: "selected-with-a-blank", server: serve_blank, client: ask_blank, expect: Expect::Accelerated },
    Case { name: "selected-among-several", server: serve_1, client: ask_1, expect: Expect::Accelerated },
    Case { name: "selected-by-a-relative-path", server: relative_server, client: relative_client, expect: Expect::Accelerated },
    Case { name: "selected-through-a-linked-directory", server: linked_server, client: linked_client, expect: Expect::Accelerated },
    Case { name: "selected-after-a-rename", server: renamed_server, client: ask_1, expect: Expect::Accelerated },
];

/// The USE_TSSX of a case that is about it.
pub(super) fn selection(case: &str, directory: &Path) -> Option<OsString> {
    let within = |name: &str| directory.join(name).into_os_string();
    match case {
        "selected-abstract-name" => Some(format!("@{}", abstract_name(directory)).into()),
        "selected-by-a-pattern" => Some(within("ser?er-[0-9].*")),
        "selected-by-a-star" => Some("*".into()),
        "selected-with-a-blank" => Some(within("with\\ blank")),
        "selected-among-several" => Some([within("none"), within("server-1.sock"), "@other".into()].join(" ".as_ref())),
        "selected-by-a-relative-path" | "selected-through-a-linked-directory" | "selected-after-a-rename" => {
            Some(within("server-1.sock"))
        }
        _ => None,
    }
}

fn abstract_name(directory: &Path) -> String {
    format!("tssx-test{}", directory.display())
}

/// Takes one connection from a listener at `path`, once `ready` is done.
fn serve_at(role: &Role, path: &Path, ready: impl FnOnce()) {
    let listener = UnixListener::bind(path).expect("bind");
    ready();
    role.meet();
    let fd = listener.accept().expect("accept").0.into_raw_fd();
    talk(role, fd);
}

fn ask_at(role: &Role, path: &str) {
    role.meet();
    let fd = sys::socket(libc::SOCK_STREAM);
    role.note("connect", sys::connect(fd, path));
    talk(role, fd);
}

fn talk(role: &Role, fd: i32) {
    role.warm_up(fd);
    role.settle(fd);
    role.note("peer", sys::peer(fd).uid);
    role.meet();
}

fn serve_1(role: &Role) {
    serve_at(role, &role.directory().join("server-1.sock"), || {});
}

fn ask_1(role: &Role) {
    ask_at(role, &role.directory().join("server-1.sock").to_string_lossy());
}

fn serve_blank(role: &Role) {
    serve_at(role, &role.directory().join("with blank"), || {});
}

fn ask_blank(role: &Role) {
    ask_at(role, &role.directory().join("with blank").to_string_lossy());
}

fn abstract_server(role: &Role) {
    let listener = sys::socket(libc::SOCK_STREAM);
    role.note("bind", sys::bind(listener, &format!("\0{}", abstract_name(role.directory()))));
    role.note("listen", sys::listen(listener));
    role.meet();
    talk(role, sys::accept4(listener, 0));
}

fn abstract_client(role: &Role) {
    ask_at(role, &format!("\0{}", abstract_name(role.directory())));
}

fn relative_server(role: &Role) {
    std::env::set_current_dir(role.directory()).expect("chdir");
    serve_at(role, Path::new("server-1.sock"), || {});
}

fn relative_client(role: &Role) {
    std::env::set_current_dir(role.directory()).expect("chdir");
    ask_at(role, "./server-1.sock");
}

fn linked_server(role: &Role) {
    let link = role.directory().join("link");
    std::os::unix::fs::symlink(role.directory(), &link).expect("symlink");
    serve_at(role, &link.join("server-1.sock"), || {});
}

fn linked_client(role: &Role) {
    ask_at(role, &role.directory().join("link/link/server-1.sock").to_string_lossy());
}

/// Bound by a name that nobody selects, and moved to the one that clients know, as HAProxy does.
fn renamed_server(role: &Role) {
    let temporary = role.directory().join("server-1.tmp");
    serve_at(role, &temporary, || {
        std::fs::rename(&temporary, role.directory().join("server-1.sock")).expect("rename");
    });
}
