//! What must hold, as functions over a [`Lab`](crate::lab::Lab): the same list runs against the simulated cluster
//! and against the real one.

pub mod carrier;
pub mod identity;
pub mod informers;
pub mod kill;
pub mod leave;
pub mod limits;
pub mod managing;
pub mod observer;
pub mod proof;
pub mod start;
pub mod survive;
pub mod watches;
