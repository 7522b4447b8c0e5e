//! `top`: the live view of a window, in three parts that know one thing each.
//!
//! [`Model`] is the state: a [`row`] for each socket, in the order, under the filter and with the history of now. [`draw`] makes a frame of
//! a model and does nothing else, with [`columns`] for what fits the terminal's width. [`keys`] turns what is typed into changes of
//! the model. The loop that brings them recordings and keys, and the terminal, are `commands/top.rs`.

mod columns;
mod draw;
#[cfg(test)]
mod draw_tests;
mod keys;
mod model;
mod row;

pub(crate) use columns::Column;
pub(crate) use draw::{Theme, draw};
pub(crate) use keys::press;
pub(crate) use model::Model;
