//! Call sites that no scenario is sure to reach, and why that is right.

use super::site::Site;

/// A function of the library (any, if empty), a function of its door (any, if empty), and the reason.
const REASONS: &[(&str, &str, &str)] = &[
    ("", "close", "what close says is not looked at, here as at the sites that are reached"),
    ("", "unmap", "what munmap says is not looked at, here as at the sites that are reached"),
    ("", "write_stderr", "what write says is not looked at: a word to the person who has configured it wrongly, or to a log"),
    ("", "by_poll", "poll(2), only where ppoll(2) is refused: cells at all sites"),
    (
        "",
        "poll_now",
        "of one descriptor, without waiting: fails for a signal only, and is then made again, here as at the sites that are reached",
    ),
    ("", "queued_bytes", "FIONREAD of an open stream does not fail; a filter refuses it at all sites"),
    ("", "unsent_bytes", "TIOCOUTQ of an open stream does not fail; a filter refuses it at all sites"),
    ("", "at_mark", "SIOCATMARK of an open stream does not fail; a filter refuses it at all sites"),
    ("", "getsockopt<i32>", "an option that every kernel has; a filter refuses it at all sites"),
    ("", "fstat", "of an open socket it does not fail; a filter refuses it at all sites"),
    (
        "",
        "process_lives",
        "only for a relative that has died with a lock or in a send, which `kills` brings about; one of which nothing can be said lives",
    ),
    ("", "change_mapping", "the program's own call, whose answer is passed on"),
    ("", "dup3", "the program's own call, whose answer is passed on"),
    ("Chunk>", "map", "only for a descriptor of 4096 or more: a table without a place for it takes it for none of ours"),
    (
        "",
        "is_readable",
        "only for memory that madvise(2) says nothing of; where process_vm_readv(2) says nothing either, the program is believed",
    ),
    ("is_supported", "populate", "only after madvise(2) has said EINVAL: cells at all sites"),
    ("sees_all_users", "read_file", "only for a peer of user 65534; what cannot be read says no"),
    ("is_abandoned", "on_signal_stack", "only after a jump out of a signal handler; what cannot be asked says no"),
    ("wait_for_next", "", "only for recvmmsg(2) with a time-out"),
    ("inherited", "", "only for a connection that was open when the program began"),
    ("ring", "setsockopt", "only while bytes from before the switch fill the small buffer: a matter of timing"),
    ("ring", "send", "only while bytes from before the switch fill the small buffer: a matter of timing"),
    ("send_junk", "setsockopt", "only after a program has enlarged the buffer of a full ring: a matter of timing"),
    ("widen", "setsockopt", "only while doorbells fill the small buffer: a matter of timing"),
    ("drain", "receive", "only for a receive that finds nothing and does not wait: a matter of timing"),
    ("nothing_through_kernel", "receive", "only for a receive of nothing; it is the program's own"),
    ("tell_if_at_end", "receive", "a look that takes nothing; what it says is the program's to know"),
    ("look", "receive", "between consent and switch: a matter of timing"),
    ("next_has_credentials", "recvmsg", "a look that takes nothing; what it does not say means no"),
    ("look_at", "recvmsg", "a look that takes nothing; what it says is the program's to know"),
    ("send_one_unless_signalled", "", "only for a send that waits in the middle: a matter of timing"),
];

/// The reason.
pub(super) fn why(site: &Site) -> Option<&'static str> {
    let place = &site.place;
    let is = |(function, door, _): &&(&str, &str, &str)| {
        (function.is_empty() || *function == place.function) && (door.is_empty() || *door == place.door || *door == place.innermost)
    };
    REASONS.iter().find(is).map(|(_, _, why)| *why)
}
