//! `top`: the loop between the window, the keyboard and the terminal.
//!
//! The terminal is put right whenever the [`Stage`] goes: after the last key, after a signal (which ends the window), after an error; on a
//! panic by the hook that ratatui sets.

use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Context as _, bail};
use crossterm::event::{Event, EventStream};
use futures_core::Stream;
use ratatui::DefaultTerminal;

use crate::cli::{TopArgs, exit};
use crate::commands::discover::record;
use crate::mode::Mode;
use crate::screen::Screen;
use crate::top::{Model, Theme, draw, press};
use crate::watch::{LEDGER_PERIOD, Observation, Viewer, Wish, watch_with};

/// Runs the subcommand.
///
/// # Errors
/// Where standard output is no terminal, or the machine lacks what tracing needs.
pub(crate) fn run(args: &TopArgs) -> anyhow::Result<u8> {
    let screen = Screen::of_stdout();
    if args.window.json || screen.size.is_none() {
        bail!(
            "top is a view for a terminal that can move its cursor, and {}: for a file, a pipe or a program use `tssx-trace discover --follow`, with --format jsonl for JSON, or `tssx-trace discover --json`",
            if args.window.json { "has no JSON" } else { "standard output is none" }
        );
    }
    let mut view = View {
        model: Model::new(args.filter.clone(), args.sort),
        theme: Theme { color: screen.color },
        max_sockets: args.window.max_sockets,
        stage: None,
    };
    let seen = watch_with(args.window(LEDGER_PERIOD), Some((args.interval, &mut view)))?;
    seen.losses.tell(args.window.max_sockets);
    Ok(if seen.losses.any() { exit::LOST } else { 0 })
}

/// The view of one window.
struct View {
    model: Model,
    theme: Theme,
    max_sockets: u32,
    /// `None` before the window begins and after it ends.
    stage: Option<Stage>,
}

impl View {
    fn draw(&mut self) -> anyhow::Result<()> {
        if let Some(stage) = &mut self.stage {
            stage.terminal.draw(|frame| draw(frame, &self.model, self.theme)).context("cannot draw on the terminal")?;
        }
        Ok(())
    }

    /// The next key, or whatever else the terminal tells.
    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<std::io::Result<Event>>> {
        self.stage.as_mut().map_or(Poll::Pending, |stage| Pin::new(&mut stage.events).poll_next(context))
    }
}

impl Viewer for View {
    fn begin(&mut self, _mode: Mode) -> anyhow::Result<()> {
        self.stage = Some(Stage::enter()?);
        self.draw()
    }

    fn poll_attend(&mut self, context: &mut Context<'_>) -> Poll<anyhow::Result<Wish>> {
        while let Poll::Ready(event) = self.poll_event(context) {
            let goes_on = match event {
                Some(Ok(Event::Key(key))) => press(&mut self.model, key),
                Some(Ok(_)) => true, // another size, which drawing finds out itself
                Some(Err(error)) => return Poll::Ready(Err(error).context("cannot read the terminal's keys")),
                None => false,
            };
            if !goes_on {
                return Poll::Ready(Ok(Wish::End));
            }
            if let Err(error) = self.draw() {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Pending
    }

    fn look(&mut self, seen: &Observation) -> anyhow::Result<bool> {
        self.model.update(&record(seen, self.max_sockets, false));
        self.draw()?;
        Ok(true)
    }

    fn end(&mut self) {
        self.stage = None;
    }
}

/// The terminal while it is ours: its other screen, each key at once.
struct Stage {
    terminal: DefaultTerminal,
    events: EventStream,
}

impl Stage {
    /// # Errors
    /// Where the terminal cannot be set so, as without a keyboard.
    fn enter() -> anyhow::Result<Self> {
        let failed = "cannot use this terminal for a live view: use `tssx-trace discover --follow`";
        let terminal = ratatui::try_init().inspect_err(|_| leave()).context(failed)?;
        Ok(Self { terminal, events: EventStream::new() })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _gone = self.terminal.show_cursor();
        leave();
    }
}

/// Puts the terminal right. If that fails it is gone.
fn leave() {
    let _gone = ratatui::try_restore();
}
