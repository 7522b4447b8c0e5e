//! `export`: metrics for Prometheus. A [`tally`] keeps what was seen as counters that never go back, [`metrics`] prints it, [`http`] serves it, and the
//! [`Exporter`] lets each scrape look at the window.
//!
//! The window never ends, so that what is gone is forgotten after each look: its share is in the tally.

pub(crate) mod http;
mod metrics;
pub(crate) mod place;
pub(crate) mod tally;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use self::tally::Tally;
use crate::watch::{Observation, Viewer};

/// What a scrape waits for.
pub(crate) type Answer = oneshot::Sender<String>;

/// Where scrapes ask.
#[derive(Clone)]
pub(crate) struct Desk {
    answers: UnboundedSender<Answer>,
    questions: UnboundedSender<()>,
}

impl Desk {
    /// The metrics as they are now; `None` if the window has ended.
    pub(crate) async fn ask(&self) -> Option<String> {
        let (answer, waits) = oneshot::channel();
        self.answers.send(answer).ok()?;
        self.questions.send(()).ok()?;
        waits.await.ok()
    }
}

/// Looks at the window for scrapes.
pub(crate) struct Exporter {
    tally: Tally,
    answers: UnboundedReceiver<Answer>,
    questions: Option<UnboundedReceiver<()>>,
}

impl Exporter {
    /// An exporter of that many names, and where to ask it.
    pub(crate) fn new(max_names: usize) -> (Self, Desk) {
        let (answers, answered) = unbounded_channel();
        let (questions, asked) = unbounded_channel();
        let exporter = Self { tally: Tally::new(max_names), answers: answered, questions: Some(asked) };
        (exporter, Desk { answers, questions })
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
    fn look(&mut self, seen: &Observation) -> anyhow::Result<bool> {
        let text = self.text(seen)?;
        while let Ok(answer) = self.answers.try_recv() {
            let _gone = answer.send(text.clone()); // who asked did not wait for the answer
        }
        Ok(true)
    }

    fn end(&mut self) {}

    fn questions(&mut self) -> Option<UnboundedReceiver<()>> {
        self.questions.take()
    }

    fn forgets(&self) -> bool {
        true
    }
}
