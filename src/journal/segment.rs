//! The bytes of a segment file: header, frames, and how to find the intact ones again.
//!
//! Pure: bytes in, frames out. All integers are little-endian.
//!
//! ```text
//! segment = header frame*
//! header  = magic "TAFFJRNL" | version u32 | segment id (UUID, 16 bytes) | crc32c u32 of these 28
//! frame   = len u32 | crc32c u32 | kind u8 | payload (len bytes)
//! payload = id (UUID, 16 bytes) | body
//! ```
//!
//! The checksum of a frame covers `len`, `kind` and `payload`, so that a run of zeros, as a power
//! loss can leave it, is not a frame. The id stands before the body so that a scan matches
//! intents and records without reading any body.
//!
//! | kind | body |
//! |---|---|
//! | 1 intent | fields of an [`Intent`](crate::record::Intent), see [`codec`](super::codec) |
//! | 2 record | fields of a [`UsageRecord`](crate::record::UsageRecord) |
//! | 3 abandoned | empty: the intent of that id needs no record |

use uuid::Uuid;

use super::codec::Body;

/// The version of the format that is written.
pub const VERSION: u32 = 2;

/// The first version, which is read as well: its bodies are JSON.
const VERSION_MIN: u32 = 1;

/// Bytes of the segment header.
pub const HEADER_BYTES: usize = 32;

/// Bytes of a frame before its payload.
pub const FRAME_HEAD_BYTES: usize = 9;

/// The largest payload. A record is about 700 bytes; this only has to stay far above the
/// longest that a provider's usage object can make it, and far below a segment.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

const MAGIC: [u8; 8] = *b"TAFFJRNL";
const ID_BYTES: usize = 16;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request started.
    Intent,
    /// A request or job is settled.
    Record,
    /// An intent needs no record.
    Abandoned,
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Kind::Intent => 1,
            Kind::Record => 2,
            Kind::Abandoned => 3,
        }
    }

    const fn from_code(code: u8) -> Option<Kind> {
        match code {
            1 => Some(Kind::Intent),
            2 => Some(Kind::Record),
            3 => Some(Kind::Abandoned),
            _ => None,
        }
    }
}

/// An intact frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it holds.
    pub kind: Kind,
    /// The id of the request.
    pub id: Uuid,
    /// The fields, or nothing.
    pub body: &'a [u8],
}

/// What the first bytes of a segment say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// A segment of a version that this program reads.
    Known {
        /// Told apart from any other segment, whatever its file is called.
        id: Uuid,
    },
    /// An intact header of another version: not to be read, not to be deleted.
    Foreign {
        /// Its version.
        version: u32,
    },
    /// Too short, or damaged.
    Broken,
}

/// Why a frame could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The payload exceeds [`PAYLOAD_BYTES_MAX`].
    #[error("payload exceeds {PAYLOAD_BYTES_MAX} bytes")]
    TooLarge,
    /// A part of the body has no JSON form.
    #[error("cannot encode as JSON")]
    Json(#[source] serde_json::Error),
}

/// The header of a new segment.
pub fn header(id: Uuid) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let (fields, crc) = header.split_at_mut(HEADER_BYTES - 4);
    for (byte, value) in fields.iter_mut().zip(
        MAGIC
            .into_iter()
            .chain(VERSION.to_le_bytes())
            .chain(id.into_bytes()),
    ) {
        *byte = value;
    }
    crc.copy_from_slice(&crc32c::crc32c(fields).to_le_bytes());
    header
}

/// Reads the header of a segment.
pub fn read_header(bytes: &[u8]) -> Header {
    let parse = || {
        let fields = bytes.get(..HEADER_BYTES - 4)?;
        let crc = bytes.get(HEADER_BYTES - 4..)?.first_chunk()?;
        let (magic, rest) = fields.split_first_chunk()?;
        let (version, rest) = rest.split_first_chunk()?;
        let id = rest.first_chunk()?;
        let intact = *magic == MAGIC && u32::from_le_bytes(*crc) == crc32c::crc32c(fields);
        intact.then(|| (u32::from_le_bytes(*version), Uuid::from_bytes(*id)))
    };
    match parse() {
        Some((VERSION_MIN..=VERSION, id)) => Header::Known { id },
        Some((version, _)) => Header::Foreign { version },
        None => Header::Broken,
    }
}

/// A frame around a body.
///
/// # Errors
/// If the body is too large or has no encoding.
pub fn encode(kind: Kind, id: Uuid, body: &(impl Body + ?Sized)) -> Result<Vec<u8>, EncodeError> {
    // Most records fit, so that the buffer seldom grows.
    let mut frame = Vec::with_capacity(1024);
    start(&mut frame, id);
    body.encode(&mut frame).map_err(EncodeError::Json)?;
    finish(frame, kind)
}

/// The frame of an intent that needs no record.
pub fn encode_abandoned(id: Uuid) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_HEAD_BYTES + ID_BYTES);
    start(&mut frame, id);
    finish(frame, Kind::Abandoned).unwrap_or_default()
}

fn start(frame: &mut Vec<u8>, id: Uuid) {
    frame.extend_from_slice(&[0; FRAME_HEAD_BYTES]);
    frame.extend_from_slice(id.as_bytes());
}

/// Fills in the nine bytes that [`start`] left open.
fn finish(mut frame: Vec<u8>, kind: Kind) -> Result<Vec<u8>, EncodeError> {
    let payload_bytes = frame.len().saturating_sub(FRAME_HEAD_BYTES);
    let len = u32::try_from(payload_bytes)
        .ok()
        .filter(|_| payload_bytes <= PAYLOAD_BYTES_MAX)
        .ok_or(EncodeError::TooLarge)?
        .to_le_bytes();
    let (head, payload) = frame.split_at_mut(FRAME_HEAD_BYTES);
    let crc = checksum(len, kind.code(), payload).to_le_bytes();
    let fields = len.into_iter().chain(crc).chain([kind.code()]);
    for (byte, value) in head.iter_mut().zip(fields) {
        *byte = value;
    }
    Ok(frame)
}

fn checksum(len: [u8; 4], kind: u8, payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&len), &[kind]);
    crc32c::crc32c_append(crc, payload)
}

/// Why there is no intact frame at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// The bytes end before the frame does.
    Short,
    /// An intact frame of a kind that this program does not know.
    Unknown {
        /// Where it ends.
        end: usize,
    },
    /// Anything else.
    Broken,
}

fn frame_at(bytes: &[u8], start: usize) -> Result<(Frame<'_>, usize), Flaw> {
    let rest = bytes.get(start..).ok_or(Flaw::Short)?;
    let (len, rest) = rest.split_first_chunk::<4>().ok_or(Flaw::Short)?;
    let payload_bytes = usize::try_from(u32::from_le_bytes(*len)).map_err(|_| Flaw::Broken)?;
    // Checked first: hardly any bytes that are not a frame get past it, so a search is quick.
    if !(ID_BYTES..=PAYLOAD_BYTES_MAX).contains(&payload_bytes) {
        return Err(Flaw::Broken);
    }
    let (crc, rest) = rest.split_first_chunk::<4>().ok_or(Flaw::Short)?;
    let (code, rest) = rest.split_first().ok_or(Flaw::Short)?;
    let payload = rest.get(..payload_bytes).ok_or(Flaw::Short)?;
    if checksum(*len, *code, payload) != u32::from_le_bytes(*crc) {
        return Err(Flaw::Broken);
    }
    let end = start
        .saturating_add(FRAME_HEAD_BYTES)
        .saturating_add(payload_bytes);
    let kind = Kind::from_code(*code).ok_or(Flaw::Unknown { end })?;
    let (id, body) = payload
        .split_first_chunk::<ID_BYTES>()
        .ok_or(Flaw::Broken)?;
    let id = Uuid::from_bytes(*id);
    Ok((Frame { kind, id, body }, end))
}

/// The frame that starts at an offset, if there is an intact one of a known kind.
pub fn read_frame(bytes: &[u8], start: usize) -> Option<Frame<'_>> {
    frame_at(bytes, start).ok().map(|(frame, _)| frame)
}

/// A stretch of a segment after its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// An intact frame.
    Frame {
        /// Its offset.
        start: usize,
        /// The offset after it.
        end: usize,
        /// What it holds.
        frame: Frame<'a>,
    },
    /// Bytes that are not a frame of a known kind, up to the next intact one or the end.
    Bad {
        /// Their offset.
        start: usize,
        /// The offset after them.
        end: usize,
    },
    /// The beginning of a frame whose rest was never written; nothing intact follows.
    Torn {
        /// Its offset.
        start: usize,
    },
}

/// Walks the frames of a segment, past whatever is damaged.
#[derive(Debug)]
pub struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Walks the frames of a segment file from the end of its header.
pub fn scan(bytes: &[u8]) -> Scan<'_> {
    Scan {
        bytes,
        at: HEADER_BYTES,
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        let (bytes, start) = (self.bytes, self.at);
        let rest = bytes.get(start..).filter(|rest| !rest.is_empty())?;
        let flaw = match frame_at(bytes, start) {
            Ok((frame, end)) => {
                self.at = end;
                return Some(Piece::Frame { start, end, frame });
            }
            Err(Flaw::Unknown { end }) => {
                self.at = end;
                return Some(Piece::Bad { start, end });
            }
            Err(flaw) => flaw,
        };
        let intact = (start + 1..bytes.len()).find(|&at| frame_at(bytes, at).is_ok());
        self.at = intact.unwrap_or(bytes.len());
        let torn = flaw == Flaw::Short || rest.iter().all(|&byte| byte == 0);
        Some(if intact.is_none() && torn {
            Piece::Torn { start }
        } else {
            Piece::Bad {
                start,
                end: self.at,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> Uuid {
        Uuid::from_bytes([n; 16])
    }

    /// A segment of three frames, and the offsets where they start and end.
    fn segment() -> (Vec<u8>, [usize; 4]) {
        let mut bytes = header(id(9)).to_vec();
        let mut offsets = [HEADER_BYTES; 4];
        let frames = [
            encode(Kind::Intent, id(1), b"a".as_slice()).unwrap(),
            encode(Kind::Record, id(2), b"bcdefgh".as_slice()).unwrap(),
            encode_abandoned(id(3)),
        ];
        for (index, frame) in frames.iter().enumerate() {
            bytes.extend_from_slice(frame);
            offsets[index + 1] = bytes.len();
        }
        (bytes, offsets)
    }

    fn kinds(bytes: &[u8]) -> Vec<Option<Kind>> {
        scan(bytes)
            .map(|piece| match piece {
                Piece::Frame { frame, .. } => Some(frame.kind),
                Piece::Bad { .. } | Piece::Torn { .. } => None,
            })
            .collect()
    }

    #[test]
    fn frames_are_read_back_as_written() {
        let (bytes, at) = segment();
        assert_eq!(read_header(&bytes), Header::Known { id: id(9) });
        let frame = |index: usize, kind, n, body| Piece::Frame {
            start: at[index],
            end: at[index + 1],
            frame: Frame {
                kind,
                id: id(n),
                body,
            },
        };
        assert_eq!(
            scan(&bytes).collect::<Vec<_>>(),
            [
                frame(0, Kind::Intent, 1, b"a".as_slice()),
                frame(1, Kind::Record, 2, b"bcdefgh"),
                frame(2, Kind::Abandoned, 3, b""),
            ]
        );
    }

    #[test]
    fn a_cut_anywhere_costs_only_the_frame_that_it_hits() {
        let (bytes, at) = segment();
        for cut in HEADER_BYTES..bytes.len() {
            let pieces: Vec<_> = scan(&bytes[..cut]).collect();
            let intact = at.iter().skip(1).filter(|&&end| end <= cut).count();
            let mut expected = intact;
            if !at.contains(&cut) {
                expected += 1;
                assert_eq!(pieces.last(), Some(&Piece::Torn { start: at[intact] }));
            }
            assert_eq!(pieces.len(), expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_flipped_bit_costs_only_the_frame_that_it_hits() {
        let (bytes, at) = segment();
        for bit in HEADER_BYTES * 8..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let hit = at.iter().filter(|&&start| start <= bit / 8).count() - 1;
            let mut expected = vec![
                Some(Kind::Intent),
                Some(Kind::Record),
                Some(Kind::Abandoned),
            ];
            expected[hit] = None;
            assert_eq!(kinds(&bytes), expected, "bit {bit}");
        }
    }

    #[test]
    fn a_damaged_header_is_broken_and_an_intact_one_of_another_version_is_foreign() {
        let good = header(id(9));
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read_header(&bad), Header::Broken, "bit {bit}");
        }
        assert_eq!(read_header(&good[..31]), Header::Broken);
        let mut newer = good;
        newer[8] = 3;
        let crc = crc32c::crc32c(&newer[..28]).to_le_bytes();
        newer[28..].copy_from_slice(&crc);
        assert_eq!(read_header(&newer), Header::Foreign { version: 3 });
    }

    #[test]
    fn zeros_at_the_end_are_a_torn_tail() {
        let (mut bytes, at) = segment();
        bytes.extend_from_slice(&[0; 4096]);
        assert_eq!(
            scan(&bytes).last(),
            Some(Piece::Torn { start: at[3] }),
            "as a power loss leaves a file whose size outlived its content"
        );
    }

    #[test]
    fn an_unknown_kind_is_passed_over_whole() {
        let mut frame = encode(Kind::Record, id(1), b"x".as_slice()).unwrap();
        let payload = frame.split_off(FRAME_HEAD_BYTES);
        let len = u32::try_from(payload.len()).unwrap().to_le_bytes();
        let mut bytes = header(id(9)).to_vec();
        bytes.extend_from_slice(&len);
        bytes.extend_from_slice(&checksum(len, 77, &payload).to_le_bytes());
        bytes.push(77);
        bytes.extend_from_slice(&payload);
        bytes.extend_from_slice(&encode_abandoned(id(2)));
        assert_eq!(kinds(&bytes), [None, Some(Kind::Abandoned)]);
    }

    #[test]
    fn the_payload_limit_is_exact() {
        let body = |bytes: usize| vec![b'x'; bytes - ID_BYTES];
        assert!(encode(Kind::Record, id(1), body(PAYLOAD_BYTES_MAX).as_slice()).is_ok());
        assert!(matches!(
            encode(Kind::Record, id(1), body(PAYLOAD_BYTES_MAX + 1).as_slice()),
            Err(EncodeError::TooLarge)
        ));
    }
}
