//! The text fields of `multipart/form-data` (RFC 7578), in constant memory.
