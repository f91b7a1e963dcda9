//! Journal segments: no panic, no gap, and an intact frame is found whatever stands before it.

#![no_main]

use taffrail::journal::segment::{self, Frame, HEADER_BYTES, Piece};

/// A segment of the first version; it ends in an intact frame.
const SEGMENT: &[u8] = include_bytes!("../../fixtures/journal/v1.bin");

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some(Piece::Frame { start, frame, .. }) = segment::scan(SEGMENT).last() else {
        unreachable!("the fixture is intact");
    };
    let mut bytes = SEGMENT[..HEADER_BYTES].to_vec();
    bytes.extend_from_slice(input);
    walk(&bytes);
    bytes.extend_from_slice(&SEGMENT[start..]);
    assert_eq!(walk(&bytes), Some(frame));
    // The header may be anything as well.
    let _ = segment::read_header(input);
});

/// Checks that the pieces follow each other without a gap, and returns the last one's frame.
fn walk(bytes: &[u8]) -> Option<Frame<'_>> {
    let mut at = HEADER_BYTES;
    let mut last = None;
    for piece in segment::scan(bytes) {
        let (start, end) = match piece {
            Piece::Frame { start, end, .. } | Piece::Bad { start, end } => (start, end),
            Piece::Torn { start } => (start, bytes.len()),
        };
        assert_eq!(start, at);
        assert!(end > start && end <= bytes.len());
        at = end;
        last = match piece {
            Piece::Frame { frame, .. } => {
                assert_eq!(segment::read_frame(bytes, start), Some(frame));
                Some(frame)
            }
            Piece::Bad { .. } | Piece::Torn { .. } => None,
        };
    }
    assert_eq!(at, bytes.len());
    last
}
