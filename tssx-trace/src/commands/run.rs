//! `run`: becomes the command, with the library and the selection in its environment.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, anyhow, bail};

use crate::cli::RunArgs;
use crate::{env_file, library};

/// Runs the subcommand. Returns only if the command cannot be started.
///
/// # Errors
/// Where nothing is selected, the library is missing or the command does not start.
pub(crate) fn run(args: &RunArgs) -> anyhow::Result<u8> {
    let mut variables = selection(args)?;
    let library = match variables.iter().position(|(key, _)| key == "LD_PRELOAD") {
        Some(index) => variables.remove(index).1,
        None => library::find()?.to_string_lossy().into_owned(),
    };
    let (program, arguments) = args.command.split_first().ok_or_else(|| anyhow!("no command given"))?;
    let preload = prepend(&library, std::env::var_os("LD_PRELOAD"));
    let error = Command::new(program).args(arguments).envs(variables).env("LD_PRELOAD", preload).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

/// What to set besides LD_PRELOAD, or with it if a file names it.
fn selection(args: &RunArgs) -> anyhow::Result<Vec<(String, String)>> {
    if let Some(path) = &args.env {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        let variables =
            env_file::parse(&text).with_context(|| format!("{shown} is not a file that `tssx-trace suggest` printed"))?;
        if let Some((key, _)) =
            variables.iter().find(|(key, _)| key != "LD_PRELOAD" && key != "USE_TSSX" && !key.starts_with("TSSX_"))
        {
            bail!("{shown} sets {key}: only USE_TSSX, LD_PRELOAD and TSSX_ variables are taken from it");
        }
        if variables.iter().all(|(key, value)| key != "USE_TSSX" || value.is_empty()) {
            bail!("{shown} selects no socket: its USE_TSSX is missing or empty");
        }
        return Ok(variables);
    }
    if !args.socket.is_empty() {
        let patterns: Vec<_> = args.socket.iter().map(|pattern| escape_blanks(pattern)).collect();
        return Ok(vec![("USE_TSSX".into(), patterns.join(" "))]);
    }
    if std::env::var_os("USE_TSSX").is_none_or(|value| value.is_empty()) {
        bail!("no socket selected: give --socket PATH or --env FILE, or set USE_TSSX");
    }
    Ok(Vec::new())
}

/// One word of USE_TSSX: a blank that has no backslash yet gets one, so that it does not end the word.
fn escape_blanks(pattern: &str) -> String {
    let mut word = String::new();
    let mut escaped = false;
    for character in pattern.chars() {
        if character.is_ascii_whitespace() && !escaped {
            word.push('\\');
        }
        escaped = character == '\\' && !escaped;
        word.push(character);
    }
    word
}

/// Our library first, what was there before behind it, nothing twice. ld.so(8) splits at blanks and colons.
fn prepend(library: &str, before: Option<OsString>) -> OsString {
    let mut preload = OsString::from(library);
    let Some(before) = before else { return preload };
    let bytes = before.as_encoded_bytes();
    let present = bytes.split(|byte| *byte == b':' || byte.is_ascii_whitespace()).any(|entry| entry == library.as_bytes());
    if present {
        return before;
    }
    if !before.is_empty() {
        preload.push(":");
        preload.push(before);
    }
    preload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_are_escaped_once() {
        assert_eq!(escape_blanks("/a b"), "/a\\ b");
        assert_eq!(escape_blanks("/a\\ b"), "/a\\ b");
        assert_eq!(escape_blanks("/a\\\\ b"), "/a\\\\\\ b");
        assert_eq!(escape_blanks("/run/*.sock"), "/run/*.sock");
        crate::mutations::each(b"/a b\\ c\\\\ *\t", 10_000, |bytes| {
            let word = escape_blanks(&String::from_utf8_lossy(bytes));
            assert_eq!(escape_blanks(&word), word, "escaped once");
        });
    }

    #[test]
    fn other_preloads_are_kept_behind_ours() {
        assert_eq!(prepend("/l.so", None), "/l.so");
        assert_eq!(prepend("/l.so", Some("".into())), "/l.so");
        assert_eq!(prepend("/l.so", Some("/other.so".into())), "/l.so:/other.so");
        assert_eq!(prepend("/l.so", Some("/o.so:/l.so".into())), "/o.so:/l.so");
    }
}
