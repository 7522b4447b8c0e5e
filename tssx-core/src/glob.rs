//! Patterns of names, as `USE_TSSX` and the tracer's filters spell them: `*`, `?`, `[a-z]`, and `\` for an ordinary character.

/// Matches the whole name of a socket as `sun_path` has it. An abstract one is written with `@` for its leading NUL.
#[must_use]
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if pattern == b"*" {
        return true;
    }
    match (pattern.split_first(), name.split_first()) {
        (Some((b'@', pattern)), Some((0, name))) => glob(pattern, name),
        (_, Some((0, _))) => false,
        _ => glob(pattern, name),
    }
}

/// Shell-style match of the whole text, without recursion: on a mismatch it goes back to the last star and lets it take one byte more.
#[must_use]
pub fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match (pattern.get(p), name.get(n)) {
            (None, None) => return true,
            (Some(b'*'), _) => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            (Some(_), Some(byte)) => one(pattern, p, *byte),
            _ => None,
        };
        if let Some(next) = step {
            p = next;
            n += 1;
        } else if let Some((after, taken)) = star.filter(|(_, taken)| *taken < name.len()) {
            star = Some((after, taken + 1));
            p = after;
            n = taken + 1;
        } else {
            return false;
        }
    }
}

/// Matches one byte at `p`; where the pattern goes on if it does.
fn one(pattern: &[u8], p: usize, byte: u8) -> Option<usize> {
    match *pattern.get(p)? {
        b'?' => Some(p + 1),
        b'\\' => (*pattern.get(p + 1)? == byte).then_some(p + 2),
        b'[' => class(pattern, p, byte),
        other => (other == byte).then_some(p + 1),
    }
}

/// `[abc]`, `[a-z]`, `[!a]`; a class without an end is an ordinary bracket.
fn class(pattern: &[u8], p: usize, byte: u8) -> Option<usize> {
    let negated = matches!(pattern.get(p + 1), Some(b'!' | b'^'));
    let first = p + 1 + usize::from(negated);
    // A bracket right at the start is a member.
    let Some(end) =
        pattern.get(first + 1..).and_then(|rest| rest.iter().position(|byte| *byte == b']')).map(|skip| first + 1 + skip)
    else {
        return (byte == b'[').then_some(p + 1);
    };
    let members = pattern.get(first..end)?;
    let (mut at, mut found) = (0, false);
    while let Some(low) = members.get(at) {
        match (members.get(at + 1), members.get(at + 2)) {
            (Some(b'-'), Some(high)) => {
                found |= (*low..=*high).contains(&byte);
                at += 3;
            }
            _ => {
                found |= *low == byte;
                at += 1;
            }
        }
    }
    (found != negated).then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_classes_and_escapes_match_as_in_a_shell() {
        for (pattern, name) in [
            ("*", ""),
            ("*.sock", "/run/a.sock"),
            ("/run/*/x", "/run/a/b/x"),
            ("a?c", "abc"),
            ("[a-c][!x]", "by"),
            ("[]]", "]"),
            ("a[", "a["),
            ("\\*\\ x", "* x"),
        ] {
            assert!(glob(pattern.as_bytes(), name.as_bytes()), "{pattern} and {name}");
        }
        for (pattern, name) in [("", "a"), ("a", "ab"), ("a?", "a"), ("[a-c]", "d"), ("[!a]", "a"), ("\\*", "x"), ("x\\", "x")] {
            assert!(!glob(pattern.as_bytes(), name.as_bytes()), "{pattern} and {name}");
        }
    }

    /// An escape before each byte of a name.
    #[cfg(not(loom))]
    fn literally(name: &[u8]) -> Vec<u8> {
        name.iter().flat_map(|byte| [b'\\', *byte]).collect()
    }

    #[cfg(not(loom))]
    #[test]
    fn no_pattern_makes_it_panic_or_go_on_for_ever() {
        let name = b"/run/[x]-9*/a b.sock";
        crate::mutations::each(b"/run/[!a-c]*-?\\*/*[x-z]*.s[^a]ck*", 50_000, |pattern| {
            let _either = (matches(pattern, name), matches(pattern, pattern), glob(pattern, &name.repeat(8)));
            assert!(glob(&literally(pattern), pattern), "every name is its own, escaped");
        });
    }

    #[test]
    fn a_star_alone_is_every_name_and_an_at_sign_is_an_abstract_one() {
        assert!(matches(b"*", b"\0x") && matches(b"*", b"/x"));
        assert!(matches(b"@x*", b"\0xyz") && !matches(b"@x*", b"xyz"));
        assert!(!matches(b"x*", b"\0xyz"));
    }
}
