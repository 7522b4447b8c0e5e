//! What the connection says about itself: options, names, credentials, kinds of descriptor.

use crate::harness::{Case, Expect};
use crate::role::{Role, SOON, write_all};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    Case { name: "socket-options", server: options_server, client: options_client, expect: Expect::Accelerated },
    Case { name: "credentials-and-names", server: names_server, client: names_client, expect: Expect::Accelerated },
    Case { name: "buffer-sizes", server: buffers_server, client: buffers_client, expect: Expect::Accelerated },
    Case { name: "bytes-available", server: available_server, client: available_client, expect: Expect::Accelerated },
];

/// Options that tools ask for, with those that a Unix socket must refuse.
const OPTIONS: [(&str, i32, i32); 12] = [
    ("SO_TYPE", libc::SOL_SOCKET, libc::SO_TYPE),
    ("SO_DOMAIN", libc::SOL_SOCKET, libc::SO_DOMAIN),
    ("SO_PROTOCOL", libc::SOL_SOCKET, libc::SO_PROTOCOL),
    ("SO_ERROR", libc::SOL_SOCKET, libc::SO_ERROR),
    ("SO_ACCEPTCONN", libc::SOL_SOCKET, libc::SO_ACCEPTCONN),
    ("SO_SNDBUF", libc::SOL_SOCKET, libc::SO_SNDBUF),
    ("SO_RCVBUF", libc::SOL_SOCKET, libc::SO_RCVBUF),
    ("SO_KEEPALIVE", libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    ("SO_PASSCRED", libc::SOL_SOCKET, libc::SO_PASSCRED),
    ("SO_REUSEADDR", libc::SOL_SOCKET, libc::SO_REUSEADDR),
    ("TCP_NODELAY", libc::IPPROTO_TCP, libc::TCP_NODELAY),
    ("an unknown option", libc::SOL_SOCKET, 9999),
];

fn options_server(role: &Role) {
    let fd = role.open_warm();
    for (name, level, option) in OPTIONS {
        role.note(name, sys::option(fd, level, option));
    }
    role.note("set TCP_NODELAY", sys::set_tcp_nodelay(fd));
    role.note("set SO_KEEPALIVE", sys::set_option(fd, libc::SO_KEEPALIVE, &1_i32));
    role.note("SO_KEEPALIVE", sys::option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE));
    role.note("set an unknown option", sys::set_option(fd, 9999, &1_i32));
    role.note("no socket", sys::option(2, libc::SOL_SOCKET, libc::SO_TYPE));
    role.warm_up(fd);
}

fn options_client(role: &Role) {
    let fd = role.open_warm();
    for (name, level, option) in OPTIONS {
        role.note(name, sys::option(fd, level, option));
    }
    role.warm_up(fd);
}

fn names_server(role: &Role) {
    let fd = role.open_warm();
    let peer = sys::peer(fd);
    role.note("user and group", (peer.uid, peer.gid));
    let pid = std::fs::read_to_string(role.directory().join("pid"));
    role.note("the client's process", pid.ok() == Some(peer.pid.to_string()));
    role.note("a socket", sys::is_socket(fd));
    role.note("own name", sys::name_length(fd, false).map(|length| length > 10));
    role.note("peer's name", sys::name_length(fd, true));
    role.meet();
}

fn names_client(role: &Role) {
    std::fs::write(role.directory().join("pid"), std::process::id().to_string()).expect("write");
    let fd = role.open_warm();
    let peer = sys::peer(fd);
    role.note("user and group", (peer.uid, peer.gid));
    role.note("a socket", sys::is_socket(fd));
    role.note("own name", sys::name_length(fd, false));
    role.note("peer's name", sys::name_length(fd, true).map(|length| length > 10));
    role.meet();
}

fn buffers_server(role: &Role) {
    let fd = role.open_warm();
    for size in [4096, 65_536, 1 << 17, 1] {
        role.note("set", sys::set_option(fd, libc::SO_SNDBUF, &size));
        role.note("SO_SNDBUF", sys::option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF));
        role.note("set", sys::set_option(fd, libc::SO_RCVBUF, &size));
        role.note("SO_RCVBUF", sys::option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF));
        role.warm_up(fd);
    }
}

fn buffers_client(role: &Role) {
    let fd = role.open_warm();
    for _ in 0..4 {
        role.note("SO_SNDBUF", sys::option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF));
        role.warm_up(fd);
    }
}

fn available_server(role: &Role) {
    let fd = role.open_warm();
    role.note("before", sys::readable_bytes(fd));
    let mut total = 0;
    for size in [1, 10, 1000, 60_000] {
        role.meet();
        role.meet();
        total += size;
        role.note("available", sys::readable_bytes(fd).map(|bytes| bytes == total));
    }
    role.note("read", sys::recv(fd, &mut vec![0; total - 5], libc::MSG_WAITALL));
    role.note("the rest", sys::readable_bytes(fd));
    role.note("poll", sys::poll(fd, libc::POLLIN, SOON));
}

fn available_client(role: &Role) {
    let fd = role.open_warm();
    for size in [1, 10, 1000, 60_000] {
        role.meet();
        write_all(fd, &vec![7; size]);
        role.meet();
    }
    role.note("end", sys::poll(fd, libc::POLLIN, SOON).is_ok());
}
