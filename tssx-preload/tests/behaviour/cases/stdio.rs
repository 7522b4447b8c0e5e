//! C streams on a connection: libc reads and writes from inside itself, where a preload cannot see it.

use crate::files::{self, Stream};
use crate::harness::{Case, Expect};
use crate::rare;
use crate::role::{Role, SOON, read_exactly, write_all};
use crate::sys;

pub(super) const CASES: &[Case] = &[
    Case { name: "stream-for-reading", server: reading_server, client: reading_client, expect: Expect::Either },
    Case { name: "stream-for-writing", server: writing_server, client: writing_client, expect: Expect::Either },
    Case { name: "stream-for-both", server: both_server, client: both_client, expect: Expect::Either },
    Case { name: "two-streams-on-two-copies", server: copies_server, client: both_client, expect: Expect::Either },
    Case { name: "stream-without-a-buffer", server: bare_server, client: bare_client, expect: Expect::Either },
    Case { name: "stream-by-lines", server: lines_server, client: lines_client, expect: Expect::Either },
    Case { name: "stream-for-appending", server: append_server, client: append_client, expect: Expect::Either },
    Case { name: "stream-to-a-closed-peer", server: gone_server, client: gone_client, expect: Expect::Either },
    Case { name: "stream-reopened-onto-a-file", server: reopen_server, client: reopen_client, expect: Expect::Either },
    Case { name: "stream-of-a-nonblocking-descriptor", server: again_server, client: again_client, expect: Expect::Either },
    Case { name: "stream-before-any-traffic", server: early_server, client: both_client, expect: Expect::Either },
    Case { name: "dprintf-between-writes", server: print_server, client: print_client, expect: Expect::Either },
    Case { name: "popen-and-system-beside-it", server: commands_server, client: commands_client, expect: Expect::Accelerated },
];

fn reading_server(role: &Role) {
    let fd = role.open_warm();
    let stream = Stream::open(fd, c"r").expect("fdopen");
    role.note("first", stream.line());
    role.note("look", stream.look());
    role.note("fgets", stream.gets(5));
    role.note("the rest of the line", stream.gets(50));
    role.note("fread", stream.read(10));
    role.note("state", stream.state(fd));
    role.note("seek", stream.seek());
    role.note("write to it", (stream.write(b"x"), stream.state(fd).2));
    stream.clear();
    role.note("the last line, without end", stream.line());
    role.note("nothing", (stream.line(), stream.look(), stream.state(fd)));
    role.note("fclose", stream.close());
    role.note("closed", sys::fcntl(fd, libc::F_GETFD, 0));
}

fn reading_client(role: &Role) {
    let fd = role.open_warm();
    write_all(fd, b"first line\nsecond line\nten bytes.unfinished");
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.note("end", sys::read(fd, &mut [0; 9]));
}

fn writing_server(role: &Role) {
    let fd = role.open_warm();
    let stream = Stream::open(fd, c"w").expect("fdopen");
    role.note("print", stream.print("hello", 42));
    role.note("put", stream.put("buffered"));
    role.meet();
    role.meet();
    role.note("flush", stream.flush());
    role.note("flush again", stream.flush());
    role.note("large", stream.write(&[b'L'; 50_000]));
    role.note("read from it", (stream.read(1), stream.state(fd).2));
    role.note("the last", stream.put("the end"));
    role.note("fclose", stream.close());
}

fn writing_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    role.note("nothing was written yet", sys::recv(fd, &mut [0], libc::MSG_DONTWAIT));
    role.meet();
    let mut into = [0; 17];
    read_exactly(fd, &mut into);
    role.note("read", String::from_utf8_lossy(&into));
    let mut large = vec![0; 50_007];
    read_exactly(fd, &mut large);
    role.note("large", (large.iter().filter(|byte| **byte == b'L').count(), large.ends_with(b"the end")));
    role.note("end", sys::read(fd, &mut into));
}

/// Requests and replies through one stream, with a flush between, as old protocols are written.
fn both_server(role: &Role) {
    let fd = role.open_warm();
    let stream = Stream::open(fd, c"r+").expect("fdopen");
    for round in 0..10 {
        role.note("request", stream.line());
        assert!(stream.print("reply", round) > 0);
        assert_eq!(stream.flush(), Ok(0));
    }
    role.note("end", (stream.line(), stream.state(fd)));
    role.note("fclose", stream.close());
}

fn both_client(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 8];
    for round in 0..10 {
        write_all(fd, format!("request {round}\n").as_bytes());
        read_exactly(fd, &mut into);
        role.note("reply", String::from_utf8_lossy(&into));
    }
    role.note("shutdown", sys::shutdown(fd, libc::SHUT_WR));
    role.note("end", sys::read(fd, &mut into));
}

fn copies_server(role: &Role) {
    let fd = role.open_warm();
    let copy = sys::dup(fd);
    let (reader, writer) = (Stream::open(fd, c"r").expect("fdopen"), Stream::open(copy, c"w").expect("fdopen"));
    for round in 0..10 {
        role.note("request", reader.line());
        assert!(writer.print("reply", round) > 0);
        assert_eq!(writer.flush(), Ok(0));
    }
    role.note("states", (reader.state(fd), writer.state(copy)));
    role.note("fclose", writer.close());
    role.note("still open", sys::fcntl(fd, libc::F_GETFD, 0).is_ok());
    role.note("end", reader.line());
    role.note("fclose", reader.close());
}

fn early_server(role: &Role) {
    let fd = role.open();
    let stream = Stream::open(fd, c"r+").expect("fdopen");
    for round in 0..24 {
        assert_eq!(stream.read(1).as_bytes(), [round]);
        assert_eq!((stream.write(&[round]), stream.flush()), (1, Ok(0)));
    }
    for round in 0..10 {
        role.note("request", stream.line());
        assert!(stream.print("reply", round) > 0);
        assert_eq!(stream.flush(), Ok(0));
    }
    role.note("end", (stream.line(), stream.state(fd)));
    role.note("fclose", stream.close());
}

fn bare_server(role: &Role) {
    let fd = role.open_warm();
    let stream = Stream::open(fd, c"r+").expect("fdopen");
    role.note("no buffer", stream.buffer(libc::_IONBF));
    role.note("put", (stream.put("at "), stream.put("once")));
    role.meet();
    role.meet();
    role.note("a part", stream.read(4));
    role.note("the rest, past the stream", sys::readable_bytes(fd));
    let mut into = [0; 4];
    role.note("read", (sys::read(fd, &mut into), into));
    role.note("fclose", stream.close());
}

fn bare_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 9];
    role.note("read", (sys::read(fd, &mut into), into));
    write_all(fd, b"eight by");
    role.meet();
    role.note("end", sys::read(fd, &mut into));
}

fn lines_server(role: &Role) {
    let fd = role.open_warm();
    let stream = Stream::open(fd, c"w").expect("fdopen");
    role.note("by lines", stream.buffer(libc::_IOLBF));
    role.note("put", stream.put("a whole line\nand a half"));
    role.meet();
    role.meet();
    role.note("put", stream.put(" is whole now\n"));
    role.meet();
    role.note("fclose", stream.close());
}

fn lines_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 40];
    let got = sys::read(fd, &mut into).expect("data");
    role.note("first", String::from_utf8_lossy(&into[..got]));
    role.meet();
    role.meet();
    let mut rest = Vec::new();
    while let Ok(count @ 1..) = sys::read(fd, &mut into) {
        rest.extend_from_slice(&into[..count]);
    }
    role.note("rest", String::from_utf8_lossy(&rest));
}

fn append_server(role: &Role) {
    let fd = role.open_warm();
    role.note("a bad mode", Stream::open(fd, c"q").err());
    role.note("a closed descriptor", Stream::open(999, c"r").err());
    let stream = Stream::open(fd, c"a").expect("fdopen");
    role.note("O_APPEND", sys::fcntl(fd, libc::F_GETFL, 0).map(|flags| flags as i32 & libc::O_APPEND != 0));
    role.note("put", stream.put("appended"));
    role.note("fclose", stream.close());
}

fn append_client(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 8];
    read_exactly(fd, &mut into);
    role.note("read", String::from_utf8_lossy(&into));
    role.note("end", sys::read(fd, &mut into));
}

fn gone_server(role: &Role) {
    let fd = role.open_warm();
    let stream = Stream::open(fd, c"w").expect("fdopen");
    role.meet();
    role.note("put", stream.put("into the buffer"));
    role.note("flush", stream.flush());
    role.note("state", stream.state(fd));
    role.note("fclose", stream.close());
}

fn gone_client(role: &Role) {
    let fd = role.open_warm();
    role.note("close", sys::close(fd));
    role.meet();
}

fn reopen_server(role: &Role) {
    let fd = role.open_warm();
    let stream = Stream::open(fd, c"w").expect("fdopen");
    role.note("put", stream.put("to the peer"));
    let path = role.directory().join("file");
    role.note("freopen", stream.reopen(&path.to_string_lossy(), c"w"));
    role.note("put", stream.put("to the file"));
    role.note("fclose", stream.close());
    role.note("the file", std::fs::read_to_string(path).ok());
}

fn reopen_client(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 11];
    read_exactly(fd, &mut into);
    role.note("read", String::from_utf8_lossy(&into));
    role.note("end", sys::read(fd, &mut into));
}

fn again_server(role: &Role) {
    let fd = role.open_warm();
    sys::set_nonblocking(fd, true);
    let stream = Stream::open(fd, c"r").expect("fdopen");
    role.note("nothing", (stream.look(), stream.state(fd)));
    stream.clear();
    role.meet();
    role.note("poll", sys::poll(fd, libc::POLLIN, SOON));
    role.note("a part of a line", (stream.line(), stream.state(fd)));
    stream.clear();
    role.meet();
    role.note("poll", sys::poll(fd, libc::POLLIN, SOON));
    role.note("the rest", (stream.line(), stream.state(fd)));
    role.note("fclose", stream.close());
}

fn again_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    write_all(fd, b"half a ");
    role.meet();
    write_all(fd, b"line\n");
    role.note("end", sys::read(fd, &mut [0]));
}

fn print_server(role: &Role) {
    let fd = role.open_warm();
    for round in 0..5 {
        write_all(fd, b"<");
        role.note("dprintf", rare::print(fd, "line", round));
        role.note("send", sys::send(fd, b">", libc::MSG_NOSIGNAL));
    }
    role.note("a closed descriptor", rare::print(999, "line", 1));
    role.meet();
    role.settle(fd);
}

fn print_client(role: &Role) {
    let fd = role.open_warm();
    role.meet();
    let mut into = [0; 100];
    let got = sys::read(fd, &mut into).expect("data");
    role.note("one read", String::from_utf8_lossy(&into[..got]));
    role.settle(fd);
}

fn commands_server(role: &Role) {
    let fd = role.open_warm();
    role.note("popen", files::popen("echo from a shell; exit 3"));
    write_all(fd, b"between");
    role.note("system", files::system("exit 5"));
    role.settle(fd);
    role.note("popen", files::popen("cat /dev/null"));
    role.settle(fd);
}

fn commands_client(role: &Role) {
    let fd = role.open_warm();
    let mut into = [0; 7];
    read_exactly(fd, &mut into);
    role.note("read", into);
    role.settle(fd);
    role.note("system", files::system("true"));
    role.settle(fd);
}
