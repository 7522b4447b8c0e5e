//! Figures of a window in which no traffic was measured: `null` in a file, because zero would be a measurement.
//!
//! In memory they are zero, and [`crate::recording::Recording::measures_traffic`] is asked before any is shown.

use serde_json::Value;

/// The fields of a service, and of its two directions, that only measured traffic can fill.
const FIGURES: [&str; 6] = ["calls", "bytes", "send_calls", "sent_bytes", "receive_calls", "received_bytes"];

/// Takes the figures out of a recording's JSON.
pub(crate) fn hide(value: &mut Value) {
    each_figure(value, &|figure| *figure = Value::Null);
}

/// Puts zeros where [`hide`] took figures out.
pub(crate) fn restore(value: &mut Value) {
    each_figure(value, &|figure| {
        if figure.is_null() {
            *figure = Value::from(0);
        }
    });
}

fn each_figure(recording: &mut Value, change: &dyn Fn(&mut Value)) {
    for list in ["services", "unnamed"] {
        for service in recording.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            change_in(service, change);
            for direction in ["client_to_server", "server_to_client"] {
                if let Some(direction) = service.get_mut(direction) {
                    change_in(direction, change);
                }
            }
        }
    }
}

fn change_in(record: &mut Value, change: &dyn Fn(&mut Value)) {
    for name in FIGURES {
        if let Some(figure) = record.get_mut(name) {
            change(figure);
        }
    }
}
