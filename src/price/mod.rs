//! The price book: usage in, exact dollars out. Pure.
