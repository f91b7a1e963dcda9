//! A streaming selector of JSON values, in constant memory (RFC 8259).
//!
//! `Picker` walks a document byte by byte, whatever its size and however it is cut, and reports
//! only the values at the paths it was asked for. A 20 MB base64 string or a 10 MB event around
//! them costs time linear in its bytes and no memory.

/// One step of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The member of that (unescaped) name.
    Key(&'static str),
    /// Any element of an array.
    Each,
}

/// What to report of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Its JSON text, if that is no longer than so many bytes.
    Text(usize),
    /// Its kind and whether it is empty (`""`, `[]`, `{}`).
    Kind,
    /// The number of Unicode characters of a string.
    Chars,
    /// The number of elements of an array.
    Count,
}

/// A path and what is wanted of the values there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// From the document's root to the value.
    pub steps: &'static [Step],
    /// What to report.
    pub want: Want,
}

/// The kind of a JSON value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool,
    /// A number.
    Number,
    /// A string.
    String,
    /// An array.
    Array,
    /// An object.
    Object,
}

/// What was found at a path, in document order; of duplicate keys each is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'a> {
    /// The value's JSON text ([`Want::Text`]), without surrounding white space.
    Text(&'a [u8]),
    /// The text is longer than was allowed ([`Want::Text`]).
    TooLong,
    /// Kind and emptiness ([`Want::Kind`]); `empty` is false for null, booleans and numbers.
    Kind {
        /// The value's kind.
        kind: Kind,
        /// Whether a string, array or object has nothing in it.
        empty: bool,
    },
    /// A count of characters or elements ([`Want::Chars`], [`Want::Count`]); not reported for
    /// values of another kind.
    Count(u64),
}
