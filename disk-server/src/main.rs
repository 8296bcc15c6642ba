//! The disk server's own binary.
fn main() {}
