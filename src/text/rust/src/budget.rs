//! What one compilation or rendering may cost.
//!
//! minijinja counts steps ("fuel") and nesting, but one step can double a string, so every operation that copies or walks data also
//! pays here. The account is thread-local because each job has a thread of its own (job.rs).

use std::cell::{Cell, RefCell};

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Instructions of one rendering. Conversations of 4,000 messages stay below it with the longest templates known.
pub const STEPS_MAX: u64 = 2_000_000;
/// Nested macro calls cost 4 of these each, nested blocks 1.
pub const NESTING_MAX: usize = 400;
/// Bytes made, copied or compared by one rendering. Also bounds its memory.
pub const WORK_BYTES_MAX: usize = 512 << 20;
/// Lists and mappings inside each other, where we walk them. Python's own limit is near 1,000.
pub const DEPTH_MAX: usize = 200;
/// What one visited value costs, in bytes of work.
const NODE_BYTES: usize = 32;

thread_local! {
    static WORK: Cell<usize> = const { Cell::new(0) };
    static OUTPUT: Cell<usize> = const { Cell::new(0) };
    static OUTPUT_MAX: Cell<usize> = const { Cell::new(0) };
    static NOW_S: Cell<u64> = const { Cell::new(0) };
    static VERDICT: RefCell<Option<Verdict>> = const { RefCell::new(None) };
}

/// Why we stopped a rendering. minijinja's errors have no room for this, and a template cannot catch errors, so it is kept beside.
pub enum Verdict {
    Limit(String),
    Refused(String),
}

pub fn begin(output_max: usize, now_s: u64) {
    WORK.with(|c| c.set(0));
    OUTPUT.with(|c| c.set(0));
    OUTPUT_MAX.with(|c| c.set(output_max));
    NOW_S.with(|c| c.set(now_s));
    VERDICT.with(|c| *c.borrow_mut() = None);
}

pub fn now_s() -> u64 {
    NOW_S.with(Cell::get)
}

pub fn take_verdict() -> Option<Verdict> {
    VERDICT.with(|c| c.borrow_mut().take())
}

fn stop(verdict: Verdict, text: &str) -> Error {
    let error = Error::new(ErrorKind::InvalidOperation, text.to_owned());
    VERDICT.with(|c| *c.borrow_mut() = Some(verdict));
    error
}

pub fn limit(text: String) -> Error {
    let copy = text.clone();
    stop(Verdict::Limit(text), &copy)
}

pub fn refuse(text: String) -> Error {
    stop(Verdict::Refused(text), "raise_exception")
}

/// Pays for `bytes` before they are made.
pub fn charge(bytes: usize) -> Result<(), Error> {
    let work = WORK.with(Cell::get).saturating_add(bytes);
    if work > WORK_BYTES_MAX {
        return Err(limit(format!("the template handles more than {WORK_BYTES_MAX} bytes of data")));
    }
    WORK.with(|c| c.set(work));
    Ok(())
}

/// Pays for `bytes` of the prompt or of a captured block.
pub fn charge_output(bytes: usize) -> Result<(), Error> {
    charge(bytes)?;
    let (output, max) = (OUTPUT.with(Cell::get).saturating_add(bytes), OUTPUT_MAX.with(Cell::get));
    if output > max {
        return Err(limit(format!("the template writes more than {max} bytes")));
    }
    OUTPUT.with(|c| c.set(output));
    Ok(())
}

pub fn too_deep() -> Error {
    limit(format!("data nested more than {DEPTH_MAX} levels deep"))
}

/// Pays for a walk over the whole value, so that the operation that follows may do such a walk: comparing, hashing, sorting, printing.
/// A list that holds itself twice, many times over, is stopped here and not in an endless comparison.
pub fn charge_walk(value: &Value, depth: usize) -> Result<(), Error> {
    if let Some(s) = value.as_str() {
        return charge(NODE_BYTES + s.len());
    }
    charge(NODE_BYTES)?;
    if depth > DEPTH_MAX {
        return Err(too_deep());
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                charge_walk(&item, depth + 1)?;
            }
        }
        ValueKind::Map => {
            for key in value.try_iter()? {
                charge_walk(&key, depth + 1)?;
                charge_walk(&value.get_item(&key)?, depth + 1)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// As charge_walk, and refuses namespaces and macros inside: they could form a cycle, which reference counting never frees.
pub fn charge_walk_plain(value: &Value, depth: usize) -> Result<(), Error> {
    if let Some(object) = value.as_object() {
        let name = object.type_name();
        if name.ends_with("::Namespace") || name.ends_with("::Macro") || name.ends_with("::Closure") || name.ends_with("::Loop") {
            return Err(Error::new(ErrorKind::InvalidOperation, "a namespace attribute cannot hold a namespace, macro or loop"));
        }
    }
    if depth > DEPTH_MAX {
        return Err(too_deep());
    }
    charge(NODE_BYTES)?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                charge_walk_plain(&item, depth + 1)?;
            }
        }
        ValueKind::Map => {
            for key in value.try_iter()? {
                charge_walk_plain(&value.get_item(&key)?, depth + 1)?;
            }
        }
        _ => {}
    }
    Ok(())
}
