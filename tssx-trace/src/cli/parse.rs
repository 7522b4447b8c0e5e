//! What clap cannot read by itself: times, sizes and rates.

use std::time::Duration;

/// `500ms`, `5s`, `2m`, or seconds without a unit.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time: write 500ms, 5s or 2m");
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let factor = match unit {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" | "min" => 60.0,
        _ => return Err(wrong()),
    };
    let seconds = number.trim().parse::<f64>().map_err(|_| wrong())? * factor;
    if !(0.001..=86_400.0).contains(&seconds) {
        return Err(String::from("the time must be between 1ms and one day"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// A time as [`parse_duration`] reads it, or 0.
pub(super) fn parse_part(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { parse_duration(text) }
}

/// A power of two, and a page at least: what the kernel takes as the size of a ring buffer.
pub(super) fn parse_ring_bytes(text: &str) -> Result<u32, String> {
    let page = u32::try_from(rustix::param::page_size()).unwrap_or(u32::MAX);
    let wrong = || format!("`{text}` is no size of a ring buffer: write a power of two from {page} to {}", 1 << 30);
    text.parse().ok().filter(|bytes: &u32| bytes.is_power_of_two() && (page..=1 << 30).contains(bytes)).ok_or_else(wrong)
}

/// `0.99` or `99%`.
pub(super) fn parse_rate(text: &str) -> Result<f64, String> {
    let wrong = || format!("`{text}` is no rate: write 0.99 or 99%");
    let rate = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map_err(|_| wrong())? / 100.0,
        None => text.parse::<f64>().map_err(|_| wrong())?,
    };
    if (0.0..=1.0).contains(&rate) { Ok(rate) } else { Err(String::from("the rate must be between 0 and 1 (0% and 100%)")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_rates_are_read_with_their_units() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("1.5"), Ok(Duration::from_millis(1500)));
        for wrong in ["", "s", "5 parsecs", "-1s", "0", "NaN"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_ring_bytes("65536"), Ok(65536));
        for wrong in ["0", "1", "65537", "-4096", "x"] {
            assert!(parse_ring_bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_rate("99%"), Ok(0.99));
        assert_eq!(parse_rate("0.5"), Ok(0.5));
        for wrong in ["99", "-1%", "x", "NaN", ""] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_text_makes_it_panic_and_what_is_read_is_in_its_range() {
        for good in [&b"1.5e1min"[..], b"500ms", b"65536", b"99.5 %"] {
            crate::mutations::each(good, 10_000, |bytes| {
                let text = String::from_utf8_lossy(bytes);
                assert!(parse_duration(&text).is_ok_and(|time| time >= Duration::from_millis(1)) || parse_duration(&text).is_err());
                assert!(parse_part(&text).is_ok_and(|time| time <= Duration::from_hours(24)) || parse_part(&text).is_err());
                assert!(parse_ring_bytes(&text).is_ok_and(u32::is_power_of_two) || parse_ring_bytes(&text).is_err());
                assert!(parse_rate(&text).is_ok_and(|rate| (0.0..=1.0).contains(&rate)) || parse_rate(&text).is_err());
            });
        }
    }
}
