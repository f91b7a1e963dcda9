//! Everything that crosses modules, in one binary that links once.

#[cfg(test)]
mod admin;
#[cfg(test)]
mod exposition;
