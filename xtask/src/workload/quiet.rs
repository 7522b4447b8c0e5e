//! Many connections that were busy once and on which nothing is said any more.

use std::io::Write;

use anyhow::Result;

use super::blocking::introduce;
use super::{Load, Pinned, make_room};

/// Waits for a line of input, opens its connections and says a little on each, prints a line, and waits to be killed: whoever
/// measures looks at it before and after.
pub(super) fn client(load: &Load, _: Pinned) -> Result<()> {
    make_room(load.connections as u64)?;
    std::io::stdin().read_line(&mut String::new())?;
    let (sent, mut back) = load.messages();
    let mut streams = Vec::with_capacity(load.connections);
    for _ in 0..load.connections {
        let mut stream = load.connect()?;
        introduce(&mut stream, &sent, &mut back)?;
        streams.push(stream);
    }
    println!("quiet");
    std::io::stdout().flush()?;
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}
