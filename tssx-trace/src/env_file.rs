//! Environment files: `KEY="value"` lines that sh(1) sources and systemd takes as `EnvironmentFile=` to the same effect.
//!
//! Between double quotes both give a backslash before `"`, `\`, `` ` `` and `$` the same meaning and leave every other
//! character alone (POSIX shell 2.2.3; systemd.exec(5), whose parser expands neither `$` nor `%`). So four characters are
//! escaped, and control characters are refused here, and what systemd refuses with the whole file: code points that are no characters.

use anyhow::bail;

use crate::names::is_noncharacter;

/// Characters that a backslash precedes between double quotes.
const ESCAPED: [char; 4] = ['"', '\\', '`', '$'];

/// One line of the file, without its newline.
///
/// # Errors
/// Where the value has a control character, or a code point that is none.
pub(crate) fn line(key: &str, value: &str) -> anyhow::Result<String> {
    if value.chars().any(|code| code.is_control() || is_noncharacter(code)) {
        bail!("the value of {key} has a control character or what is no character, which cannot stand in an environment file");
    }
    let mut line = format!("{key}=\"");
    for character in value.chars() {
        if ESCAPED.contains(&character) {
            line.push('\\');
        }
        line.push(character);
    }
    line.push('"');
    Ok(line)
}

/// A comment line; control characters in it are shown as escapes, so that it stays one line. It never ends in a backslash,
/// which systemd takes for a comment that goes on in the next line.
pub(crate) fn comment(text: &str) -> String {
    let printable = crate::names::escape(text.as_bytes()).replace("\\\\", "\\");
    let end = if printable.ends_with('\\') { " ." } else { "" };
    format!("# {printable}{end}")
}

/// Reads the variables of a file whose lines are those that [`line`] and [`comment`] write.
///
/// # Errors
/// One that names the first line that is none of them.
pub(crate) fn parse(text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mut variables = Vec::new();
    for (index, raw) in text.lines().enumerate() {
        let trimmed = raw.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        match parse_line(trimmed) {
            Some(variable) => variables.push(variable),
            None => bail!("line {} is not KEY=\"value\"", index + 1),
        }
    }
    Ok(variables)
}

fn parse_line(line: &str) -> Option<(String, String)> {
    let (key, quoted) = line.split_once('=')?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if key.is_empty() || !key.chars().all(is_name) {
        return None;
    }
    let inner = quoted.strip_prefix('"')?.strip_suffix('"')?;
    let mut value = String::new();
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next()? {
                escaped if ESCAPED.contains(&escaped) => value.push(escaped),
                other => value.extend(['\\', other]),
            },
            special if ESCAPED.contains(&special) => return None, // a shell would do more than we can
            plain => value.push(plain),
        }
    }
    Some((key.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AWKWARD: [&str; 7] = [
        "/run/a b",
        "/run/it's \"quoted\"",
        "/run/$HOME/`id`/$(id)",
        "/run/100%/%h",
        "/run/#no comment",
        "/run/back\\slash\\",
        "/run/ü!*?[x]~{a,b};&|<>",
    ];

    #[test]
    fn a_shell_reads_back_exactly_what_was_written() {
        for value in AWKWARD {
            let line = line("USE_TSSX", value).expect("printable");
            let script = format!("{line}\nprintf %s \"$USE_TSSX\"");
            for shell in ["sh", "bash"] {
                let output = std::process::Command::new(shell).arg("-c").arg(&script).output().expect("a shell");
                assert_eq!(String::from_utf8_lossy(&output.stdout), value, "{shell}: {line}");
            }
        }
    }

    #[test]
    fn our_own_reader_agrees_with_the_shell() {
        for value in AWKWARD {
            let text = format!("{}\n\n{}\n", comment("why\nnot"), line("K", value).expect("printable"));
            assert_eq!(parse(&text).expect("valid"), [("K".to_owned(), value.to_owned())]);
        }
    }

    #[test]
    fn what_no_parser_would_take_is_refused() {
        assert!(line("K", "a\nb").is_err());
        assert!(line("K", "a\u{1b}b").is_err());
        assert!(line("K", "a\u{1fffe}b").is_err());
        for wrong in ["K=\"$HOME\"", "export K=\"x\"", "K=x", "K=\"x\\\"", "=\"x\"", "garbage"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_go_on_for_ever() {
        let good = format!("{}\n{}\n{}\n", comment("why"), line("USE_TSSX", "/a b $\\").expect("printable"), "K=\"\\x\\\"\"");
        crate::mutations::each(good.as_bytes(), 20_000, |bytes| {
            let _variables = parse(&String::from_utf8_lossy(bytes));
        });
    }

    #[test]
    fn a_comment_is_one_line_whatever_is_in_it() {
        assert_eq!(comment("a\nrm -rf /"), "# a\\x0arm -rf /");
        assert_eq!(comment("ends in \\"), "# ends in \\ .");
    }
}
