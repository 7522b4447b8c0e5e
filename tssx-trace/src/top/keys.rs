//! What is typed, as changes of the model.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::Model;

/// The help line: every key that does something while no filter is typed.
pub(super) const HELP: &str = "q quit  / filter  ←→ sort by  r reverse  ↑↓ scroll";
/// The same while one is.
pub(super) const HELP_TYPING: &str = "Enter keep  Esc no filter";

/// Lines of a page: the model does not know how many the terminal has.
const PAGE: isize = 10;

/// Does what a key means; false if that is to end the view.
pub(crate) fn press(model: &mut Model, key: KeyEvent) -> bool {
    if key.kind == KeyEventKind::Release {
        return true;
    }
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    if control && key.code == KeyCode::Char('c') {
        return false;
    }
    if model.typing {
        type_filter(model, key.code, control);
        return true;
    }
    match key.code {
        KeyCode::Char('q') => return false,
        KeyCode::Char('/') => model.typing = true,
        KeyCode::Esc => model.filter.clear(),
        KeyCode::Left | KeyCode::Char('<') => model.sort_by_next(false),
        KeyCode::Right | KeyCode::Char('>') => model.sort_by_next(true),
        KeyCode::Char('r') => model.reverse(),
        KeyCode::Up | KeyCode::Char('k') => model.move_by(-1),
        KeyCode::Down | KeyCode::Char('j') => model.move_by(1),
        KeyCode::PageUp => model.move_by(-PAGE),
        KeyCode::PageDown => model.move_by(PAGE),
        KeyCode::Home | KeyCode::Char('g') => model.move_by(isize::MIN),
        KeyCode::End | KeyCode::Char('G') => model.move_by(isize::MAX),
        _ => {}
    }
    true
}

fn type_filter(model: &mut Model, code: KeyCode, control: bool) {
    match code {
        KeyCode::Enter => model.typing = false,
        KeyCode::Esc => {
            model.typing = false;
            model.filter.clear();
        }
        KeyCode::Backspace => drop(model.filter.pop()),
        KeyCode::Char('u') if control => model.filter.clear(),
        KeyCode::Char(character) if !control => model.filter.push(character),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Filter;
    use crate::top::Column;

    fn typed(model: &mut Model, text: &str) -> bool {
        text.chars().all(|character| {
            let code = match character {
                '\n' => KeyCode::Enter,
                '\x1b' => KeyCode::Esc,
                '\x08' => KeyCode::Backspace,
                other => KeyCode::Char(other),
            };
            press(model, KeyEvent::new(code, KeyModifiers::NONE))
        })
    }

    #[test]
    fn letters_are_commands_until_a_filter_is_typed_and_again_after_it() {
        let mut model = Model::new(Filter::default(), Column::Bytes);
        assert!(typed(&mut model, "/qr<x\x08"));
        assert_eq!((model.filter.as_str(), model.typing, model.reversed), ("qr<", true, false));
        assert!(typed(&mut model, "\nr"));
        assert_eq!((model.filter.as_str(), model.typing, model.reversed), ("qr<", false, true));
        assert!(typed(&mut model, "/z\x1b"));
        assert_eq!((model.filter.as_str(), model.typing), ("", false));
        assert!(typed(&mut model, ">"));
        assert_eq!((model.sort, model.reversed), (Column::Hit, false));
        assert!(!typed(&mut model, "q"));
    }

    #[test]
    fn ctrl_c_ends_the_view_even_in_a_filter_and_a_key_that_is_let_go_does_nothing() {
        let mut model = Model::new(Filter::default(), Column::Bytes);
        let control = |letter| KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL);
        assert!(typed(&mut model, "/abc"));
        assert!(press(&mut model, control('x')) && model.filter == "abc");
        assert!(press(&mut model, control('u')) && model.filter.is_empty());
        assert!(!press(&mut model, control('c')));
        let released = KeyEvent { kind: KeyEventKind::Release, ..control('c') };
        assert!(press(&mut model, released));
    }
}
