//! Stores: where rows live, and the drain that fills them from the journal.
