//! Content decoding of a copy, for the meter (RFC 9110, section 8.4), with caps on output and ratio.
//!
//! Encoded bytes go in, and what they decode to comes out at once, as far as the sender flushed
//! it: the events of a compressed stream are metered while it runs. What the client gets is not
//! touched. Bodies are foreign and may be made to exhaust memory or time, so output, expansion
//! and window are capped; at a cap decoding stops for good and the status says so.
//!
//! Read are gzip (RFC 1952), deflate in its zlib (RFC 1950) and raw (RFC 1951) forms, br
//! (RFC 7932) and zstd (RFC 8878), one layer of them. A body that ends inside its encoding is
//! no error here: the transport knows that it was cut.

use std::fmt;

use brotli::{BrotliDecompressStream, BrotliResult, BrotliState, HeapAlloc, HuffmanCode};
use flate2::{Crc, Decompress, FlushDecompress, Status};
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

/// The most that is decoded of one body.
pub const OUTPUT_BYTES_MAX: u64 = 64 << 20;

/// How many times its encoded size a body may decode to, once it passes
/// [`RATIO_FREE_BYTES`]. Streams of alike events reach 50.
pub const RATIO_MAX: u64 = 200;

/// How much is decoded before the ratio counts.
pub const RATIO_FREE_BYTES: u64 = 1 << 20;

/// The largest window of br and zstd, as a power of two: 8 MiB, the least that RFC 8878
/// (section 3.1.1.1.2) recommends to support.
pub const WINDOW_LOG_MAX: u32 = 23;

/// How many members of a gzip body are decoded. Each costs microseconds to begin, so that a body
/// of nothing but empty ones would take a second for each megabyte; block-wise compressors make
/// one for 64 KiB of content.
pub const MEMBERS_MAX: u64 = 4096;

/// The ratio is looked at whenever so much more was decoded, which makes the verdict depend on
/// the body and not on how it was cut.
const CHECKPOINT_BYTES: u64 = 64 << 10;

/// The size of the buffer that decoded bytes are handed out from.
const BUFFER_BYTES: usize = 16 << 10;

/// How decoding goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoding {
    /// Everything up to here was decoded.
    Ok,
    /// The coding is unknown, there are several layers, or the bytes are not what was declared.
    Undecodable,
    /// A cap was reached ([`OUTPUT_BYTES_MAX`], [`RATIO_MAX`], [`WINDOW_LOG_MAX`],
    /// [`MEMBERS_MAX`]); the rest is not decoded.
    TooLarge,
}

/// Decodes one body.
#[derive(Debug)]
pub struct Inflater {
    codec: Codec,
    status: Decoding,
    input_bytes: u64,
    output_bytes: u64,
    buffer: Box<[u8]>,
}

impl Inflater {
    /// A decoder for a body with that `Content-Encoding`, which may be a list. Where the header
    /// has several lines all of them count: see [`Inflater::for_headers`].
    pub fn new(content_encoding: Option<&str>) -> Inflater {
        let mut codec = Codec::Identity;
        let mut status = Decoding::Ok;
        let codings = content_encoding
            .unwrap_or_default()
            .split(',')
            .map(str::trim);
        for coding in codings.filter(|coding| !coding.is_empty()) {
            let next = Codec::of(coding);
            match (&codec, next) {
                (_, Some(Codec::Identity)) => {}
                (Codec::Identity, Some(next)) => codec = next,
                _ => status = Decoding::Undecodable,
            }
        }
        if status != Decoding::Ok {
            codec = Codec::Ended;
        }
        let has_buffer = !matches!(codec, Codec::Identity | Codec::Ended);
        let buffer = vec![0; if has_buffer { BUFFER_BYTES } else { 0 }].into_boxed_slice();
        Inflater {
            codec,
            status,
            input_bytes: 0,
            output_bytes: 0,
            buffer,
        }
    }

    /// A decoder for the body of a message with these headers.
    pub fn for_headers(headers: &http::HeaderMap) -> Inflater {
        let mut lines = headers.get_all(http::header::CONTENT_ENCODING).iter();
        let Some(first) = lines.next() else {
            return Inflater::new(None);
        };
        // A value that is not ASCII names no coding that is known here.
        let text = |line: &http::HeaderValue| line.to_str().unwrap_or("?").to_owned();
        let joined = lines.fold(text(first), |joined, line| joined + "," + &text(line));
        Inflater::new(Some(&joined))
    }

    /// Takes the next bytes and hands out what they decode to. Without a coding the bytes
    /// themselves are handed on, uncapped. After a failure nothing more is handed out.
    pub fn push(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&[u8])) {
        if bytes.is_empty() {
            return;
        }
        if matches!(self.codec, Codec::Identity) {
            return sink(bytes);
        }
        let mut input = bytes;
        loop {
            let room = self.room();
            let output = self.buffer.get_mut(..room).unwrap_or_default();
            let Progress { consumed, produced } = match self.codec.run(input, output) {
                Ok(progress) => progress,
                Err(failure) => return self.stop(failure),
            };
            input = input.get(consumed..).unwrap_or_default();
            self.input_bytes += as_u64(consumed);
            if produced > 0 {
                if self.output_bytes == OUTPUT_BYTES_MAX {
                    return self.stop(Decoding::TooLarge);
                }
                self.output_bytes += as_u64(produced);
                sink(output.get(..produced).unwrap_or_default());
                if self.is_expansion_too_large() {
                    return self.stop(Decoding::TooLarge);
                }
            }
            let is_stuck = consumed == 0 && produced == 0;
            let is_drained = input.is_empty() && produced < room;
            if is_stuck || is_drained {
                return;
            }
        }
    }

    /// Takes the end of the body and frees the decoder's memory.
    pub fn end(&mut self) {
        self.codec = Codec::Ended;
        self.buffer = Box::default();
    }

    /// How decoding goes.
    pub fn status(&self) -> Decoding {
        self.status
    }

    /// How much may be decoded next: no further than the next checkpoint, or one byte to see
    /// whether there is more than may be.
    fn room(&self) -> usize {
        if self.output_bytes == OUTPUT_BYTES_MAX {
            return 1;
        }
        let to_checkpoint = CHECKPOINT_BYTES - self.output_bytes % CHECKPOINT_BYTES;
        usize::try_from(to_checkpoint)
            .unwrap_or(BUFFER_BYTES)
            .min(BUFFER_BYTES)
    }

    fn is_expansion_too_large(&self) -> bool {
        self.output_bytes.is_multiple_of(CHECKPOINT_BYTES)
            && self.output_bytes > RATIO_FREE_BYTES
            && self.output_bytes / RATIO_MAX > self.input_bytes
    }

    fn stop(&mut self, status: Decoding) {
        self.status = status;
        self.end();
    }
}

/// What one step of a decoder did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    consumed: usize,
    produced: usize,
}

enum Codec {
    Identity,
    Gzip(Gzip),
    Deflate(Deflate),
    Brotli(Brotli),
    Zstd(Zstd),
    /// Nothing more is decoded: after the end of the encoded stream, where some servers leave
    /// junk, and after a failure.
    Ended,
}

impl Codec {
    /// The codec of a content coding (RFC 9110, section 8.4.1; names ignore case).
    fn of(coding: &str) -> Option<Codec> {
        let is = |name: &str| coding.eq_ignore_ascii_case(name);
        if is("identity") {
            Some(Codec::Identity)
        } else if is("gzip") || is("x-gzip") {
            Some(Codec::Gzip(Gzip::new()))
        } else if is("deflate") {
            Some(Codec::Deflate(Deflate::Undecided(None)))
        } else if is("br") {
            Some(Codec::Brotli(Brotli::Unopened))
        } else if is("zstd") {
            Zstd::new().map(Codec::Zstd)
        } else {
            None
        }
    }

    fn run(&mut self, input: &[u8], output: &mut [u8]) -> Result<Progress, Decoding> {
        let step = match self {
            Codec::Identity | Codec::Ended => None,
            Codec::Gzip(gzip) => gzip.run(input, output)?,
            Codec::Deflate(deflate) => deflate.run(input, output)?,
            Codec::Brotli(brotli) => brotli.run(input, output)?,
            Codec::Zstd(zstd) => zstd.run(input, output)?,
        };
        Ok(step.unwrap_or_else(|| {
            *self = Codec::Ended;
            Progress {
                consumed: input.len(),
                produced: 0,
            }
        }))
    }
}

/// Names the codec only: the decoders' states are large and show nothing.
impl fmt::Debug for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Codec::Identity => "identity",
            Codec::Gzip(_) => "gzip",
            Codec::Deflate(_) => "deflate",
            Codec::Brotli(_) => "br",
            Codec::Zstd(_) => "zstd",
            Codec::Ended => "ended",
        })
    }
}

/// What a codec's step gives: progress, or `None` after the end of its stream.
type Step = Result<Option<Progress>, Decoding>;

/// Gzip members, one after the other (RFC 1952). The library's decoders of whole gzip streams
/// read or write through buffers of their own, which would blur how much input made how much
/// output; so the framing is done here.
struct Gzip {
    at: GzipAt,
    flags: u8,
    members: u64,
    inflate: Decompress,
    crc: Crc,
}

#[derive(Debug, Clone, Copy)]
enum GzipAt {
    /// Byte of the fixed part of the header.
    Fixed(usize),
    /// Bytes of the length of the extra field that were read, and the length so far.
    ExtraLength(u8, u16),
    Extra(u16),
    Name,
    Comment,
    /// Bytes of the header's checksum that are left.
    HeaderCrc(u8),
    Body,
    /// Bytes of checksum and length that were read, and their value so far.
    Trailer(u32, u64),
}

const GZIP_HEADER_CRC: u8 = 1 << 1;
const GZIP_EXTRA: u8 = 1 << 2;
const GZIP_NAME: u8 = 1 << 3;
const GZIP_COMMENT: u8 = 1 << 4;
const GZIP_RESERVED: u8 = 0b1110_0000;

impl Gzip {
    fn new() -> Gzip {
        Gzip {
            at: GzipAt::Fixed(0),
            flags: 0,
            members: 0,
            inflate: Decompress::new(false),
            crc: Crc::new(),
        }
    }

    fn run(&mut self, input: &[u8], output: &mut [u8]) -> Step {
        let mut consumed = 0;
        while let Some(&byte) = input.get(consumed) {
            if matches!(self.at, GzipAt::Body) {
                break;
            }
            consumed += 1;
            match self.frame(byte) {
                Ok(next) => self.at = next,
                Err(Decoding::Undecodable)
                    if matches!(self.at, GzipAt::Fixed(_)) && self.members > 0 =>
                {
                    return Ok(None); // junk, or zeros, behind the last member
                }
                Err(failure) => return Err(failure),
            }
        }
        if !matches!(self.at, GzipAt::Body) {
            return Ok(Some(Progress {
                consumed,
                produced: 0,
            }));
        }
        let rest = input.get(consumed..).unwrap_or_default();
        let (progress, is_end) = inflate(&mut self.inflate, rest, output)?;
        self.crc
            .update(output.get(..progress.produced).unwrap_or_default());
        if is_end {
            self.at = GzipAt::Trailer(0, 0);
        }
        Ok(Some(Progress {
            consumed: consumed + progress.consumed,
            ..progress
        }))
    }

    /// Takes a byte of a header or trailer.
    fn frame(&mut self, byte: u8) -> Result<GzipAt, Decoding> {
        let wrong = Err(Decoding::Undecodable);
        Ok(match self.at {
            GzipAt::Fixed(0) if byte != 0x1F => return wrong,
            GzipAt::Fixed(1) if byte != 0x8B => return wrong,
            GzipAt::Fixed(2) if byte != 8 => return wrong,
            GzipAt::Fixed(3) if byte & GZIP_RESERVED != 0 => return wrong,
            GzipAt::Fixed(at) => {
                if at == 3 {
                    self.flags = byte;
                    if self.members == MEMBERS_MAX {
                        return Err(Decoding::TooLarge);
                    }
                }
                if at < 9 {
                    GzipAt::Fixed(at + 1)
                } else if self.flags & GZIP_EXTRA != 0 {
                    GzipAt::ExtraLength(0, 0)
                } else {
                    self.after_extra()
                }
            }
            GzipAt::ExtraLength(0, _) => GzipAt::ExtraLength(1, byte.into()),
            GzipAt::ExtraLength(_, low) => match low | u16::from(byte) << 8 {
                0 => self.after_extra(),
                length => GzipAt::Extra(length),
            },
            GzipAt::Extra(1) => self.after_extra(),
            GzipAt::Extra(left) => GzipAt::Extra(left - 1),
            GzipAt::Name if byte == 0 => self.after_name(),
            GzipAt::Comment if byte == 0 => self.after_comment(),
            GzipAt::HeaderCrc(1) => self.body(),
            GzipAt::HeaderCrc(left) => GzipAt::HeaderCrc(left - 1),
            GzipAt::Trailer(read, value) => {
                let value = value | u64::from(byte) << (8 * read);
                if read < 7 {
                    return Ok(GzipAt::Trailer(read + 1, value));
                }
                let stated = u64::from(self.crc.amount()) << 32 | u64::from(self.crc.sum());
                if value != stated {
                    return wrong;
                }
                self.members += 1;
                GzipAt::Fixed(0)
            }
            GzipAt::Name | GzipAt::Comment | GzipAt::Body => self.at,
        })
    }

    fn after_extra(&mut self) -> GzipAt {
        if self.flags & GZIP_NAME != 0 {
            GzipAt::Name
        } else {
            self.after_name()
        }
    }

    fn after_name(&mut self) -> GzipAt {
        if self.flags & GZIP_COMMENT != 0 {
            GzipAt::Comment
        } else {
            self.after_comment()
        }
    }

    fn after_comment(&mut self) -> GzipAt {
        if self.flags & GZIP_HEADER_CRC != 0 {
            GzipAt::HeaderCrc(2)
        } else {
            self.body()
        }
    }

    fn body(&mut self) -> GzipAt {
        self.inflate.reset(false);
        self.crc.reset();
        GzipAt::Body
    }
}

/// `deflate` means the zlib format, but some servers send raw deflate; the first two bytes tell.
enum Deflate {
    Undecided(Option<u8>),
    Raw(Decompress, Option<u8>),
    Zlib(Decompress, Option<u8>),
    Ended,
}

impl Deflate {
    fn run(&mut self, input: &[u8], output: &mut [u8]) -> Step {
        if let Deflate::Undecided(first) = self {
            let Some((&byte, _)) = input.split_first() else {
                return Ok(Some(Progress {
                    consumed: 0,
                    produced: 0,
                }));
            };
            *self = match *first {
                None => Deflate::Undecided(Some(byte)),
                Some(first) if is_zlib_header(first, byte) => {
                    Deflate::Zlib(Decompress::new(true), Some(first))
                }
                Some(first) => Deflate::Raw(Decompress::new(false), Some(first)),
            };
            // The second byte is not consumed: it goes to the decoder after the first.
            let consumed = usize::from(matches!(self, Deflate::Undecided(_)));
            return if consumed == 1 {
                Ok(Some(Progress {
                    consumed,
                    produced: 0,
                }))
            } else {
                self.run(input, output)
            };
        }
        let (Deflate::Raw(decoder, held) | Deflate::Zlib(decoder, held)) = self else {
            return Ok(None);
        };
        if let Some(first) = held.take() {
            let (progress, _) = inflate(decoder, &[first], &mut [])?;
            if progress.consumed == 0 {
                return Err(Decoding::Undecodable);
            }
        }
        let (progress, is_end) = inflate(decoder, input, output)?;
        if is_end {
            *self = Deflate::Ended;
        }
        Ok(Some(progress))
    }
}

/// Whether two bytes are a zlib header (RFC 1950, section 2.2): deflate, a window of at most
/// 32 KiB, and a multiple of 31. A raw stream cannot begin so, unless with a stored block whose
/// padding is not zero, which no encoder writes.
fn is_zlib_header(first: u8, second: u8) -> bool {
    first & 0x0F == 8 && first >> 4 <= 7 && u16::from_be_bytes([first, second]).is_multiple_of(31)
}

/// One step of inflating, and whether it reached the end of the stream.
fn inflate(
    decoder: &mut Decompress,
    input: &[u8],
    output: &mut [u8],
) -> Result<(Progress, bool), Decoding> {
    let (input_before, output_before) = (decoder.total_in(), decoder.total_out());
    let status = decoder
        .decompress(input, output, FlushDecompress::None)
        .map_err(|_| Decoding::Undecodable)?;
    let progress = Progress {
        consumed: as_usize(decoder.total_in() - input_before),
        produced: as_usize(decoder.total_out() - output_before),
    };
    Ok((progress, status == Status::StreamEnd))
}

type BrotliDecoder = BrotliState<HeapAlloc<u8>, HeapAlloc<u32>, HeapAlloc<HuffmanCode>>;

enum Brotli {
    /// No byte was seen; the first one tells the window.
    Unopened,
    Open(Box<BrotliDecoder>),
    Ended,
}

impl Brotli {
    fn run(&mut self, input: &[u8], output: &mut [u8]) -> Step {
        if let Brotli::Unopened = self {
            match input.first() {
                None => {
                    return Ok(Some(Progress {
                        consumed: 0,
                        produced: 0,
                    }));
                }
                // Of the window sizes (RFC 7932, section 9.1) only 16 MiB exceeds the cap.
                Some(first) if first & 0x0F == 0x0F => return Err(Decoding::TooLarge),
                Some(_) => {
                    *self = Brotli::Open(Box::new(BrotliState::new_strict(
                        HeapAlloc::default(),
                        HeapAlloc::default(),
                        HeapAlloc::default(),
                    )));
                }
            }
        }
        let Brotli::Open(decoder) = self else {
            return Ok(None);
        };
        let (mut input_left, mut consumed) = (input.len(), 0);
        let (mut output_left, mut produced) = (output.len(), 0);
        let result = BrotliDecompressStream(
            &mut input_left,
            &mut consumed,
            input,
            &mut output_left,
            &mut produced,
            output,
            &mut 0,
            decoder,
        );
        match result {
            BrotliResult::ResultFailure => return Err(Decoding::Undecodable),
            BrotliResult::ResultSuccess => *self = Brotli::Ended,
            BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
        }
        Ok(Some(Progress { consumed, produced }))
    }
}

struct Zstd {
    decoder: DCtx<'static>,
    frames: u64,
}

/// Of zstd's error numbers, which are stable (zstd_errors.h), those that mean something here:
/// the bytes begin no frame, and the frame's window exceeds the limit.
const ZSTD_PREFIX_UNKNOWN: usize = 10;
const ZSTD_WINDOW_TOO_LARGE: usize = 16;

impl Zstd {
    fn new() -> Option<Zstd> {
        let mut decoder = DCtx::try_create()?;
        decoder
            .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
            .ok()?;
        Some(Zstd { decoder, frames: 0 })
    }

    fn run(&mut self, input: &[u8], output: &mut [u8]) -> Step {
        let mut input = InBuffer::around(input);
        let mut output = OutBuffer::around(output);
        match self.decoder.decompress_stream(&mut output, &mut input) {
            Ok(0) => self.frames += 1,
            Ok(_) => {}
            // An error is its number, negated.
            Err(error) => match error.wrapping_neg() {
                ZSTD_PREFIX_UNKNOWN if self.frames > 0 => return Ok(None),
                ZSTD_WINDOW_TOO_LARGE => return Err(Decoding::TooLarge),
                _ => return Err(Decoding::Undecodable),
            },
        }
        Ok(Some(Progress {
            consumed: input.pos(),
            produced: output.pos(),
        }))
    }
}

fn as_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn as_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(content: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn raw_deflate(content: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn brotli_with_window(content: &[u8], window_log: u32) -> Vec<u8> {
        let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, window_log);
        encoder.write_all(content).unwrap();
        encoder.into_inner()
    }

    fn brotli(content: &[u8]) -> Vec<u8> {
        brotli_with_window(content, 22)
    }

    fn zstd(content: &[u8]) -> Vec<u8> {
        zstd::encode_all(content, 3).unwrap()
    }

    type Encode = fn(&[u8]) -> Vec<u8>;

    const CODINGS: &[(&str, Encode)] = &[
        ("gzip", gzip),
        ("X-GZip", gzip),
        ("deflate", zlib),
        ("deflate", raw_deflate),
        ("br", brotli),
        ("zstd", zstd),
        ("identity, gzip", gzip),
        ("identity", <[u8]>::to_vec),
        ("", <[u8]>::to_vec),
    ];

    fn decode<'a>(coding: &str, pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, Decoding) {
        let mut inflater = Inflater::new(Some(coding));
        let mut output = Vec::new();
        for piece in pieces {
            inflater.push(piece, &mut |bytes| output.extend_from_slice(bytes));
        }
        inflater.end();
        (output, inflater.status())
    }

    fn event(number: u32) -> Vec<u8> {
        format!(
            "data: {{\"id\":{number},\"text\":\"{:x}\"}}\n\n",
            number.wrapping_mul(0x9E37_79B9)
        )
        .into_bytes()
    }

    /// Events that fill several blocks of every coding.
    fn content() -> Vec<u8> {
        (0..12_000).flat_map(event).collect()
    }

    #[test]
    fn every_coding_is_decoded_whole_and_byte_by_byte() {
        let content = content();
        for (coding, encode) in CODINGS {
            let encoded = encode(&content);
            let expected = (content.clone(), Decoding::Ok);
            assert!(decode(coding, [&encoded[..]]) == expected, "{coding}");
            assert!(
                decode(coding, encoded.chunks(1)) == expected,
                "{coding} by byte"
            );
        }
    }

    #[test]
    fn empty_bodies_decode_to_nothing() {
        for (coding, encode) in CODINGS {
            assert_eq!(decode(coding, []), (Vec::new(), Decoding::Ok), "{coding}");
            assert_eq!(
                decode(coding, [&encode(b"")[..]]),
                (Vec::new(), Decoding::Ok),
                "{coding}"
            );
        }
    }

    #[test]
    fn what_the_sender_flushed_is_decoded_at_once() {
        type Flush = Box<dyn FnMut(&[u8]) -> Vec<u8>>;
        fn flushing<W: Write + 'static>(mut encoder: W, take: fn(&mut W) -> Vec<u8>) -> Flush {
            Box::new(move |bytes| {
                encoder.write_all(bytes).unwrap();
                encoder.flush().unwrap();
                take(&mut encoder)
            })
        }
        let level = Compression::default;
        let encoders: Vec<(&str, Flush)> = vec![
            (
                "gzip",
                flushing(GzEncoder::new(Vec::new(), level()), |e| {
                    std::mem::take(e.get_mut())
                }),
            ),
            (
                "deflate",
                flushing(ZlibEncoder::new(Vec::new(), level()), |e| {
                    std::mem::take(e.get_mut())
                }),
            ),
            (
                "deflate",
                flushing(DeflateEncoder::new(Vec::new(), level()), |e| {
                    std::mem::take(e.get_mut())
                }),
            ),
            (
                "br",
                flushing(
                    brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22),
                    |e| std::mem::take(e.get_mut()),
                ),
            ),
            (
                "zstd",
                flushing(
                    zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap(),
                    |e| std::mem::take(e.get_mut()),
                ),
            ),
        ];
        for (coding, mut encode) in encoders {
            let mut inflater = Inflater::new(Some(coding));
            for number in 0..200 {
                let event = event(number);
                let mut output = Vec::new();
                inflater.push(&encode(&event), &mut |bytes| {
                    output.extend_from_slice(bytes)
                });
                assert_eq!(output, event, "{coding}, event {number}");
            }
        }
    }

    #[test]
    fn several_members_and_frames_are_one_body() {
        for (coding, encode) in [("gzip", gzip as Encode), ("zstd", zstd)] {
            let body = [encode(b"one "), encode(b""), encode(b"two")].concat();
            let expected = (b"one two".to_vec(), Decoding::Ok);
            assert_eq!(decode(coding, [&body[..]]), expected, "{coding}");
            assert_eq!(decode(coding, body.chunks(1)), expected, "{coding} by byte");
        }
    }

    #[test]
    fn members_are_decoded_up_to_a_limit() {
        let members_max = as_usize(MEMBERS_MAX);
        for (members, expected) in [
            (members_max - 1, Decoding::Ok),
            (members_max, Decoding::Ok),
            (members_max + 1, Decoding::TooLarge),
        ] {
            let body = gzip(b"x").repeat(members);
            let output = b"x".repeat(members.min(members_max));
            assert!(
                decode("gzip", [&body[..]]) == (output.clone(), expected),
                "{members}"
            );
            assert!(
                decode("gzip", body.chunks(1)) == (output, expected),
                "{members} by byte"
            );
        }
        // Junk behind the last of them is no member.
        let body = [&gzip(b"").repeat(members_max)[..], b"\x1f\x8b\x07junk"].concat();
        assert_eq!(decode("gzip", [&body[..]]).1, Decoding::Ok);
    }

    #[test]
    fn junk_behind_the_end_is_ignored() {
        let codings: &[(&str, Encode)] = &[
            ("gzip", gzip),
            ("deflate", zlib),
            ("deflate", raw_deflate),
            ("br", brotli),
            ("zstd", zstd),
        ];
        for (coding, encode) in codings {
            for junk in [
                &b"\0\0\0\0\0\0\0\0"[..],
                b"junk and more",
                b"\x1f\x8b\x07",
                b"\x28\xb5\x2f",
            ] {
                let body = [&encode(b"content")[..], junk].concat();
                let expected = (b"content".to_vec(), Decoding::Ok);
                assert_eq!(decode(coding, [&body[..]]), expected, "{coding}");
                assert_eq!(decode(coding, body.chunks(1)), expected, "{coding} by byte");
            }
        }
    }

    #[test]
    fn optional_fields_of_a_gzip_header_are_skipped() {
        let encoded = flate2::GzBuilder::new()
            .extra(vec![7; 300])
            .filename("name")
            .comment("comment")
            .write(Vec::new(), Compression::fast());
        let mut encoder = encoded;
        encoder.write_all(b"content").unwrap();
        let mut body = encoder.finish().unwrap();
        assert_eq!(
            decode("gzip", body.chunks(1)),
            (b"content".to_vec(), Decoding::Ok)
        );
        // With a header checksum, which the library does not write.
        body[3] |= GZIP_HEADER_CRC;
        let header = 10 + 2 + 300 + 5 + 8;
        body.splice(header..header, [0, 0]);
        assert_eq!(
            decode("gzip", body.chunks(1)),
            (b"content".to_vec(), Decoding::Ok)
        );
    }

    #[test]
    fn a_body_that_was_cut_gives_what_came() {
        let content = content();
        for (coding, encode) in CODINGS {
            let encoded = encode(&content);
            let (output, status) = decode(coding, [&encoded[..encoded.len() / 2]]);
            assert_eq!(status, Decoding::Ok, "{coding}");
            assert!(content.starts_with(&output), "{coding}");
            assert!(
                output.len() > content.len() / 8,
                "{coding}: {}",
                output.len()
            );
        }
    }

    #[test]
    fn bytes_that_are_not_what_was_declared_are_undecodable() {
        // Raw deflate has no mark of its own, so that any bytes may be some.
        for coding in ["gzip", "br", "zstd"] {
            let (_, status) = decode(coding, [&b"{\"error\":{\"message\":\"plain text\"}}"[..]]);
            assert_eq!(status, Decoding::Undecodable, "{coding}");
        }
        for (coding, encode) in [("gzip", gzip as Encode), ("deflate", zlib)] {
            let mut body = encode(b"content");
            *body.last_mut().unwrap() ^= 1;
            assert_eq!(
                decode(coding, [&body[..]]).1,
                Decoding::Undecodable,
                "{coding} checksum"
            );
        }
        let mut body = gzip(b"content").repeat(2);
        *body.last_mut().unwrap() ^= 1;
        assert_eq!(decode("gzip", [&body[..]]).1, Decoding::Undecodable);
    }

    #[test]
    fn unknown_codings_and_second_layers_are_undecodable_at_once() {
        for coding in [
            "compress",
            "gzip, br",
            "gzip, gzip",
            "gzip,identity, zstd",
            "br, x",
            "x, br",
        ] {
            assert_eq!(
                Inflater::new(Some(coding)).status(),
                Decoding::Undecodable,
                "{coding}"
            );
            assert_eq!(
                decode(coding, [&b"x"[..]]),
                (Vec::new(), Decoding::Undecodable)
            );
        }
    }

    #[test]
    fn every_line_of_the_header_counts() {
        let mut headers = http::HeaderMap::new();
        assert_eq!(Inflater::for_headers(&headers).status(), Decoding::Ok);
        headers.append("content-encoding", "gzip".parse().unwrap());
        assert_eq!(Inflater::for_headers(&headers).status(), Decoding::Ok);
        headers.append("content-encoding", "br".parse().unwrap());
        assert_eq!(
            Inflater::for_headers(&headers).status(),
            Decoding::Undecodable
        );
        let opaque = http::HeaderValue::from_bytes(b"gz\xffip").unwrap();
        headers.insert("content-encoding", opaque);
        assert_eq!(
            Inflater::for_headers(&headers).status(),
            Decoding::Undecodable
        );
    }

    #[test]
    fn windows_beyond_the_cap_are_refused() {
        let content = content();
        for (window_log, expected) in [(23, Decoding::Ok), (24, Decoding::TooLarge)] {
            let body = brotli_with_window(&content, window_log);
            assert_eq!(decode("br", [&body[..]]).1, expected, "br, {window_log}");

            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
            encoder.window_log(window_log).unwrap();
            encoder.write_all(&content).unwrap();
            let body = encoder.finish().unwrap();
            assert_eq!(
                decode("zstd", [&body[..]]).1,
                expected,
                "zstd, {window_log}"
            );
        }
    }

    #[test]
    fn a_decoder_moves_between_threads() {
        fn is_send<T: Send>() {}
        is_send::<Inflater>();
    }
}
