//! A streaming selector of JSON values, in constant memory (RFC 8259).
//!
//! `Picker` walks a document byte by byte, whatever its size and however it is cut, and reports
//! only the values at the paths it was asked for. A 20 MB base64 string or a 10 MB event around
//! them costs time linear in its bytes and no memory. The grammar is checked throughout, so a
//! document that is not JSON is never called complete; only two things are let pass that a
//! strict reader refuses: invalid UTF-8 inside strings, and escapes of lone surrogates, which
//! providers send when a token ends inside a character.

use std::borrow::Cow;

use memchr::{memchr, memchr2};
use rust_decimal::Decimal;

use crate::money::parse_decimal;

/// How deep arrays and objects may nest. Real documents stay below 30; levels that no path
/// selects cost one bit each.
pub const MAX_DEPTH: usize = 1024;

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

/// How far a document has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Nothing but white space.
    Empty,
    /// Well-formed so far, and not at its end.
    Partial,
    /// One whole value; what followed it was ignored.
    Complete,
    /// Not JSON. What was reported before stands, nothing is reported after.
    Malformed,
    /// Nested deeper than [`MAX_DEPTH`]. What was reported before stands.
    TooDeep,
}

/// Paths, compiled into a tree that any number of pickers share.
#[derive(Debug)]
pub struct Selector {
    root: Node,
    /// The longest key of any path: a longer one cannot match and is not kept.
    key_bytes_max: usize,
}

impl Selector {
    /// The values at these paths, which are reported by their index. Paths may share steps,
    /// repeat, and lead to values inside each other.
    pub fn new(paths: &[Path]) -> Selector {
        let mut root = Node::default();
        let mut key_bytes_max = 0;
        for (index, path) in paths.iter().enumerate() {
            root.want(path.steps, index, path.want);
            for step in path.steps {
                if let Step::Key(key) = step {
                    key_bytes_max = key_bytes_max.max(key.len());
                }
            }
        }
        Selector {
            root,
            key_bytes_max,
        }
    }
}

/// A place that paths lead to or through.
#[derive(Debug, Default)]
struct Node {
    keys: Vec<(&'static str, Node)>,
    each: Option<Box<Node>>,
    wanted: Vec<(usize, Want)>,
    /// The largest text that any path wants of this value.
    text_bytes_max: Option<usize>,
    wants_kind: bool,
    wants_chars: bool,
}

/// Reports the values that a [`Selector`] names, of a document that arrives in pieces.
///
/// A value is reported when it ends, except that the kind of a string, array or object is
/// reported at the byte that decides whether it is empty. Nested matches come before the value
/// around them; several paths to one value come in the order of the paths.
///
/// A picker is small: less than 1 KiB with what is open of the document, and the text of wanted
/// values that were cut.
#[derive(Debug)]
pub struct Picker<'s> {
    selector: &'s Selector,
    state: State,
    /// How many arrays and objects are open.
    depth: usize,
    /// Whether the innermost open one is an object.
    in_object: bool,
    /// One bit per open level: whether it is an object.
    objects: [u64; MAX_DEPTH / 64],
    /// The selected values of the open levels from the root down, as far as the paths reach. The
    /// innermost level is selected if there is a value for it, that is, if
    /// `open.len() == depth`.
    open: Vec<Value<'s>>,
    /// Where the value that comes next is in the tree, if a path leads there.
    next: Option<&'s Node>,
    /// The string, number or literal that is being read, if a path leads there.
    target: Option<Value<'s>>,
    watch: Watch,
    /// No byte of the string was seen yet, and its kind is still to be reported.
    is_kind_due: bool,
    /// The value of the digits of a `\uXXXX` that were seen.
    code_unit: u32,
    /// The high surrogate that the last escape of the string was.
    high_surrogate: Option<u32>,
    /// The unescaped start of a key that was cut or has escapes.
    key: Vec<u8>,
    is_key_too_long: bool,
}

/// A value that a path leads to or through.
#[derive(Debug)]
struct Value<'s> {
    node: &'s Node,
    /// Where the text that is not kept yet begins in the bytes at hand.
    text_from: usize,
    /// The text from earlier pieces, if any path wants it.
    text: Vec<u8>,
    is_text_too_long: bool,
    /// Characters or elements so far.
    count: u64,
}

/// What is done with the content of a string besides skipping it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// Nothing: a value of which no characters are counted.
    Value,
    /// Its characters are counted at the target.
    Chars,
    /// A key that no path can match.
    OtherKey,
    /// A key that a path may match.
    Key,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    /// That many bytes of a byte order mark were seen.
    Bom(u8),
    FirstElement,
    NextElement,
    FirstKey,
    NextKey,
    Colon,
    Value,
    AfterValue,
    Text,
    Escape,
    /// That many digits of a `\uXXXX` were seen.
    Unicode(u8),
    Number(Number),
    /// That many bytes of the word were seen.
    Literal(Word, u8),
    Complete,
    Malformed,
    TooDeep,
}

/// The literal names (RFC 8259, section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    True,
    False,
    Null,
}

impl Word {
    fn text(self) -> &'static [u8] {
        match self {
            Word::True => b"true",
            Word::False => b"false",
            Word::Null => b"null",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Word::True | Word::False => Kind::Bool,
            Word::Null => Kind::Null,
        }
    }
}

/// How far a number has come (RFC 8259, section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

impl Number {
    /// The state after that byte, or `None` if the byte is no part of the number.
    fn next(self, byte: u8) -> Option<Number> {
        use Number::*;
        Some(match (self, byte) {
            (Minus, b'0') => Zero,
            (Minus, b'1'..=b'9') | (Integer, b'0'..=b'9') => Integer,
            (Zero | Integer, b'.') => Point,
            (Point | Fraction, b'0'..=b'9') => Fraction,
            (Zero | Integer | Fraction, b'e' | b'E') => Exponent,
            (Exponent, b'+' | b'-') => ExponentSign,
            (Exponent | ExponentSign | ExponentDigits, b'0'..=b'9') => ExponentDigits,
            _ => return None,
        })
    }

    /// Whether any number of digits may follow in this state, and leave it.
    fn takes_digits(self) -> bool {
        use Number::*;
        matches!(self, Integer | Fraction | ExponentDigits)
    }

    fn is_whole(self) -> bool {
        use Number::*;
        matches!(self, Zero | Integer | Fraction | ExponentDigits)
    }
}

type Report<'f> = &'f mut dyn FnMut(usize, Found<'_>);

impl<'s> Picker<'s> {
    /// A picker of the values that the selector names.
    pub fn new(selector: &'s Selector) -> Picker<'s> {
        Picker {
            selector,
            state: State::Start,
            depth: 0,
            in_object: false,
            objects: [0; MAX_DEPTH / 64],
            open: Vec::new(),
            next: None,
            target: None,
            watch: Watch::Value,
            is_kind_due: false,
            code_unit: 0,
            high_surrogate: None,
            key: Vec::new(),
            is_key_too_long: false,
        }
    }

    /// Takes the next bytes and reports what ended in them, with the index of its path.
    pub fn push(&mut self, bytes: &[u8], found: &mut dyn FnMut(usize, Found<'_>)) {
        self.scan(bytes, found);
    }

    /// Takes the next bytes like [`Picker::push`] and returns how many of them belong to the
    /// document: all, unless it completes or turns out malformed before the last one.
    pub fn scan(&mut self, bytes: &[u8], found: &mut dyn FnMut(usize, Found<'_>)) -> usize {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match self.state {
                State::Complete | State::Malformed | State::TooDeep => break,
                State::Text => at = self.text(bytes, at, found),
                State::Number(number) => at = self.number(number, bytes, at, found),
                State::Escape => {
                    at += 1;
                    self.state = self.escape(byte);
                }
                State::Unicode(digits) => {
                    at += 1;
                    self.state = self.unicode(digits, byte);
                }
                State::Literal(word, seen) => {
                    at += 1;
                    self.literal(word, seen, byte, bytes, at, found);
                }
                State::Bom(seen) => {
                    at += 1;
                    self.state = match (seen, byte) {
                        (1, 0xBB) => State::Bom(2),
                        (2, 0xBF) => State::Value,
                        _ => State::Malformed,
                    };
                }
                _ if is_space(byte) => {
                    at += 1;
                    // A byte order mark may only come first.
                    if self.state == State::Start {
                        self.state = State::Value;
                    }
                }
                _ => {
                    self.structure(byte, bytes, at, found);
                    at += 1;
                }
            }
        }
        for value in self.open.iter_mut().chain(&mut self.target) {
            value.keep(bytes.get(value.text_from..).unwrap_or_default());
            value.text_from = 0;
        }
        at
    }

    /// Takes the end of the document, which completes a number that is the whole document, and
    /// tells how it ended: [`Status::Partial`] if it was cut short.
    pub fn end(&mut self, found: &mut dyn FnMut(usize, Found<'_>)) -> Status {
        if let State::Number(number) = self.state
            && self.depth == 0
            && number.is_whole()
        {
            self.value_ended(Kind::Number, &[], 0, found);
        }
        self.status()
    }

    /// How far the document has come.
    pub fn status(&self) -> Status {
        match self.state {
            State::Start => Status::Empty,
            State::Value if self.depth == 0 => Status::Empty,
            State::Complete => Status::Complete,
            State::Malformed => Status::Malformed,
            State::TooDeep => Status::TooDeep,
            _ => Status::Partial,
        }
    }

    /// Makes ready for another document.
    pub fn reset(&mut self) {
        self.state = State::Start;
        self.depth = 0;
        self.open.clear();
        self.next = None;
        self.target = None;
    }

    /// Takes a byte between strings, numbers and literals that is not white space.
    fn structure(&mut self, byte: u8, bytes: &[u8], at: usize, found: Report<'_>) {
        match (self.state, byte) {
            (State::Start, 0xEF) => self.state = State::Bom(1),
            (State::Start, _) => {
                self.state = State::Value;
                self.structure(byte, bytes, at, found);
            }
            (State::Value, _) => {
                if self.depth == 0 {
                    self.next = Some(&self.selector.root);
                }
                self.begin_value(byte, at);
            }
            (State::FirstElement, b']') => {
                self.report_container_kind(Kind::Array, true, found);
                self.close(Kind::Array, bytes, at, found);
            }
            (State::FirstElement, b'"' | b'{' | b'[' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
                self.report_container_kind(Kind::Array, false, found);
                self.begin_element(byte, at);
            }
            (State::NextElement, _) => self.begin_element(byte, at),
            (State::FirstKey, b'}') => {
                self.report_container_kind(Kind::Object, true, found);
                self.close(Kind::Object, bytes, at, found);
            }
            (State::FirstKey, b'"') => {
                self.report_container_kind(Kind::Object, false, found);
                self.begin_key();
            }
            (State::NextKey, b'"') => self.begin_key(),
            (State::Colon, b':') => self.state = State::Value,
            (State::AfterValue, b',') if self.in_object => self.state = State::NextKey,
            (State::AfterValue, b',') => self.state = State::NextElement,
            (State::AfterValue, b'}') if self.in_object => {
                self.close(Kind::Object, bytes, at, found);
            }
            (State::AfterValue, b']') if !self.in_object => {
                self.close(Kind::Array, bytes, at, found);
            }
            _ => self.state = State::Malformed,
        }
    }

    /// The node of the innermost open array or object, if a path leads there.
    fn innermost(&self) -> Option<&'s Node> {
        if self.open.len() == self.depth {
            self.open.last().map(|value| value.node)
        } else {
            None
        }
    }

    fn begin_key(&mut self) {
        self.state = State::Text;
        self.is_kind_due = false;
        self.high_surrogate = None;
        self.watch = match self.innermost() {
            Some(node) if !node.keys.is_empty() => Watch::Key,
            _ => Watch::OtherKey,
        };
        self.key.clear();
        self.is_key_too_long = false;
    }

    fn begin_element(&mut self, byte: u8, at: usize) {
        self.next = None;
        if self.open.len() == self.depth
            && let Some(array) = self.open.last_mut()
        {
            array.count += 1;
            self.next = array.node.each.as_deref();
        }
        self.begin_value(byte, at);
    }

    fn begin_value(&mut self, byte: u8, at: usize) {
        match byte {
            b'"' => {
                self.state = State::Text;
                self.high_surrogate = None;
                self.is_kind_due = self.next.is_some_and(|node| node.wants_kind);
                self.watch = match self.next {
                    Some(node) if node.wants_chars => Watch::Chars,
                    _ => Watch::Value,
                };
            }
            b'{' | b'[' => {
                if self.depth == MAX_DEPTH {
                    self.state = State::TooDeep;
                    return;
                }
            }
            b'-' => self.state = State::Number(Number::Minus),
            b'0' => self.state = State::Number(Number::Zero),
            b'1'..=b'9' => self.state = State::Number(Number::Integer),
            b't' => self.state = State::Literal(Word::True, 1),
            b'f' => self.state = State::Literal(Word::False, 1),
            b'n' => self.state = State::Literal(Word::Null, 1),
            _ => {
                self.state = State::Malformed;
                return;
            }
        }
        let value = self.next.take().map(|node| Value::new(node, at));
        match byte {
            b'{' => self.open(value, true),
            b'[' => self.open(value, false),
            _ => self.target = value,
        }
    }

    fn open(&mut self, value: Option<Value<'s>>, is_object: bool) {
        self.open.extend(value);
        if let Some(word) = self.objects.get_mut(self.depth / 64) {
            let bit = 1u64 << (self.depth % 64);
            if is_object {
                *word |= bit;
            } else {
                *word &= !bit;
            }
        }
        self.depth += 1;
        self.in_object = is_object;
        self.state = if is_object {
            State::FirstKey
        } else {
            State::FirstElement
        };
    }

    fn close(&mut self, kind: Kind, bytes: &[u8], at: usize, found: Report<'_>) {
        self.target = if self.open.len() == self.depth {
            self.open.pop()
        } else {
            None
        };
        self.depth -= 1;
        self.in_object = self.depth > 0 && {
            let level = self.depth - 1;
            self.objects
                .get(level / 64)
                .is_some_and(|word| word >> (level % 64) & 1 == 1)
        };
        self.value_ended(kind, bytes, at + 1, found);
    }

    /// Takes bytes of a string from `at` on and returns where it stopped.
    fn text(&mut self, bytes: &[u8], mut at: usize, found: Report<'_>) -> usize {
        if self.is_kind_due
            && let Some(&first) = bytes.get(at)
            && first >= b' '
        {
            self.is_kind_due = false;
            let kind = Found::Kind {
                kind: Kind::String,
                empty: first == b'"',
            };
            if let Some(value) = &self.target {
                value.node.report_kind(kind, found);
            }
        }
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let run = plain_run(rest);
            let (run, rest) = rest.split_at_checked(run).unwrap_or((rest, &[]));
            at += run.len();
            match rest {
                [b'"', rest @ ..] => return self.text_ended(run, rest, bytes, at + 1, found),
                [b'\\', rest @ ..] => {
                    self.string_run(run);
                    at += 1;
                    self.state = match rest {
                        [byte, ..] => self.escape(*byte),
                        [] => State::Escape,
                    };
                    at += usize::from(!rest.is_empty());
                    if self.state != State::Text {
                        return at;
                    }
                }
                [_control, ..] => {
                    self.state = State::Malformed;
                    return at;
                }
                [] => {
                    self.string_run(run);
                    return at;
                }
            }
        }
    }

    /// The string has ended before `end` with that run; returns where to go on.
    fn text_ended(
        &mut self,
        run: &[u8],
        rest: &[u8],
        bytes: &[u8],
        end: usize,
        found: Report<'_>,
    ) -> usize {
        match self.watch {
            Watch::Value => self.value_ended(Kind::String, bytes, end, found),
            Watch::Chars => {
                self.string_run(run);
                self.value_ended(Kind::String, bytes, end, found);
            }
            Watch::Key | Watch::OtherKey => {
                let is_key_wanted = self.watch == Watch::Key;
                self.next = if is_key_wanted {
                    self.match_key(run)
                } else {
                    None
                };
                if rest.first() == Some(&b':') {
                    self.state = State::Value;
                    return end + 1;
                }
                self.state = State::Colon;
            }
        }
        end
    }

    /// Takes content of a string without quotes and escapes.
    fn string_run(&mut self, run: &[u8]) {
        if run.is_empty() {
            return;
        }
        match self.watch {
            Watch::Value | Watch::OtherKey => {}
            Watch::Chars => {
                self.high_surrogate = None;
                self.count_chars(characters(run));
            }
            Watch::Key => {
                self.flush_surrogate();
                self.keep_key(run);
            }
        }
    }

    /// Takes the byte behind a backslash and returns what comes next.
    fn escape(&mut self, byte: u8) -> State {
        let character = match byte {
            b'"' | b'\\' | b'/' => byte,
            b'b' => 0x08,
            b'f' => 0x0C,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                self.code_unit = 0;
                return State::Unicode(0);
            }
            _ => return State::Malformed,
        };
        self.string_run(&[character]);
        State::Text
    }

    /// Takes a digit of a `\uXXXX` and returns what comes next.
    fn unicode(&mut self, digits: u8, byte: u8) -> State {
        let Some(digit) = char::from(byte).to_digit(16) else {
            return State::Malformed;
        };
        self.code_unit = self.code_unit << 4 | digit;
        if digits < 3 {
            return State::Unicode(digits + 1);
        }
        self.code_unit(self.code_unit);
        State::Text
    }

    /// Takes a UTF-16 code unit that was escaped.
    fn code_unit(&mut self, value: u32) {
        match self.watch {
            Watch::Value | Watch::OtherKey => {}
            Watch::Chars => {
                // The second half of a pair was counted with the first.
                let is_second = self.high_surrogate.take().is_some() && is_low_surrogate(value);
                if !is_second {
                    self.count_chars(1);
                    self.high_surrogate = is_high_surrogate(value).then_some(value);
                }
            }
            Watch::Key => {
                if is_high_surrogate(value) {
                    self.flush_surrogate();
                    self.high_surrogate = Some(value);
                    return;
                }
                let scalar = match self.high_surrogate {
                    Some(high) if is_low_surrogate(value) => {
                        self.high_surrogate = None;
                        join_surrogates(high, value)
                    }
                    _ => value,
                };
                self.flush_surrogate();
                match char::from_u32(scalar) {
                    Some(character) => {
                        let mut utf8 = [0; 4];
                        let utf8 = character.encode_utf8(&mut utf8);
                        self.keep_key(utf8.as_bytes());
                    }
                    None => self.keep_key(LONE_SURROGATE),
                }
            }
        }
    }

    /// Ends a pair of which only the first half came.
    fn flush_surrogate(&mut self) {
        if self.high_surrogate.take().is_some() {
            self.keep_key(LONE_SURROGATE);
        }
    }

    fn keep_key(&mut self, bytes: &[u8]) {
        if self.key.len() + bytes.len() > self.selector.key_bytes_max {
            self.is_key_too_long = true;
        } else {
            self.key.extend_from_slice(bytes);
        }
    }

    /// The node that the key leads to; `run` is its last part.
    fn match_key(&mut self, run: &[u8]) -> Option<&'s Node> {
        let is_whole_at_hand =
            self.key.is_empty() && self.high_surrogate.is_none() && !self.is_key_too_long;
        if !is_whole_at_hand {
            self.string_run(run);
            self.flush_surrogate();
            if self.is_key_too_long {
                return None;
            }
        }
        let key = if is_whole_at_hand { run } else { &self.key };
        let keys = &self.innermost()?.keys;
        keys.iter()
            .find(|(name, _)| name.as_bytes() == key)
            .map(|(_, node)| node)
    }

    fn count_chars(&mut self, count: u64) {
        if let Some(value) = &mut self.target {
            value.count += count;
        }
    }

    /// Takes bytes of a number from `at` on and returns where it stopped.
    fn number(
        &mut self,
        mut number: Number,
        bytes: &[u8],
        mut at: usize,
        found: Report<'_>,
    ) -> usize {
        while let Some(&byte) = bytes.get(at) {
            if byte.is_ascii_digit() && number.takes_digits() {
                at += 1;
                continue;
            }
            match number.next(byte) {
                Some(next) => {
                    number = next;
                    at += 1;
                }
                // A number shows its end only by what follows, so `1x` is no document with junk
                // behind it but a malformed number.
                None if !number.is_whole() || (self.depth == 0 && !is_space(byte)) => {
                    self.state = State::Malformed;
                    return at;
                }
                None => {
                    self.value_ended(Kind::Number, bytes, at, found);
                    return at;
                }
            }
        }
        self.state = State::Number(number);
        at
    }

    fn literal(
        &mut self,
        word: Word,
        seen: u8,
        byte: u8,
        bytes: &[u8],
        end: usize,
        found: Report<'_>,
    ) {
        match word.text().get(usize::from(seen)..) {
            Some([expected]) if *expected == byte => {
                self.value_ended(word.kind(), bytes, end, found);
            }
            Some([expected, ..]) if *expected == byte => {
                self.state = State::Literal(word, seen + 1);
            }
            _ => self.state = State::Malformed,
        }
    }

    /// The value at the target has ended before `end` in the bytes at hand.
    fn value_ended(&mut self, kind: Kind, bytes: &[u8], end: usize, found: Report<'_>) {
        self.state = if self.depth == 0 {
            State::Complete
        } else {
            State::AfterValue
        };
        if let Some(value) = self.target.take() {
            value.report_ended(kind, bytes, end, found);
        }
    }

    fn report_container_kind(&mut self, kind: Kind, empty: bool, found: Report<'_>) {
        if let Some(node) = self.innermost()
            && node.wants_kind
        {
            node.report_kind(Found::Kind { kind, empty }, found);
        }
    }
}

impl Node {
    /// Adds a path that has these steps to go.
    fn want(&mut self, steps: &[Step], path: usize, want: Want) {
        match steps.split_first() {
            None => {
                self.wanted.push((path, want));
                match want {
                    Want::Text(bytes_max) => {
                        self.text_bytes_max = self.text_bytes_max.max(Some(bytes_max));
                    }
                    Want::Kind => self.wants_kind = true,
                    Want::Chars => self.wants_chars = true,
                    Want::Count => {}
                }
            }
            Some((Step::Each, rest)) => self.each.get_or_insert_default().want(rest, path, want),
            Some((Step::Key(key), rest)) => {
                if let Some((_, node)) = self.keys.iter_mut().find(|(name, _)| name == key) {
                    node.want(rest, path, want);
                } else {
                    let mut node = Node::default();
                    node.want(rest, path, want);
                    self.keys.push((key, node));
                }
            }
        }
    }

    fn report_kind(&self, kind: Found<'_>, found: Report<'_>) {
        for &(path, want) in &self.wanted {
            if want == Want::Kind {
                found(path, kind);
            }
        }
    }
}

impl<'s> Value<'s> {
    fn new(node: &'s Node, text_from: usize) -> Value<'s> {
        Value {
            node,
            text_from,
            text: Vec::new(),
            is_text_too_long: false,
            count: 0,
        }
    }

    /// Keeps text of a piece that ends before the value does, up to the limit.
    fn keep(&mut self, bytes: &[u8]) {
        let Some(bytes_max) = self.node.text_bytes_max else {
            return;
        };
        if self.is_text_too_long || self.text.len() + bytes.len() > bytes_max {
            self.is_text_too_long = true;
            self.text = Vec::new();
        } else {
            self.text.extend_from_slice(bytes);
        }
    }

    fn report_ended(mut self, kind: Kind, bytes: &[u8], end: usize, found: Report<'_>) {
        let mut text = bytes.get(self.text_from..end).unwrap_or_default();
        if !self.text.is_empty() || self.is_text_too_long {
            self.keep(text);
            text = &self.text;
        }
        for &(path, want) in &self.node.wanted {
            match want {
                Want::Text(bytes_max) if self.is_text_too_long || text.len() > bytes_max => {
                    found(path, Found::TooLong);
                }
                Want::Text(_) => found(path, Found::Text(text)),
                Want::Kind if matches!(kind, Kind::Null | Kind::Bool | Kind::Number) => {
                    found(path, Found::Kind { kind, empty: false });
                }
                Want::Chars if kind == Kind::String => found(path, Found::Count(self.count)),
                Want::Count if kind == Kind::Array => found(path, Found::Count(self.count)),
                Want::Kind | Want::Chars | Want::Count => {}
            }
        }
    }
}

/// What stands in a key for half of a surrogate pair: no key of a path contains such a byte.
const LONE_SURROGATE: &[u8] = &[0xFF];

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// How many bytes at the start can stand in a string as they are: all but quotes, backslashes
/// and control characters.
fn plain_run(bytes: &[u8]) -> usize {
    // Most strings are short, where looking at eight bytes at a time costs least.
    let mut at = 0;
    while at < SHORT_BYTES
        && let Some(eight) = bytes.get(at..).and_then(<[u8]>::first_chunk)
    {
        let stops = stops(u64::from_le_bytes(*eight));
        if stops != 0 {
            return at + lowest_byte(stops);
        }
        at += 8;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    let run = memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
    let run = rest.get(..run).unwrap_or_default();
    // Without an early exit this becomes vector instructions; control characters are rare.
    let has_control = run.iter().fold(false, |found, byte| found | (*byte < b' '));
    let control = has_control
        .then(|| run.iter().position(|byte| *byte < b' '))
        .flatten();
    at + control.unwrap_or(run.len())
}

/// From where on a string is scanned for its end by vector instructions.
const SHORT_BYTES: usize = 64;

/// Sets the high bit of the lowest byte that cannot stand in a string as it is, and perhaps of
/// bytes above it.
fn stops(eight: u64) -> u64 {
    const ONES: u64 = u64::MAX / 0xFF;
    const HIGH_BITS: u64 = ONES << 7;
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word & HIGH_BITS;
    let is = |byte: u8| below(eight ^ (ONES * u64::from(byte)), 1);
    below(eight, 0x20) | is(b'"') | is(b'\\')
}

/// The index of the lowest byte that is not zero.
fn lowest_byte(word: u64) -> usize {
    usize::try_from(word.trailing_zeros() / 8).unwrap_or_default()
}

/// How many characters begin in these bytes, those that are not continuations in UTF-8.
fn characters(run: &[u8]) -> u64 {
    run.iter().map(|byte| u64::from(byte & 0xC0 != 0x80)).sum()
}

fn is_high_surrogate(value: u32) -> bool {
    (0xD800..0xDC00).contains(&value)
}

fn is_low_surrogate(value: u32) -> bool {
    (0xDC00..0xE000).contains(&value)
}

/// The code point of a pair (The Unicode Standard, section 3.9, D91).
fn join_surrogates(high: u32, low: u32) -> u32 {
    0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)
}

/// The content of a JSON string, given its text with the quotes; `None` if it is not one. Half
/// surrogate pairs and invalid UTF-8 become U+FFFD.
pub fn text_of(found: &[u8]) -> Option<Cow<'_, str>> {
    let inner = found.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if memchr(b'\\', inner).is_none() {
        let is_string = memchr(b'"', inner).is_none();
        return is_string.then(|| String::from_utf8_lossy(inner));
    }
    let mut content = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(stop) = memchr2(b'"', b'\\', rest) {
        let (run, escape) = rest.split_at_checked(stop)?;
        content.extend_from_slice(run);
        let (character, after) = unescape(escape)?;
        content.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        rest = after;
    }
    content.extend_from_slice(rest);
    Some(Cow::Owned(match String::from_utf8(content) {
        Ok(content) => content,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    }))
}

/// The character that an escape stands for, and what follows it.
fn unescape(escape: &[u8]) -> Option<(char, &[u8])> {
    let (character, rest) = match escape {
        [b'\\', byte @ (b'"' | b'\\' | b'/'), rest @ ..] => (char::from(*byte), rest),
        [b'\\', b'b', rest @ ..] => ('\u{8}', rest),
        [b'\\', b'f', rest @ ..] => ('\u{C}', rest),
        [b'\\', b'n', rest @ ..] => ('\n', rest),
        [b'\\', b'r', rest @ ..] => ('\r', rest),
        [b'\\', b't', rest @ ..] => ('\t', rest),
        _ => {
            let (first, rest) = unicode_escape(escape)?;
            match unicode_escape(rest) {
                Some((second, rest)) if is_high_surrogate(first) && is_low_surrogate(second) => {
                    (char::from_u32(join_surrogates(first, second))?, rest)
                }
                _ => (
                    char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER),
                    rest,
                ),
            }
        }
    };
    Some((character, rest))
}

/// The value of a `\uXXXX`, and what follows it.
fn unicode_escape(escape: &[u8]) -> Option<(u32, &[u8])> {
    let (digits, rest) = escape.strip_prefix(b"\\u")?.split_at_checked(4)?;
    let value = digits.iter().try_fold(0, |value, digit| {
        Some(value << 4 | char::from(*digit).to_digit(16)?)
    })?;
    Some((value, rest))
}

/// The decimal in the text of a JSON number, in plain or exponent form, or of a string that holds
/// one; `None` if it is neither or does not fit.
pub fn decimal_of(found: &[u8]) -> Option<Decimal> {
    let text = match found.first()? {
        b'"' => text_of(found)?,
        _ => Cow::Borrowed(str::from_utf8(found).ok()?),
    };
    let text = text.trim();
    // Decimal's own grammar is wider: it lets digits be grouped by underscores.
    let is_number = text
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'));
    if is_number { parse_decimal(text) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use super::{Step::*, Want::*};

    /// Everything found, as text, and how the document ended.
    fn pick(paths: &'static [Path], pieces: &[&[u8]]) -> (Vec<String>, Status) {
        let mut all = Vec::new();
        let mut note = |index: usize, found: Found<'_>| {
            all.push(match found {
                Found::Text(text) => format!("{index}: {}", String::from_utf8_lossy(text)),
                other => format!("{index}: {other:?}"),
            });
        };
        let selector = Selector::new(paths);
        let mut picker = Picker::new(&selector);
        for piece in pieces {
            picker.push(piece, &mut note);
        }
        let status = picker.end(&mut note);
        (all, status)
    }

    /// Picks whole, at every single cut and byte by byte; all must agree.
    fn pick_all_cuts(paths: &'static [Path], document: &str) -> (Vec<String>, Status) {
        let bytes = document.as_bytes();
        let whole = pick(paths, &[bytes]);
        for cut in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(pick(paths, &[head, tail]), whole, "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(pick(paths, &single), whole, "byte by byte");
        whole
    }

    const ROOT: &[Path] = &[Path {
        steps: &[],
        want: Text(64),
    }];

    fn status(document: &str) -> Status {
        pick_all_cuts(ROOT, document).1
    }

    #[test]
    fn nested_and_equal_paths_are_all_reported() {
        const PATHS: &[Path] = &[
            Path {
                steps: &[Key("usage")],
                want: Text(100),
            },
            Path {
                steps: &[Key("usage"), Key("cost")],
                want: Text(10),
            },
            Path {
                steps: &[Key("usage")],
                want: Kind,
            },
            Path {
                steps: &[Key("usage"), Key("cost")],
                want: Text(2),
            },
            Path {
                steps: &[Key("choices"), Each, Key("delta")],
                want: Kind,
            },
            Path {
                steps: &[Key("choices")],
                want: Count,
            },
        ];
        let document = r#" {"id":"x","usage": {"cost":0.5,"n":{"cost":1}} ,
            "choices":[{"delta":{}},{"delta":{"a":1}},3]}"#;
        let found = [
            r#"2: Kind { kind: Object, empty: false }"#,
            r#"1: 0.5"#,
            r#"3: TooLong"#,
            r#"0: {"cost":0.5,"n":{"cost":1}}"#,
            r#"4: Kind { kind: Object, empty: true }"#,
            r#"4: Kind { kind: Object, empty: false }"#,
            r#"5: Count(3)"#,
        ];
        let found = found.map(String::from).to_vec();
        assert_eq!(pick_all_cuts(PATHS, document), (found, Status::Complete));
    }

    #[test]
    fn keys_compare_unescaped_and_duplicates_are_each_reported() {
        const PATHS: &[Path] = &[
            Path {
                steps: &[Key("usage")],
                want: Text(9),
            },
            Path {
                steps: &[Key("\u{1F600}")],
                want: Text(9),
            },
        ];
        let document = r#"{"us\u0061ge":1,"usage":2,"usag":3,"usagee":4,"\ud83d\ude00":5,
            "\ud83d":6,"\ud83d\ud83d\ude00":7,"😀":8,"":9}"#;
        let found = ["0: 1", "0: 2", "1: 5", "1: 8"].map(String::from).to_vec();
        assert_eq!(pick_all_cuts(PATHS, document), (found, Status::Complete));
    }

    #[test]
    fn a_kind_is_reported_at_the_byte_that_decides_it() {
        const PATHS: &[Path] = &[Path {
            steps: &[Key("a")],
            want: Kind,
        }];
        for (before, deciding, kind, empty) in [
            (r#"{"a":""#, r#"""#, super::Kind::String, true),
            (r#"{"a":""#, r#"x"#, super::Kind::String, false),
            (r#"{"a":""#, r#"\"#, super::Kind::String, false),
            (r#"{"a":[ "#, r#"]"#, super::Kind::Array, true),
            (r#"{"a":[ "#, r#"1"#, super::Kind::Array, false),
            (r#"{"a":{ "#, r#"}"#, super::Kind::Object, true),
            (r#"{"a":{ "#, r#"""#, super::Kind::Object, false),
            (r#"{"a":nul"#, r#"l"#, super::Kind::Null, false),
            (r#"{"a":fals"#, r#"e"#, super::Kind::Bool, false),
            (r#"{"a":1"#, r#","#, super::Kind::Number, false),
        ] {
            let none = pick(PATHS, &[before.as_bytes()]).0;
            assert_eq!(none, Vec::<String>::new(), "{before}");
            let found = pick(PATHS, &[before.as_bytes(), deciding.as_bytes()]).0;
            let expected = format!("0: {:?}", Found::Kind { kind, empty });
            assert_eq!(found, [expected], "{before}{deciding}");
        }
    }

    #[test]
    fn characters_are_counted_once_whatever_their_encoding() {
        const PATHS: &[Path] = &[Path {
            steps: &[Each],
            want: Chars,
        }];
        let document =
            r#"["", "ab", "ä😀", "\u00e4\ud83d\ude00\n", "\ud83d", "\ud83dx\ude00", 12]"#;
        let found = [
            "0: Count(0)",
            "0: Count(2)",
            "0: Count(2)",
            "0: Count(3)",
            "0: Count(1)",
        ];
        let mut found = found.map(String::from).to_vec();
        found.push("0: Count(3)".into());
        assert_eq!(pick_all_cuts(PATHS, document), (found, Status::Complete));
    }

    #[test]
    fn a_document_ends_as_it_ends() {
        for complete in [
            "{}",
            " [1] junk",
            "\u{feff}{}",
            "\u{feff} 1",
            "-0.5e+9",
            "1 x",
            "\"\"",
            "null}",
        ] {
            assert_eq!(status(complete), Status::Complete, "{complete}");
        }
        for partial in [
            "{", "[1,", "1.", "-", "1e", "\"a", "nul", "{\"a\"", "{\"a\":", "\"\\u00",
        ] {
            assert_eq!(status(partial), Status::Partial, "{partial}");
        }
        for empty in ["", " \r\n\t", "\u{feff}", "\u{feff} "] {
            assert_eq!(status(empty), Status::Empty, "{empty}");
        }
        for malformed in [
            "x",
            "01",
            "1x",
            "1.5.1",
            "+1",
            ".5",
            "nulL",
            "[1 2]",
            "[,",
            "[1,]",
            "{,",
            "{\"a\":1,}",
            "{1:2}",
            "{\"a\" 1}",
            "[}",
            "{]",
            "[1}",
            "{\"a\":1]",
            "\"\u{1}\"",
            "\"\n",
            "\"\\x\"",
            "\"\\u12g4\"",
            "]",
            "}",
            ",",
            ":",
            " \u{feff}{}",
            "-x",
            "1e+x",
            "[1e]",
            "[-]",
            "[1.]",
        ] {
            assert_eq!(status(malformed), Status::Malformed, "{malformed}");
        }
    }

    #[test]
    fn a_string_may_hold_any_byte_but_a_control_character() {
        for length in (0..20).chain(SHORT_BYTES - 9..SHORT_BYTES + 20) {
            for byte in (0..=u8::MAX).filter(|byte| !matches!(byte, b'"' | b'\\')) {
                let text = [b"x".repeat(length), vec![byte], b"y".repeat(length)].concat();
                let document = [&b"\""[..], &text, b"\""].concat();
                let expected = if byte < b' ' {
                    Status::Malformed
                } else {
                    Status::Complete
                };
                assert_eq!(pick(ROOT, &[&document]).1, expected, "{byte} at {length}");
            }
        }
    }

    #[test]
    fn nesting_is_bounded_and_the_bound_is_told() {
        let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        let ended = |levels: usize| pick(ROOT, &[deep(levels).as_bytes()]).1;
        assert_eq!(ended(MAX_DEPTH - 1), Status::Complete);
        assert_eq!(ended(MAX_DEPTH), Status::Complete);
        assert_eq!(ended(MAX_DEPTH + 1), Status::TooDeep);
    }

    #[test]
    fn what_was_found_before_a_mistake_stands_and_nothing_follows() {
        const PATHS: &[Path] = &[Path {
            steps: &[Key("a")],
            want: Text(9),
        }];
        let found = pick_all_cuts(PATHS, r#"{"a":1,"b":x,"a":2}"#);
        assert_eq!(found, (vec!["0: 1".into()], Status::Malformed));
    }

    #[test]
    fn a_text_is_reported_up_to_its_limit() {
        const PATHS: &[Path] = &[
            Path {
                steps: &[],
                want: Text(4),
            },
            Path {
                steps: &[],
                want: Text(0),
            },
        ];
        let found = |document| pick_all_cuts(PATHS, document).0;
        assert_eq!(found(r#""a""#), [r#"0: "a""#, "1: TooLong"]);
        assert_eq!(found(r#""ab""#), [r#"0: "ab""#, "1: TooLong"]);
        assert_eq!(found(r#""abc""#), ["0: TooLong", "1: TooLong"]);
    }

    #[test]
    fn a_picker_is_reused_for_the_next_document() {
        const PATHS: &[Path] = &[Path {
            steps: &[Key("a"), Key("b")],
            want: Text(99),
        }];
        let mut texts = Vec::new();
        let selector = Selector::new(PATHS);
        let mut picker = Picker::new(&selector);
        for document in [
            r#"{"a":{"b":[1,{"#,
            "x",
            r#"{"a":{"b":2}}"#,
            r#"{"a":{"b":"3"}}"#,
        ] {
            picker.reset();
            picker.push(document.as_bytes(), &mut |_, found| {
                if let Found::Text(text) = found {
                    texts.push(String::from_utf8_lossy(text).into_owned());
                }
            });
        }
        assert_eq!(texts, ["2", "\"3\""]);
    }

    #[test]
    fn a_picker_holds_its_state_alone() {
        const STEPS: &[Step] = &[Key("a"), Each, Key("b"), Each, Key("c")];
        const PATHS: &[Path] = &[Path {
            steps: STEPS,
            want: Kind,
        }];
        let selector = Selector::new(PATHS);
        let mut picker = Picker::new(&selector);
        picker.push(br#"{"a":[{"b":[{"#, &mut |_, _| {});
        let open = picker.open.capacity() * size_of::<Value<'_>>();
        assert_eq!(picker.open.len(), STEPS.len());
        assert!(size_of_val(&picker) + open + picker.key.capacity() <= 1024);
    }

    #[test]
    fn what_follows_a_document_is_not_counted_as_its_own() {
        let selector = Selector::new(ROOT);
        let mut picker = Picker::new(&selector);
        assert_eq!(picker.scan(b"{\"a\":", &mut |_, _| {}), 5);
        assert_eq!(picker.scan(b"1} {", &mut |_, _| {}), 2);
        assert_eq!(picker.scan(b"}", &mut |_, _| {}), 0);
    }

    #[test]
    fn strings_are_unescaped() {
        let text = |found: &'static [u8]| text_of(found);
        assert_eq!(text(br#""a""#), Some(Cow::Borrowed("a")));
        assert_eq!(
            text(br#""\"\\\/\b\f\n\r\t\u00e4\ud83d\ude00 \ud83d \ude00\ud83d""#),
            Some(Cow::Borrowed(
                "\"\\/\u{8}\u{c}\n\r\tä😀 \u{fffd} \u{fffd}\u{fffd}"
            ))
        );
        assert_eq!(text(b"\"\xff\""), Some(Cow::Borrowed("\u{fffd}")));
        assert_eq!(text(b"\"\xff\\n\""), Some(Cow::Borrowed("\u{fffd}\n")));
        for refused in [
            &b""[..],
            b"\"",
            b"a",
            b"\"a\"b\"",
            br#""\x""#,
            br#""\u12""#,
            br#""\""#,
        ] {
            assert_eq!(
                text_of(refused),
                None,
                "{}",
                String::from_utf8_lossy(refused)
            );
        }
    }

    #[test]
    fn decimals_are_read_from_numbers_and_strings() {
        let text = |found: &[u8]| decimal_of(found).map(|decimal| decimal.normalize().to_string());
        assert_eq!(text(b"12"), Some("12".into()));
        assert_eq!(text(b"1.2e-05"), Some("0.000012".into()));
        assert_eq!(text(br#""-3.50""#), Some("-3.5".into()));
        for refused in [
            &b""[..],
            b"null",
            br#""""#,
            br#""1_000""#,
            b"1_000",
            b"{}",
            br#""a""#,
        ] {
            assert_eq!(text(refused), None, "{}", String::from_utf8_lossy(refused));
        }
    }
}
