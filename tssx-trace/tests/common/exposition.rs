//! A strict reader of Prometheus' text format, version 0.0.4: whatever it does not know is an error, and so are samples without a type, names twice,
//! and families in pieces.

use std::collections::{BTreeMap, BTreeSet};

/// A sample's name and labels, as `name{label="value"}` with the labels sorted and values unescaped, and its value.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    samples: BTreeMap<(String, BTreeMap<String, String>), f64>,
    pub(crate) counters: BTreeSet<String>,
}

impl Exposition {
    /// Reads a scrape.
    pub(crate) fn parse(text: &str) -> Self {
        let mut read = Self::default();
        let mut family: Option<(String, String)> = None;
        let mut helped: Option<String> = None;
        let mut done = BTreeSet::new();
        assert!(text.ends_with('\n'), "the last line ends too");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("no help: {line}"));
                assert!(is_name(name) && !help.is_empty(), "{line}");
                assert!(done.insert(name.to_owned()), "{name} comes twice");
                helped = Some(name.to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("no type: {line}"));
                assert_eq!(helped.take().as_deref(), Some(name), "its help comes first");
                assert!(kind == "counter" && name.ends_with("_total") || kind == "gauge" && !name.ends_with("_total"), "{line}");
                family = Some((name.to_owned(), kind.to_owned()));
            } else {
                let (name, labels, value) = sample(line);
                let (family, kind) = family.as_ref().unwrap_or_else(|| panic!("no type before {line}"));
                assert_eq!(&name, family, "{line}");
                if kind == "counter" {
                    assert!(value >= 0.0, "{line}");
                    read.counters.insert(name.clone());
                }
                assert!(read.samples.insert((name, labels), value).is_none(), "twice: {line}");
            }
        }
        read
    }

    /// The sum of all samples of that name with these labels; `None` if there is none.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let matches =
            |own: &BTreeMap<String, String>| labels.iter().all(|(key, value)| own.get(*key).is_some_and(|own| own == value));
        let values = self.samples.iter().filter(|((own, labels), _)| own == name && matches(labels)).map(|(_, value)| *value);
        values.reduce(|sum, value| sum + value)
    }

    /// Every value of a label of this metric.
    pub(crate) fn values(&self, name: &str, label: &str) -> BTreeSet<&str> {
        let labels = self.samples.keys().filter(|(own, _)| own == name).filter_map(|(_, labels)| labels.get(label));
        labels.map(String::as_str).collect()
    }

    /// Asserts that no counter went back since `before`, and none is gone.
    pub(crate) fn assert_later_than(&self, before: &Self) {
        for ((name, labels), value) in before.samples.iter().filter(|((name, _), _)| before.counters.contains(name)) {
            let now = self.samples.get(&(name.clone(), labels.clone()));
            assert!(now.is_some_and(|now| now >= value), "{name} {labels:?} was {value} and is {now:?}");
        }
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with("tssx_") && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("no value: {line}"));
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
            assert!(!label.is_empty() && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{line}");
            let (value, behind) = unescape(value, line);
            assert!(labels.insert(label.to_owned(), value).is_none(), "a label twice: {line}");
            if let Some(behind) = behind.strip_prefix('}') {
                rest = behind;
                break;
            }
            rest = behind.strip_prefix(',').unwrap_or_else(|| panic!("no comma: {line}"));
        }
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("no blank: {line}"));
    (name.to_owned(), labels, value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
}

/// The text up to the quote that ends it, and what follows.
fn unescape<'a>(text: &'a str, line: &str) -> (String, &'a str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((place, character)) = characters.next() {
        match character {
            '"' => return (value, &text[place + 1..]),
            '\\' => value.push(match characters.next().map(|(_, character)| character) {
                Some('n') => '\n',
                Some(plain @ ('"' | '\\')) => plain,
                other => panic!("{other:?} is escaped: {line}"),
            }),
            plain => value.push(plain),
        }
    }
    panic!("a value without end: {line}")
}
