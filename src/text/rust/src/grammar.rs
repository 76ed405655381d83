//! Grammars that generated text must follow: llguidance over the tokens of one vocabulary. A matcher says which tokens may come next
//! and takes the one that came.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, INVALID_TOKEN};
use llguidance::{Matcher, ParserFactory};
use serde_json::{json, Map, Value};

use crate::template::Failure;

/// With shoal_rust.h.
const TEXT_BYTES_MAX: usize = 256 * 1024;
/// What people write by hand. A Lark grammar can take far more time for each of its bytes than a schema.
const HAND_BYTES_MAX: usize = 16 * 1024;
/// The trie's own bound is 1024; longer tokens are runs of spaces and the like.
const TOKEN_BYTES_MAX: usize = 512;
/// Between two parts of JSON text: a space, or a line's end and an indent. Without a bound a model may write white space for ever.
const JSON_WHITESPACE: &str = r"\x20|\r?\n[\x20\x09]{0,32}";
/// llguidance walks grammars by recursion. Brackets inside each other, strings and patterns not told apart.
const NESTING_MAX: usize = 1000;
/// Patterns that one text may have to match at once: one step of thirty takes all memory, before llguidance counts it.
const AND_MAX: usize = 8;

/// How llguidance says that no token is allowed.
const NO_TOKEN: &str = "NoExtensionBias";

const MAX_LEXER_STATES: usize = 16_000; // 1 to 2 KB each
const MAX_GRAMMAR_SIZE: usize = 250_000; // symbols in all rules
const INITIAL_LEXER_FUEL: u64 = 500_000; // about 10 ms
const STEP_LEXER_FUEL: u64 = 200_000; // about 15 ms
const STEP_ITEMS_MAX: usize = 50_000; // about 3 ms

#[derive(Clone, Copy)]
pub enum Kind {
    JsonSchema,
    JsonObject,
    Lark,
    Regex,
}

pub struct Vocabulary {
    factory: ParserFactory,
}

pub struct Grammar {
    matcher: Matcher,
}

/// What follows the tokens so far.
pub enum Next {
    Tokens,
    Nothing,
}

impl Vocabulary {
    /// pieces: the bytes of each token; an empty one is never allowed.
    pub fn new(pieces: &[&[u8]], ends: &[u32]) -> Result<Vocabulary, Failure> {
        let n = u32::try_from(pieces.len()).map_err(|e| Failure::Format(e.to_string()))?;
        if n == 0 || ends.iter().any(|&id| id >= n) {
            return Err(Failure::Format(format!("a vocabulary of {n} tokens does not have its end tokens")));
        }
        // The trie's marker of special tokens is a byte that no UTF-8 text has.
        let usable = |p: &[u8]| p.len() <= TOKEN_BYTES_MAX && p.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER);
        let mut words: Vec<Vec<u8>> = pieces.iter().map(|p| if usable(p) { p.to_vec() } else { Vec::new() }).collect();
        for &id in ends {
            words[id as usize].clear();
        }
        let mut trie = TokTrie::from(&TokRxInfo::new(n, INVALID_TOKEN), &words);
        drop(words);
        if !ends.is_empty() {
            trie = trie.with_eos_tokens(ends);
        }
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices).map_err(|e| Failure::Format(e.to_string()))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.max_grammar_size = MAX_GRAMMAR_SIZE;
        limits.initial_lexer_fuel = INITIAL_LEXER_FUEL;
        limits.step_lexer_fuel = STEP_LEXER_FUEL;
        limits.step_max_items = STEP_ITEMS_MAX;
        // Such a lexeme is run over all tokens without a bound.
        limits.precompute_large_lexemes = false;
        limits.verbose_errors = false;
        Ok(Vocabulary { factory })
    }

    pub fn compile(&self, kind: Kind, text: &str) -> Result<Grammar, Failure> {
        let bytes_max = if matches!(kind, Kind::JsonSchema | Kind::JsonObject) { TEXT_BYTES_MAX } else { HAND_BYTES_MAX };
        if text.len() > bytes_max {
            return Err(Failure::Limit(format!("the grammar has {} bytes, more than {bytes_max}", text.len())));
        }
        let grammar = match kind {
            Kind::JsonSchema => TopLevelGrammar::from_json_schema(check_patterns(parse_schema(text)?)?),
            Kind::JsonObject => TopLevelGrammar::from_json_schema(with_options(object_of_anything())),
            Kind::Lark => TopLevelGrammar::from_lark(check_costs(text)?.to_owned()),
            Kind::Regex => TopLevelGrammar::from_regex(check_costs(text)?),
        };
        let matcher = Matcher::new(Ok(self.factory.create_parser(grammar).map_err(|e| failure(&e.to_string()))?));
        if let Some(text) = matcher.get_error() {
            return Err(failure(&text));
        }
        let mut grammar = Grammar { matcher };
        // What no text follows is the client's mistake, and is found here rather than at the first token.
        match grammar.mask(&mut [])? {
            Next::Nothing if !grammar.may_end() => Err(Failure::Format("no text follows the grammar".to_owned())),
            _ => Ok(grammar),
        }
    }
}

fn object_of_anything() -> Map<String, Value> {
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("object"));
    schema
}

/// "x-guidance" is llguidance's own key, and not for clients.
fn with_options(mut schema: Map<String, Value>) -> Value {
    schema.insert("x-guidance".to_owned(), json!({ "whitespace_pattern": JSON_WHITESPACE }));
    Value::Object(schema)
}

fn parse_schema(text: &str) -> Result<Value, Failure> {
    match serde_json::from_str(text).map_err(|e| Failure::Format(format!("the JSON schema is not JSON: {e}")))? {
        Value::Object(schema) => Ok(with_options(schema)),
        Value::Bool(true) => Ok(with_options(Map::new())),
        Value::Bool(false) => Err(Failure::Format("the JSON schema is false: it allows nothing".to_owned())),
        _ => Err(Failure::Format("the JSON schema must be an object".to_owned())),
    }
}

/// How many patterns a schema has, and whether it puts demands of several places on one value.
fn count_patterns(value: &Value, n_patterns: &mut usize, combines: &mut bool) {
    match value {
        Value::Object(map) => {
            let mut n_choices = 0;
            let mut n_demands = 0;
            for (key, inner) in map {
                match key.as_str() {
                    "allOf" => *combines = true,
                    "anyOf" | "oneOf" | "$ref" => n_choices += 1,
                    "pattern" | "format" => n_demands += 1,
                    "properties" | "patternProperties" | "additionalProperties" | "items" | "prefixItems" => n_demands += 1,
                    _ => {}
                }
                *n_patterns += match (key.as_str(), inner) {
                    ("pattern" | "format", Value::String(_)) => 1,
                    ("patternProperties", Value::Object(patterns)) => patterns.len(),
                    _ => 0,
                };
                count_patterns(inner, n_patterns, combines);
            }
            *combines |= n_choices > 1 || (n_choices == 1 && n_demands > 0);
        }
        Value::Array(list) => list.iter().for_each(|inner| count_patterns(inner, n_patterns, combines)),
        _ => {}
    }
}

fn check_patterns(schema: Value) -> Result<Value, Failure> {
    let (mut n_patterns, mut combines) = (0, false);
    count_patterns(&schema, &mut n_patterns, &mut combines);
    if combines && n_patterns > AND_MAX {
        let text = format!("the JSON schema has {n_patterns} patterns and formats and combines schemas (allOf and the like): at most {AND_MAX}");
        return Err(Failure::Limit(text));
    }
    Ok(schema)
}

fn check_costs(text: &str) -> Result<&str, Failure> {
    let (mut depth, mut deepest) = (0usize, 0usize);
    for b in text.bytes() {
        match b {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if text.bytes().filter(|&b| b == b'&').count() > AND_MAX {
        return Err(Failure::Limit(format!("the grammar has more than {AND_MAX} \"&\"")));
    }
    if deepest > NESTING_MAX {
        return Err(Failure::Limit(format!("the grammar has more than {NESTING_MAX} brackets inside each other")));
    }
    Ok(text)
}

/// llguidance has no codes for its errors, but its limits are named in the text.
fn failure(text: &str) -> Failure {
    let text = text.split("\n<").next().unwrap_or(text).trim_end().replace('\n', " ");
    if let Some(panic) = text.strip_prefix("panic: ") {
        return Failure::Panic(panic.to_owned());
    }
    let lower = text.to_lowercase();
    let is_limit = ["fuel", "too many", "too large", "too complex", "too big", "limit"].iter().any(|word| lower.contains(word));
    if is_limit {
        Failure::Limit(text)
    } else {
        Failure::Format(text)
    }
}

impl Grammar {
    /// Sets the bits of the tokens that may come next, token i in byte i / 8; the others are cleared.
    pub fn mask(&mut self, bits: &mut [u8]) -> Result<Next, Failure> {
        bits.fill(0);
        if self.matcher.is_stopped() && self.matcher.stop_reason().is_ok() {
            return Ok(Next::Nothing);
        }
        let caught = catch_unwind(AssertUnwindSafe(|| self.matcher.compute_mask()));
        let mask = match caught {
            Err(_) => return Err(Failure::Panic("while the allowed tokens were computed".to_owned())),
            // What cannot go on and may not end: no text over this vocabulary fits. The reason is only in the text.
            Ok(Err(e)) if e.to_string().starts_with(NO_TOKEN) => return Ok(Next::Nothing),
            Ok(Err(e)) => return Err(failure(&e.to_string())),
            Ok(Ok(mask)) => mask,
        };
        for (to, from) in bits.iter_mut().zip(mask.as_slice().iter().flat_map(|word| word.to_le_bytes())) {
            *to = from;
        }
        Ok(Next::Tokens)
    }

    pub fn accept(&mut self, token: u32) -> Result<(), Failure> {
        let caught = catch_unwind(AssertUnwindSafe(|| self.matcher.consume_token(token)));
        match caught {
            Err(_) => Err(Failure::Panic("while a token was taken".to_owned())),
            Ok(Err(e)) => Err(failure(&e.to_string())),
            Ok(Ok(())) => Ok(()),
        }
    }

    /// Whether the text so far is complete.
    pub fn may_end(&mut self) -> bool {
        if self.matcher.is_stopped() {
            return self.matcher.stop_reason().is_ok();
        }
        catch_unwind(AssertUnwindSafe(|| self.matcher.is_accepting())).is_ok_and(|r| r.unwrap_or(false))
    }
}
