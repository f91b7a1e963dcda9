//! Server-sent events (WHATWG HTML, section 9.2), decoded without holding an event.
