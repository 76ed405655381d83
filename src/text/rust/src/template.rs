//! A compiled chat template: the environment of Hugging Face's transformers, and the rendering.

use std::collections::BTreeMap;
use std::ptr::NonNull;

use minijinja::machinery::{make_string_output, parse, CodeGenerator, Instructions, Vm, WhitespaceConfig};
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};

use crate::budget::{self, Verdict};
use crate::filters;
use crate::pystr;
use crate::rewrite;

/// The largest real template has about 100 KB. With shoal_rust.h.
const SOURCE_BYTES_MAX: usize = 256 * 1024;

pub enum Failure {
    Format(String),
    Limit(String),
    Refused(String),
    Panic(String),
}

/// Text that the instructions point into. Freed after them: fields are dropped in the order of their declaration.
struct Source(NonNull<str>);

impl Drop for Source {
    fn drop(&mut self) {
        // SAFETY: made by Box::leak in Template::new, and everything that points into it is gone.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

// SAFETY: an owned, immutable string.
unsafe impl Send for Source {}
// SAFETY: as above.
unsafe impl Sync for Source {}

pub struct Template {
    instructions: Instructions<'static>,
    env: Environment<'static>,
    _source: Source,
}

impl Template {
    pub fn new(source: &str) -> Result<Template, Failure> {
        if source.len() > SOURCE_BYTES_MAX {
            let text = format!("the chat template has {} bytes, more than {SOURCE_BYTES_MAX}", source.len());
            return Err(Failure::Limit(text));
        }
        budget::begin(0, 0);
        let text: &'static str = Box::leak(without_generation_tags(source).into_boxed_str());
        let source = Source(NonNull::from(text));
        let whitespace = WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };
        let tree = parse(text, "template", Default::default(), whitespace).map_err(|e| failure(&e))?;
        let tree = rewrite::stmt(&tree).map_err(|e| failure(&e))?;
        let mut generator = CodeGenerator::new("template", text);
        generator.compile_stmt(&tree);
        let (instructions, _) = generator.finish();
        Ok(Template { instructions, env: environment(), _source: source })
    }

    pub fn render(&self, context: &str, now_s: u64, max_bytes: usize) -> Result<String, Failure> {
        let context: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(context).map_err(|e| Failure::Format(format!("the template's context: {e}")))?;
        budget::begin(max_bytes, now_s);
        let root = Value::from_serialize(&context);
        drop(context);
        let mut text = String::new();
        let blocks = BTreeMap::new();
        let mut output = make_string_output(&mut text);
        let done = Vm::new(&self.env).eval(&self.instructions, root, &blocks, &mut output, AutoEscape::None);
        match done {
            Ok(_) => {}
            Err(e) => return Err(failure(&e)),
        }
        Ok(text)
    }
}

fn environment() -> Environment<'static> {
    let mut env = Environment::empty();
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_recursion_limit(budget::NESTING_MAX);
    env.set_fuel(Some(budget::STEPS_MAX));
    env.set_formatter(|out, _, value| {
        let write = |out: &mut minijinja::Output, s: &str| {
            budget::charge_output(s.len())?;
            out.write_str(s).map_err(Error::from)
        };
        match value.as_str() {
            Some(s) => write(out, s),
            None => write(out, &pystr::str(value)?),
        }
    });
    filters::install(&mut env);
    env
}

fn failure(e: &Error) -> Failure {
    match budget::take_verdict() {
        Some(Verdict::Limit(text)) => return Failure::Limit(text),
        Some(Verdict::Refused(text)) => return Failure::Refused(text),
        None => {}
    }
    if e.kind() == ErrorKind::OutOfFuel {
        return Failure::Limit(format!("the chat template takes more than {} steps", budget::STEPS_MAX));
    }
    let detail = e.detail().map_or_else(|| e.kind().to_string(), |detail| format!("{}: {detail}", e.kind()));
    let text = match e.line() {
        Some(line) => format!("chat template line {line}: {detail}"),
        None => format!("chat template: {detail}"),
    };
    if detail.ends_with("recursion limit exceeded") || detail.ends_with("range has too many elements") {
        return Failure::Limit(text);
    }
    Failure::Format(text)
}

/// transformers adds `{% generation %}`, which marks what the assistant says and prints it unchanged. minijinja does not know it;
/// `{% with %}` is a block with a scope of its own, as this one is.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let inner = tag.get(2..end.saturating_sub(2).max(2)).unwrap_or("");
        let word = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        if word == "generation" || word == "endgeneration" {
            let new = if word == "generation" { "with" } else { "endwith" };
            out.push_str(&tag[..end].replace(word, new));
            rest = &tag[end..];
        } else {
            out.push_str("{%");
            rest = &tag[2..];
        }
    }
    out.push_str(rest);
    out
}
