//! `man` and `completions`: what packages install beside the program, made from the command line's own description.

use std::path::Path;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::cli::{Cli, CompletionsArgs, ManArgs, exit};
use crate::output::{note, result};

/// Prints one man page, or writes all of them.
///
/// # Errors
/// Where there is no such subcommand, or a file cannot be written.
pub(crate) fn man(args: &ManArgs) -> anyhow::Result<u8> {
    let mut root = Cli::command();
    root.build();
    match &args.directory {
        Some(directory) => write_all(&root, directory)?,
        None => result(&page(&root)?)?,
    }
    Ok(0)
}

/// One file for the program and one for each subcommand that is shown.
fn write_all(root: &Command, directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let shown = root.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help");
    for command in std::iter::once(root).chain(shown) {
        let name = command.get_display_name().unwrap_or(command.get_name());
        let path = directory.join(format!("{name}.1"));
        std::fs::write(&path, page(command)?).with_context(|| format!("cannot write {}", path.display()))?;
        note(&format!("wrote {}", path.display()));
    }
    Ok(())
}

/// The page of one command, with the exit statuses of all.
fn page(command: &Command) -> anyhow::Result<String> {
    let man = Man::new(command.clone());
    let mut bytes = Vec::new();
    man.render_title(&mut bytes)?;
    man.render_name_section(&mut bytes)?;
    man.render_synopsis_section(&mut bytes)?;
    man.render_description_section(&mut bytes)?;
    man.render_options_section(&mut bytes)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut bytes)?;
    }
    if command.get_after_help().is_some() {
        man.render_extra_section(&mut bytes)?;
    }
    let mut statuses = Roff::new();
    statuses.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in exit::MEANINGS {
        statuses.control("TP", []);
        statuses.text([bold(code.to_string())]);
        statuses.text([roman(meaning)]);
    }
    statuses.to_writer(&mut bytes)?;
    Ok(String::from_utf8(bytes)?)
}

/// Prints the completions of a shell.
///
/// # Errors
/// Where standard output cannot be written.
pub(crate) fn completions(args: &CompletionsArgs) -> anyhow::Result<u8> {
    let all = Cli::command();
    // The completions of some shells would offer hidden commands too, and none can be taken out of a command again.
    let shown = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let mut shown = Command::new("tssx-trace").version(env!("CARGO_PKG_VERSION")).subcommands(shown);
    let mut bytes = Vec::new();
    clap_complete::generate(args.shell, &mut shown, "tssx-trace", &mut bytes);
    result(&String::from_utf8(bytes)?)?;
    Ok(0)
}
