//! How far a load is.

/// Hears of the pieces of work of a load.
pub trait Progress: Sync {
    /// A piece of work on so many bytes begins. `what` says what it is, in a few words.
    fn begin(&self, what: String, bytes: u64) -> Box<dyn Task>;
}

/// A piece of work. One that fails is dropped before its end.
pub trait Task: Send {
    /// So many bytes more are done.
    fn advance(&self, bytes: u64);

    /// It begins anew, after a failure.
    fn restart(&self);

    /// It ends, with this outcome in a word or two.
    fn end(self: Box<Self>, outcome: &str);
}

/// Nobody hears.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _what: String, _bytes: u64) -> Box<dyn Task> {
        Box::new(Self)
    }
}

impl Task for Silent {
    fn advance(&self, _bytes: u64) {}

    fn restart(&self) {}

    fn end(self: Box<Self>, _outcome: &str) {}
}
