//! What the tables should hold: which service ports there are, who has which frontend, and the numbers and places of
//! what is in force.

pub mod claims;
pub mod ids;
pub mod records;
pub mod slots;
