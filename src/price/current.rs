//! The price book in force: one for a process, replaced as a whole while requests are priced.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::PriceBook;

/// The book that prices are taken from now. To read it takes no lock; whoever holds a book from
/// before a swap goes on with that one.
pub struct CurrentBook(ArcSwap<PriceBook>);

impl CurrentBook {
    /// A book in force until it is replaced.
    pub fn new(book: PriceBook) -> CurrentBook {
        CurrentBook(ArcSwap::from_pointee(book))
    }

    /// The book in force, for a moment.
    pub fn load(&self) -> Guard<Arc<PriceBook>> {
        self.0.load()
    }

    /// Puts another book in force.
    pub fn replace(&self, book: PriceBook) {
        self.0.store(Arc::new(book));
    }
}

impl fmt::Debug for CurrentBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CurrentBook")
            .field(&self.load().version())
            .finish()
    }
}
