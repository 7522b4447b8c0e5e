//! `export`: metrics for Prometheus. A [`tally`] keeps what was seen as counters that never go back, [`metrics`] prints it, [`http`] serves it, and the
//! [`Exporter`] lets each scrape look at the window.
//!
//! The window never ends, so that what is gone is forgotten after each look: its share is in the tally.

pub(crate) mod http;
mod metrics;
pub(crate) mod place;
pub(crate) mod tally;

use std::task::{Context, Poll};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use self::tally::Tally;
use crate::watch::{Observation, Viewer, Wish};

/// What a scrape waits for.
pub(crate) type Answer = oneshot::Sender<String>;

/// Where scrapes ask.
#[derive(Clone)]
pub(crate) struct Desk(UnboundedSender<Answer>);

impl Desk {
    /// The metrics as they are now; `None` if the window has ended.
    pub(crate) async fn ask(&self) -> Option<String> {
        let (answer, waits) = oneshot::channel();
        self.0.send(answer).ok()?;
        waits.await.ok()
    }
}

/// Looks at the window for scrapes.
pub(crate) struct Exporter {
    tally: Tally,
    asked: UnboundedReceiver<Answer>,
    /// Scrapes that the next look answers.
    waiting: Vec<Answer>,
}

impl Exporter {
    /// An exporter of that many names, and where to ask it; with the privileges that the tracer begins with.
    pub(crate) fn new(max_names: usize, privileges: Vec<(&'static str, bool)>) -> (Self, Desk) {
        let (ask, asked) = unbounded_channel();
        (Self { tally: Tally::new(max_names, privileges), asked, waiting: Vec::new() }, Desk(ask))
    }

    /// The metrics of this window.
    ///
    /// # Errors
    /// None that anybody has seen: writing into memory fails never.
    pub(crate) fn text(&mut self, seen: &Observation) -> anyhow::Result<String> {
        self.tally.add(seen);
        metrics::text(&self.tally)
    }
}

impl Viewer for Exporter {
    fn poll_attend(&mut self, context: &mut Context<'_>) -> Poll<anyhow::Result<Wish>> {
        match self.asked.poll_recv(context) {
            Poll::Ready(Some(answer)) => {
                self.waiting.push(answer);
                Poll::Ready(Ok(Wish::Look))
            }
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn look(&mut self, seen: &Observation) -> anyhow::Result<bool> {
        let text = self.text(seen)?;
        for answer in self.waiting.drain(..) {
            let _gone = answer.send(text.clone()); // who asked did not wait for the answer
        }
        Ok(true)
    }

    fn end(&mut self) {}

    fn forgets(&self) -> bool {
        true
    }
}
