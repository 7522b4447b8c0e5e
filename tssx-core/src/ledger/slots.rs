//! Claiming and releasing path entries and slots.
