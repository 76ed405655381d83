//! The methods of Python's str, dict and list that a sandboxed template may call. Methods that change a value are refused, as
//! transformers' immutable sandbox refuses them.

use minijinja::value::{from_args, Kwargs, Rest, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use crate::budget;
use crate::format;
use crate::ops::{self, fail, Op};
use crate::pystr::Text;

/// Internal filter name (`$` and the method's name) and the method.
pub const METHODS: &[(&str, Op)] = &[
    ("$capitalize", |s, v, a| text(s, "capitalize", v, a, capitalize)),
    ("$casefold", |s, v, a| text(s, "casefold", v, a, |x| x.to_lowercase())),
    ("$center", |s, v, a| pad(s, "center", v, a)),
    ("$copy", |s, v, a| if is_container(v) { Ok(v.clone()) } else { other(s, "copy", v, a) }),
    ("$count", count),
    ("$endswith", |s, v, a| affix(s, "endswith", v, a, |x, y| x.ends_with(y))),
    ("$find", |s, v, a| find(s, "find", v, a)),
    ("$format", |s, v, a| v.as_str().map_or_else(|| other(s, "format", v, a), |x| format::braces(s, x, a))),
    ("$get", get),
    ("$index", |s, v, a| find(s, "index", v, a)),
    ("$isalnum", |s, v, a| all(s, "isalnum", v, a, char::is_alphanumeric)),
    ("$isalpha", |s, v, a| all(s, "isalpha", v, a, char::is_alphabetic)),
    ("$isascii", |s, v, a| v.as_str().map_or_else(|| other(s, "isascii", v, a), |x| Ok(Value::from(x.is_ascii())))),
    ("$isdecimal", |s, v, a| all(s, "isdecimal", v, a, |c| c.is_ascii_digit() || (!c.is_ascii() && c.is_numeric()))),
    ("$isdigit", |s, v, a| all(s, "isdigit", v, a, |c| c.is_ascii_digit() || (!c.is_ascii() && c.is_numeric()))),
    ("$islower", |s, v, a| cased(s, "islower", v, a, char::is_uppercase, char::is_lowercase)),
    ("$isnumeric", |s, v, a| all(s, "isnumeric", v, a, char::is_numeric)),
    ("$isspace", |s, v, a| all(s, "isspace", v, a, is_space)),
    ("$isupper", |s, v, a| cased(s, "isupper", v, a, char::is_lowercase, char::is_uppercase)),
    ("$items", |s, v, a| dict(s, "items", v, a, |k, v| Value::from(vec![k, v]))),
    ("$join", |s, v, a| v.as_str().map_or_else(|| other(s, "join", v, a), |x| join(x, a))),
    ("$keys", |s, v, a| dict(s, "keys", v, a, |k, _| k)),
    ("$ljust", |s, v, a| pad(s, "ljust", v, a)),
    ("$lower", |s, v, a| text(s, "lower", v, a, |x| x.to_lowercase())),
    ("$lstrip", |s, v, a| strip(s, "lstrip", v, a, true, false)),
    ("$partition", |s, v, a| partition(s, "partition", v, a)),
    ("$removeprefix", |s, v, a| remove(s, "removeprefix", v, a)),
    ("$removesuffix", |s, v, a| remove(s, "removesuffix", v, a)),
    ("$replace", |s, v, a| v.as_str().map_or_else(|| other(s, "replace", v, a), |x| replace(x, a))),
    ("$rfind", |s, v, a| find(s, "rfind", v, a)),
    ("$rjust", |s, v, a| pad(s, "rjust", v, a)),
    ("$rpartition", |s, v, a| partition(s, "rpartition", v, a)),
    ("$rsplit", |s, v, a| v.as_str().map_or_else(|| other(s, "rsplit", v, a), |x| split(x, a, true))),
    ("$rstrip", |s, v, a| strip(s, "rstrip", v, a, false, true)),
    ("$split", |s, v, a| v.as_str().map_or_else(|| other(s, "split", v, a), |x| split(x, a, false))),
    ("$splitlines", |s, v, a| v.as_str().map_or_else(|| other(s, "splitlines", v, a), |x| splitlines(x, a))),
    ("$startswith", |s, v, a| affix(s, "startswith", v, a, |x, y| x.starts_with(y))),
    ("$strip", |s, v, a| strip(s, "strip", v, a, true, true)),
    ("$swapcase", |s, v, a| text(s, "swapcase", v, a, swapcase)),
    ("$title", |s, v, a| text(s, "title", v, a, title)),
    ("$upper", |s, v, a| text(s, "upper", v, a, |x| x.to_uppercase())),
    ("$values", |s, v, a| dict(s, "values", v, a, |_, v| v)),
    ("$zfill", |s, v, a| pad(s, "zfill", v, a)),
];

fn is_container(v: &Value) -> bool {
    matches!(v.kind(), ValueKind::Seq | ValueKind::Map)
}

/// Not one of our types: a method of minijinja's objects, or an attribute that holds something callable.
fn other(state: &State, name: &str, v: &Value, args: &[Value]) -> Result<Value, Error> {
    if v.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, format!("cannot call {name}() of an undefined value")));
    }
    v.call_method(state, name, args)
}

pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn text(state: &State, name: &str, v: &Value, args: &[Value], f: fn(&str) -> String) -> Result<Value, Error> {
    let Some(s) = v.as_str() else { return other(state, name, v, args) };
    let () = from_args(args)?;
    budget::charge(s.len() * 3)?;
    Ok(Value::from(f(s)))
}

pub fn capitalize(s: &str) -> String {
    let mut chars = s.chars();
    let first: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
    first + &chars.as_str().to_lowercase()
}

/// Python's str.title(): every run of letters starts a word.
fn title(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut in_word = false;
    for c in s.chars() {
        if in_word {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        in_word = c.is_alphabetic();
    }
    out
}

fn swapcase(s: &str) -> String {
    let swap = |c: char| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
    s.chars().map(swap).collect()
}

fn all(state: &State, name: &str, v: &Value, args: &[Value], f: fn(char) -> bool) -> Result<Value, Error> {
    let Some(s) = v.as_str() else { return other(state, name, v, args) };
    budget::charge(s.len())?;
    Ok(Value::from(!s.is_empty() && s.chars().all(f)))
}

fn cased(state: &State, name: &str, v: &Value, args: &[Value], none: fn(char) -> bool, some: fn(char) -> bool) -> Result<Value, Error> {
    let Some(s) = v.as_str() else { return other(state, name, v, args) };
    budget::charge(s.len())?;
    Ok(Value::from(!s.chars().any(none) && s.chars().any(some)))
}

pub fn trimmed<'a>(s: &'a str, chars: Option<&str>, left: bool, right: bool) -> Result<&'a str, Error> {
    budget::charge(s.len().saturating_mul(chars.map_or(1, str::len).max(1)) / 4)?;
    let drop = |c: char| chars.map_or_else(|| is_space(c), |set| set.contains(c));
    let s = if left { s.trim_start_matches(drop) } else { s };
    Ok(if right { s.trim_end_matches(drop) } else { s })
}

fn strip(state: &State, name: &str, v: &Value, args: &[Value], left: bool, right: bool) -> Result<Value, Error> {
    let Some(s) = v.as_str() else { return other(state, name, v, args) };
    let (chars,): (Option<&str>,) = from_args(args)?;
    trimmed(s, chars, left, right).map(Value::from)
}

fn affix(state: &State, name: &str, v: &Value, args: &[Value], f: fn(&str, &str) -> bool) -> Result<Value, Error> {
    let Some(s) = v.as_str() else { return other(state, name, v, args) };
    let (affix, start): (&Value, Option<i64>) = from_args(args)?;
    let start = start.unwrap_or(0);
    let skipped = if start < 0 { (s.chars().count() as i64 + start).max(0) } else { start };
    let s = s.char_indices().nth(skipped as usize).map_or("", |(at, _)| &s[at..]);
    if let Some(affix) = affix.as_str() {
        return Ok(Value::from(f(s, affix)));
    }
    for one in ops::items(affix)? {
        let one = one.as_str().ok_or_else(|| fail(format!("{name}() takes text or a list of texts")))?;
        if f(s, one) {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

fn find(state: &State, name: &str, v: &Value, args: &[Value]) -> Result<Value, Error> {
    let (what,): (&Value,) = from_args(args)?;
    if let (Some(s), Some(what)) = (v.as_str(), what.as_str()) {
        budget::charge(s.len())?;
        let found = if name == "rfind" { s.rfind(what) } else { s.find(what) };
        return match found {
            Some(at) => Ok(Value::from(s[..at].chars().count())),
            None if name == "index" => Err(fail("substring not found")),
            None => Ok(Value::from(-1)),
        };
    }
    if name == "index" && v.kind() == ValueKind::Seq {
        for (i, item) in v.try_iter()?.enumerate() {
            budget::charge(8)?;
            if ops::equal(&item, what)? {
                return Ok(Value::from(i));
            }
        }
        return Err(fail("the value is not in the list"));
    }
    other(state, name, v, args)
}

fn count(state: &State, v: &Value, args: &[Value]) -> Result<Value, Error> {
    let (what,): (&Value,) = from_args(args)?;
    if let (Some(s), Some(what)) = (v.as_str(), what.as_str()) {
        budget::charge(s.len())?;
        return Ok(Value::from(s.matches(what).count()));
    }
    if v.kind() != ValueKind::Seq {
        return other(state, "count", v, args);
    }
    let mut n = 0;
    for item in v.try_iter()? {
        budget::charge(8)?;
        n += usize::from(ops::equal(&item, what)?);
    }
    Ok(Value::from(n))
}

/// s.replace(old, new[, count]); the number of copies is known, and paid for, before they are made.
pub fn replace(s: &str, args: &[Value]) -> Result<Value, Error> {
    let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
    budget::charge(s.len())?;
    let n = s.matches(old).count().min(count.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX)));
    budget::charge(s.len().saturating_add(n.saturating_mul(new.len())))?;
    Ok(Value::from(s.replacen(old, new, n)))
}

fn join(separator: &str, args: &[Value]) -> Result<Value, Error> {
    let (list,): (&Value,) = from_args(args)?;
    let mut out = Text(String::new());
    for (i, item) in ops::items(list)?.iter().enumerate() {
        if i > 0 {
            out.push(separator)?;
        }
        out.push(item.as_str().ok_or_else(|| fail(format!("join(): item {i} is of type {}, not text", item.kind())))?)?;
    }
    Ok(Value::from(out.0))
}

fn split(s: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (separator, max, kwargs): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = match separator {
        Some(v) => v,
        None => kwargs.get::<Option<Value>>("sep")?.unwrap_or_default(),
    };
    let max = match max {
        Some(n) => n,
        None => kwargs.get::<Option<i64>>("maxsplit")?.unwrap_or(-1),
    };
    kwargs.assert_all_used()?;
    let parts_max = usize::try_from(max).map_or(usize::MAX, |n| n + 1);
    budget::charge(s.len().saturating_mul(24))?; // a list of single letters is much larger than the text
    let parts: Vec<&str> = match separator.as_str() {
        Some("") => return Err(fail("split(): empty separator")),
        Some(sep) if from_right => {
            let mut parts: Vec<&str> = s.rsplitn(parts_max, sep).collect();
            parts.reverse();
            parts
        }
        Some(sep) => s.splitn(parts_max, sep).collect(),
        None if !separator.is_none() && !separator.is_undefined() => return Err(fail("split(): the separator is not text")),
        None => split_spaces(s, parts_max, from_right),
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Only the near end is trimmed: with a limit, the last part keeps the spaces at the far end, as in Python.
fn split_spaces(s: &str, parts_max: usize, from_right: bool) -> Vec<&str> {
    let near = |s: &'_ str| if from_right { s.trim_end_matches(is_space).len() } else { s.trim_start_matches(is_space).len() };
    let keep = |s: &str, n: usize| if from_right { (0, n) } else { (s.len() - n, s.len()) };
    let mut parts = Vec::new();
    let (mut from, mut to) = keep(s, near(s));
    while from < to {
        let rest = &s[from..to];
        let cut = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = cut.filter(|_| parts.len() + 1 < parts_max) else {
            parts.push(rest);
            break;
        };
        let next = at + rest[at..].chars().next().map_or(1, char::len_utf8);
        let (part, left) = if from_right { (&rest[next..], &rest[..at]) } else { (&rest[..at], &rest[next..]) };
        parts.push(part);
        let n = near(left);
        (from, to) = if from_right { (from, from + n) } else { (to - n, to) };
    }
    if from_right {
        parts.reverse();
    }
    parts
}

fn splitlines(s: &str, args: &[Value]) -> Result<Value, Error> {
    let (keep, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
    let keep = match keep {
        Some(keep) => keep,
        None => kwargs.get::<Option<bool>>("keepends")?.unwrap_or(false),
    };
    budget::charge(s.len().saturating_mul(24))?;
    let is_end = |c: char| matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = s;
    while !rest.is_empty() {
        let Some(at) = rest.find(is_end) else {
            lines.push(Value::from(rest));
            break;
        };
        let width = if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(1, char::len_utf8) };
        lines.push(Value::from(&rest[..if keep { at + width } else { at }]));
        rest = &rest[at + width..];
    }
    Ok(Value::from(lines))
}

fn pad(state: &State, name: &str, v: &Value, args: &[Value]) -> Result<Value, Error> {
    let Some(s) = v.as_str() else { return other(state, name, v, args) };
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let fill = fill.unwrap_or(if name == "zfill" { "0" } else { " " });
    if fill.chars().count() != 1 {
        return Err(fail(format!("{name}(): the fill must be one character")));
    }
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(s.chars().count());
    budget::charge(missing.saturating_mul(fill.len()).saturating_add(s.len()))?;
    let left = match name {
        "ljust" => 0,
        "center" => missing / 2 + (missing & usize::try_from(width).unwrap_or(0) & 1),
        _ => missing,
    };
    let (sign, body) = if name == "zfill" && s.starts_with(['+', '-']) { s.split_at(1) } else { ("", s) };
    Ok(Value::from([sign, &fill.repeat(left), body, &fill.repeat(missing - left)].concat()))
}

fn partition(state: &State, name: &str, v: &Value, args: &[Value]) -> Result<Value, Error> {
    let Some(s) = v.as_str() else { return other(state, name, v, args) };
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(fail(format!("{name}(): empty separator")));
    }
    budget::charge(s.len() * 2)?;
    let from_right = name == "rpartition";
    let found = if from_right { s.rsplit_once(separator) } else { s.split_once(separator) };
    let parts = match found {
        Some((before, after)) => [before, separator, after],
        None if from_right => ["", "", s],
        None => [s, "", ""],
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

fn remove(state: &State, name: &str, v: &Value, args: &[Value]) -> Result<Value, Error> {
    let Some(s) = v.as_str() else { return other(state, name, v, args) };
    let (affix,): (&str,) = from_args(args)?;
    budget::charge(s.len())?;
    let rest = if name == "removeprefix" { s.strip_prefix(affix) } else { s.strip_suffix(affix) };
    Ok(Value::from(rest.unwrap_or(s)))
}

fn dict(state: &State, name: &str, v: &Value, args: &[Value], f: fn(Value, Value) -> Value) -> Result<Value, Error> {
    if v.kind() != ValueKind::Map {
        return other(state, name, v, args);
    }
    let () = from_args(args)?;
    let mut out = Vec::new();
    for key in v.try_iter()? {
        budget::charge(96)?;
        let item = v.get_item(&key)?;
        out.push(f(key, item));
    }
    Ok(Value::from(out))
}

fn get(state: &State, v: &Value, args: &[Value]) -> Result<Value, Error> {
    let Some(object) = v.as_object().filter(|_| v.kind() == ValueKind::Map) else {
        return other(state, "get", v, args);
    };
    let (key, default): (&Value, Rest<Value>) = from_args(args)?;
    budget::charge_walk(key, 0)?;
    Ok(object.get_value(key).unwrap_or_else(|| default.first().cloned().unwrap_or_else(|| Value::from(()))))
}
