//! The columns: what they are called, and which of them fit a terminal, how wide.

use clap::ValueEnum;

/// One column, in the order in which they are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Column {
    /// Name of the socket
    Socket,
    /// Processes of the accepting end
    Server,
    /// Processes of the connecting end
    Clients,
    /// Connections that are open now
    Connections,
    /// Sending calls of both ends a second, in the last interval
    Calls,
    /// Bytes that both ends sent a second, in the last interval
    Bytes,
    /// Share of these bytes that went through shared memory
    Hit,
    /// Share of the connections that are accelerated
    Accelerated,
    /// Bytes a second of the last intervals
    #[value(skip)]
    Recent,
}

/// Blank columns between two.
pub(super) const GAP: u16 = 1;

/// What a terminal that is too narrow loses, the first first. The rest stays, whatever becomes of it.
const EXPENDABLE: [Column; 7] =
    [Column::Connections, Column::Clients, Column::Server, Column::Recent, Column::Accelerated, Column::Calls, Column::Hit];

/// Who gets room that is left, up to how much: the first first, and no more than a column's text needs.
const GROWING: [(Column, u16); 7] = [
    (Column::Socket, 40),
    (Column::Accelerated, 28),
    (Column::Server, 20),
    (Column::Clients, 20),
    (Column::Recent, 20),
    (Column::Socket, u16::MAX),
    (Column::Recent, 60),
];

impl Column {
    /// All of them, the history last.
    pub(super) const ALL: [Self; 9] = [
        Self::Socket,
        Self::Server,
        Self::Clients,
        Self::Connections,
        Self::Calls,
        Self::Bytes,
        Self::Hit,
        Self::Accelerated,
        Self::Recent,
    ];

    /// Those that can be sorted by.
    pub(super) fn sortable() -> &'static [Self] {
        Self::ALL.split_last().map_or(&[], |(_recent, others)| others)
    }

    /// Its heading.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Socket => "SOCKET",
            Self::Server => "SERVER",
            Self::Clients => "CLIENTS",
            Self::Connections => "CONNS",
            Self::Calls => "CALLS/S",
            Self::Bytes => "BYTES/S",
            Self::Hit => "HIT",
            Self::Accelerated => "ACCELERATED",
            Self::Recent => "RECENT",
        }
    }

    /// Whether it holds numbers, which stand at the right.
    pub(super) fn is_numeric(self) -> bool {
        matches!(self, Self::Connections | Self::Calls | Self::Bytes | Self::Hit)
    }

    /// The least width that says something: a number must not lose a digit, and the heading has a mark where it is sorted by.
    fn least(self) -> u16 {
        match self {
            Self::Hit => 5,
            Self::Connections | Self::Recent => 6,
            Self::Calls | Self::Bytes => 8,
            Self::Server | Self::Clients => 10,
            Self::Socket => 12,
            Self::Accelerated => 14,
        }
    }
}

/// The columns that fit `width`, and the width of each; `need` is what the text of one takes.
pub(super) fn fit(width: u16, need: impl Fn(Column) -> u16) -> Vec<(Column, u16)> {
    let mut columns: Vec<(Column, u16)> = Column::ALL.map(|column| (column, column.least())).into();
    for column in EXPENDABLE {
        if taken(&columns) <= width {
            break;
        }
        columns.retain(|(other, _)| *other != column);
    }
    for (column, most) in GROWING {
        let room = width.saturating_sub(taken(&columns));
        if let Some((_, own)) = columns.iter_mut().find(|(other, _)| *other == column) {
            let wanted = if column == Column::Recent { most } else { need(column).min(most) };
            *own += room.min(wanted.saturating_sub(*own));
        }
    }
    columns
}

fn taken(columns: &[(Column, u16)]) -> u16 {
    let gaps = u16::try_from(columns.len().saturating_sub(1)).unwrap_or(u16::MAX).saturating_mul(GAP);
    columns.iter().map(|(_, width)| *width).fold(gaps, u16::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(width: u16) -> Vec<Column> {
        fit(width, |_| 30).into_iter().map(|(column, _)| column).collect()
    }

    #[test]
    fn a_narrow_terminal_loses_what_matters_least_and_what_is_left_fits() {
        use Column::{Accelerated, Bytes, Calls, Clients, Hit, Recent, Server, Socket};
        assert_eq!(shown(200), Column::ALL);
        assert_eq!(shown(80), [Socket, Server, Clients, Calls, Bytes, Hit, Accelerated, Recent]);
        assert_eq!(shown(60), [Socket, Calls, Bytes, Hit, Accelerated, Recent]);
        assert_eq!(shown(40), [Socket, Calls, Bytes, Hit]);
        assert_eq!(shown(10), [Socket, Bytes]);
        for width in 21..300 {
            let columns = fit(width, |_| 30);
            assert!(taken(&columns) <= width, "{width}: {columns:?}");
            assert!(columns.iter().all(|(column, width)| *width >= column.least()));
        }
    }

    #[test]
    fn room_that_is_left_goes_to_names_first_and_no_column_gets_more_than_it_needs() {
        let width = |total: u16, column: Column, need: u16| {
            fit(total, |_| need).into_iter().find(|(other, _)| *other == column).expect("shown").1
        };
        assert_eq!((width(80, Column::Socket, 25), width(100, Column::Socket, 25)), (12, 25));
        assert_eq!((width(250, Column::Socket, 90), width(250, Column::Server, 90)), (90, 20));
        assert_eq!(width(250, Column::Server, 4), Column::Server.least());
    }
}
