//! Content decoding of a copy, for the meter (RFC 9110, section 8.4), with caps on output and ratio.
