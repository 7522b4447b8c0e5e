//! `recipes.sh`, which README.md shows as it is: paragraphs of a heading and commands. The first is about the tracer, each of the others
//! about one pair of programs: the server's command, then the client's.

use anyhow::{Context, Result, anyhow, bail};

/// The text.
pub(crate) const TEXT: &str = include_str!("recipes.sh");

/// A command of the script, without `sudo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) text: String,
    /// Whether it needs root.
    pub(super) sudo: bool,
}

impl Line {
    /// One that needs no root.
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), sudo: false }
    }

    /// The same with more options.
    pub(super) fn and(&self, options: &str) -> Self {
        Self { text: format!("{} {options}", self.text), sudo: self.sudo }
    }
}

/// The tracer's commands, in order.
#[derive(Clone, Debug)]
pub(super) struct Tracer {
    pub(super) discover: Line,
    pub(super) suggest: Line,
    /// What a shell reads before it starts a program.
    pub(super) read: Line,
    pub(super) verify: Line,
}

/// The commands of one pair.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) server: Line,
    pub(super) client: Line,
    /// Lines of the client's configuration.
    pub(super) configuration: Vec<&'static str>,
}

fn lines(paragraph: &'static str) -> Vec<Line> {
    let commands = paragraph.lines().filter(|line| !line.starts_with('#'));
    let line = |line: &str| line.strip_prefix("sudo ").map_or(Line::new(line), |text| Line { sudo: true, ..Line::new(text) });
    commands.map(line).collect()
}

/// The paragraph about the tracer.
pub(super) fn tracer() -> Result<Tracer> {
    match lines(TEXT.split("\n\n").next().unwrap_or_default()).as_slice() {
        [discover, suggest, read, verify] => {
            let [discover, suggest, read, verify] = [discover, suggest, read, verify].map(Line::clone);
            Ok(Tracer { discover, suggest, read, verify })
        }
        other => bail!("recipes.sh begins with {other:?} instead of four commands"),
    }
}

/// The paragraph whose heading begins with that name.
pub(super) fn pair(name: &str) -> Result<Pair> {
    let heading = format!("# {name}");
    let paragraph = TEXT.split("\n\n").skip(1).find(|paragraph| paragraph.starts_with(&heading));
    let paragraph = paragraph.with_context(|| format!("recipes.sh has no paragraph `{heading}`"))?;
    let commands: Result<[Line; 2], _> = lines(paragraph).try_into();
    let [server, client] = commands.map_err(|found| anyhow!("recipes.sh, `{heading}`: a server and a client, not {found:?}"))?;
    let configuration = paragraph.lines().filter_map(|line| line.strip_prefix("#   ")).collect();
    Ok(Pair { server, client, configuration })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_understood() {
        let tracer = tracer().unwrap();
        assert!(tracer.discover.sudo && tracer.discover.text.starts_with("tssx-trace discover "));
        assert!(!tracer.suggest.sudo && tracer.suggest.text.ends_with(" > tssx.env"));
        assert!(tracer.read.text.contains(". ./tssx.env") && tracer.verify.sudo);
        for name in ["redis", "PostgreSQL", "memcached", "nginx"] {
            let pair = pair(name).unwrap();
            assert!(!pair.server.sudo && pair.server != pair.client);
            assert_eq!(pair.configuration.len(), if name == "nginx" { 2 } else { 0 }, "{name}");
        }
        assert!(pair("apache").is_err());
    }
}
