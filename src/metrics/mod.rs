//! The metrics: every family that Taffrail exposes.
