//! Runs one compilation or rendering on a thread of its own with a deep stack, and turns a panic into an error.
//!
//! The depth of minijinja's syntax tree, and of values inside each other, is bounded only by the source's length and by the steps; both
//! are walked and freed by recursion. The stack is address space, not memory, until it is used. A rendering of
//! one letter, thread included, takes 40 to 130 us on a busy two-core machine.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Once;
use std::thread;

/// Measured with the deepest trees that the source limit allows (tests/unit/text/test_chat_template.c): 128 MiB suffice, 48 do not.
const STACK_BYTES: usize = 256 << 20;

/// None when the job panicked or no thread could be started.
pub fn run<R: Send>(job: impl FnOnce() -> R + Send) -> Option<R> {
    // The default hook prints a backtrace to stderr, which is the host program's.
    static QUIET: Once = Once::new();
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    thread::scope(|scope| {
        let caught = move || catch_unwind(AssertUnwindSafe(job)).ok();
        let handle = thread::Builder::new().name("template".into()).stack_size(STACK_BYTES).spawn_scoped(scope, caught).ok()?;
        handle.join().ok().flatten()
    })
}
