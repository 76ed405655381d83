//! The C border of shoal's chat templates and grammars; shoal_rust.h is its contract.

mod budget;
mod filters;
mod format;
mod grammar;
mod job;
mod methods;
mod ops;
mod pystr;
mod rewrite;
mod template;

use std::ffi::{c_char, c_void};
use std::slice;

use grammar::{Grammar, Kind, Next, Vocabulary};
use template::{Failure, Template};

const OK: i32 = 0;
const FORMAT: i32 = 1;
const LIMIT: i32 = 2;
const REFUSED: i32 = 3;
const INTERNAL: i32 = 4;
const NOTHING: i32 = 5;

/// Copies text with a NUL, cut at a character's border.
///
/// # Safety
/// message points to message_bytes writable bytes.
unsafe fn say(text: &str, message: *mut c_char, message_bytes: usize) {
    let Some(room) = message_bytes.checked_sub(1) else { return };
    let mut n = text.len().min(room);
    while !text.is_char_boundary(n) {
        n -= 1;
    }
    std::ptr::copy_nonoverlapping(text.as_ptr().cast(), message, n);
    *message.add(n) = 0;
}

/// # Safety
/// data points to len readable bytes, or len is 0.
unsafe fn utf8<'a>(data: *const c_char, len: usize, what: &str) -> Result<&'a str, Failure> {
    let bytes = if len == 0 { &[] } else { slice::from_raw_parts(data.cast::<u8>(), len) };
    std::str::from_utf8(bytes).map_err(|e| Failure::Format(format!("{what} is not UTF-8 at byte {}", e.valid_up_to())))
}

/// # Safety
/// As say().
unsafe fn report(failure: Option<Failure>, message: *mut c_char, message_bytes: usize) -> i32 {
    let (status, text) = match failure {
        Some(Failure::Format(text)) => (FORMAT, text),
        Some(Failure::Limit(text)) => (LIMIT, text),
        Some(Failure::Refused(text)) => (REFUSED, text),
        Some(Failure::Panic(text)) => (INTERNAL, format!("the grammar engine failed: {text}")),
        None => (INTERNAL, "the library for templates and grammars failed, or no thread could be started".to_owned()),
    };
    say(&text, message, message_bytes);
    status
}

/// # Safety
/// See shoal_rust.h.
#[no_mangle]
pub unsafe extern "C" fn shoal_rust_template_new(
    source: *const c_char,
    len: usize,
    ret_template: *mut *mut Template,
    message: *mut c_char,
    message_bytes: usize,
) -> i32 {
    let made = match utf8(source, len, "the chat template") {
        Ok(source) => job::run(|| Template::new(source)),
        Err(failure) => Some(Err(failure)),
    };
    match made {
        Some(Ok(template)) => {
            *ret_template = Box::into_raw(Box::new(template));
            OK
        }
        Some(Err(failure)) => report(Some(failure), message, message_bytes),
        None => report(None, message, message_bytes),
    }
}

/// # Safety
/// See shoal_rust.h.
#[no_mangle]
pub unsafe extern "C" fn shoal_rust_template_free(template: *mut Template) {
    if !template.is_null() {
        drop(Box::from_raw(template));
    }
}

/// # Safety
/// See shoal_rust.h.
#[no_mangle]
pub unsafe extern "C" fn shoal_rust_template_render(
    template: *const Template,
    context: *const c_char,
    len: usize,
    now_s: u64,
    max_bytes: usize,
    write: extern "C" fn(*mut c_void, *const c_char, usize),
    arg: *mut c_void,
    message: *mut c_char,
    message_bytes: usize,
) -> i32 {
    let template = &*template;
    let rendered = match utf8(context, len, "the template's context") {
        Ok(context) => job::run(|| template.render(context, now_s, max_bytes)),
        Err(failure) => Some(Err(failure)),
    };
    match rendered {
        Some(Ok(text)) => {
            write(arg, text.as_ptr().cast(), text.len());
            OK
        }
        Some(Err(failure)) => report(Some(failure), message, message_bytes),
        None => report(None, message, message_bytes),
    }
}

/// # Safety
/// See shoal_rust.h.
#[no_mangle]
pub unsafe extern "C" fn shoal_rust_vocab_new(
    pieces: *const u8,
    starts: *const u32,
    n_vocab: u32,
    ends: *const u32,
    n_ends: u32,
    ret_vocab: *mut *mut Vocabulary,
    message: *mut c_char,
    message_bytes: usize,
) -> i32 {
    let starts = slice::from_raw_parts(starts, n_vocab as usize + 1);
    let bytes = slice::from_raw_parts(pieces, starts[n_vocab as usize] as usize);
    let ends = if n_ends == 0 { &[] } else { slice::from_raw_parts(ends, n_ends as usize) };
    let made = job::run(|| {
        let words: Vec<&[u8]> = starts.windows(2).map(|w| bytes.get(w[0] as usize..w[1] as usize).unwrap_or(&[])).collect();
        Vocabulary::new(&words, ends)
    });
    match made {
        Some(Ok(vocab)) => {
            *ret_vocab = Box::into_raw(Box::new(vocab));
            OK
        }
        Some(Err(failure)) => report(Some(failure), message, message_bytes),
        None => report(None, message, message_bytes),
    }
}

/// # Safety
/// See shoal_rust.h.
#[no_mangle]
pub unsafe extern "C" fn shoal_rust_vocab_free(vocab: *mut Vocabulary) {
    if !vocab.is_null() {
        drop(Box::from_raw(vocab));
    }
}

/// # Safety
/// See shoal_rust.h.
#[no_mangle]
pub unsafe extern "C" fn shoal_rust_grammar_new(
    vocab: *const Vocabulary,
    kind: u32,
    text: *const c_char,
    len: usize,
    ret_grammar: *mut *mut Grammar,
    message: *mut c_char,
    message_bytes: usize,
) -> i32 {
    let vocab = &*vocab;
    let kind = match kind {
        0 => Kind::JsonSchema,
        1 => Kind::JsonObject,
        2 => Kind::Lark,
        3 => Kind::Regex,
        _ => return report(Some(Failure::Format(format!("grammar kind {kind} is unknown"))), message, message_bytes),
    };
    let made = match utf8(text, len, "the grammar") {
        Ok(text) => job::run(|| vocab.compile(kind, text)),
        Err(failure) => Some(Err(failure)),
    };
    match made {
        Some(Ok(grammar)) => {
            *ret_grammar = Box::into_raw(Box::new(grammar));
            OK
        }
        Some(Err(failure)) => report(Some(failure), message, message_bytes),
        None => report(None, message, message_bytes),
    }
}

/// # Safety
/// See shoal_rust.h.
#[no_mangle]
pub unsafe extern "C" fn shoal_rust_grammar_free(grammar: *mut Grammar) {
    if !grammar.is_null() {
        drop(Box::from_raw(grammar));
    }
}

/// # Safety
/// See shoal_rust.h.
#[no_mangle]
pub unsafe extern "C" fn shoal_rust_grammar_mask(
    grammar: *mut Grammar,
    bits: *mut u8,
    n_bytes: usize,
    message: *mut c_char,
    message_bytes: usize,
) -> i32 {
    match (*grammar).mask(slice::from_raw_parts_mut(bits, n_bytes)) {
        Ok(Next::Tokens) => OK,
        Ok(Next::Nothing) => NOTHING,
        Err(failure) => report(Some(failure), message, message_bytes),
    }
}

/// # Safety
/// See shoal_rust.h.
#[no_mangle]
pub unsafe extern "C" fn shoal_rust_grammar_accept(
    grammar: *mut Grammar,
    token: u32,
    message: *mut c_char,
    message_bytes: usize,
) -> i32 {
    match (*grammar).accept(token) {
        Ok(()) => OK,
        Err(failure) => report(Some(failure), message, message_bytes),
    }
}

/// # Safety
/// See shoal_rust.h.
#[no_mangle]
pub unsafe extern "C" fn shoal_rust_grammar_may_end(grammar: *mut Grammar) -> bool {
    (*grammar).may_end()
}
