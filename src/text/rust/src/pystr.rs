//! Text as Python writes it: str(), repr() and json.dumps().

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use crate::budget;

/// A string that pays for each byte it takes.
pub struct Text(pub String);

impl Text {
    pub fn push(&mut self, s: &str) -> Result<(), Error> {
        budget::charge(s.len())?;
        self.0.push_str(s);
        Ok(())
    }
}

/// repr(float): the fewest digits that read back the same, an exponent below 1e-4 and from 1e16.
pub fn float(v: f64) -> String {
    if v.is_nan() {
        return "nan".into();
    }
    if v.is_infinite() {
        return if v > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{v:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if v == 0.0 || (-4..16).contains(&exponent) {
        let plain = format!("{v}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

pub fn as_float(value: &Value) -> Option<f64> {
    if value.kind() == ValueKind::Number && !value.is_integer() {
        f64::try_from(value.clone()).ok()
    } else {
        None
    }
}

/// What str(value), and so `{{ value }}`, gives.
pub fn str(value: &Value) -> Result<String, Error> {
    let mut out = Text(String::new());
    write_str(value, &mut out)?;
    Ok(out.0)
}

pub fn write_str(value: &Value, out: &mut Text) -> Result<(), Error> {
    match value.as_str() {
        Some(s) => out.push(s),
        None if value.is_undefined() => Ok(()),
        None => write_repr(value, out, 0),
    }
}

/// What Jinja2's escape gives.
pub fn write_escaped(text: &str, out: &mut Text) -> Result<(), Error> {
    let mut rest = text;
    while let Some(at) = rest.find(['&', '<', '>', '"', '\'']) {
        out.push(&rest[..at])?;
        out.push(match rest.as_bytes()[at] {
            b'&' => "&amp;",
            b'<' => "&lt;",
            b'>' => "&gt;",
            b'"' => "&#34;",
            _ => "&#39;",
        })?;
        rest = &rest[at + 1..];
    }
    out.push(rest)
}

fn write_repr_string(s: &str, out: &mut Text) -> Result<(), Error> {
    let quote = if s.contains('\'') && !s.contains('"') { '"' } else { '\'' };
    let mut text = String::with_capacity(s.len() + 2);
    text.push(quote);
    for c in s.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c if c == quote => {
                text.push('\\');
                text.push(c);
            }
            c if (c as u32) < 0x20 || c as u32 == 0x7f => text.push_str(&format!("\\x{:02x}", c as u32)),
            c if (0x80..0xa1).contains(&(c as u32)) || c as u32 == 0xad => text.push_str(&format!("\\x{:02x}", c as u32)),
            '\u{2028}' | '\u{2029}' | '\u{200b}'..='\u{200f}' | '\u{feff}' => text.push_str(&format!("\\u{:04x}", c as u32)),
            c => text.push(c),
        }
    }
    text.push(quote);
    out.push(&text)
}

fn write_repr(value: &Value, out: &mut Text, depth: usize) -> Result<(), Error> {
    if depth > budget::DEPTH_MAX {
        return Err(budget::too_deep());
    }
    if let Some(s) = value.as_str() {
        return write_repr_string(s, out);
    }
    if let Some(v) = as_float(value) {
        return out.push(&float(v));
    }
    match value.kind() {
        ValueKind::Undefined => out.push("Undefined"),
        ValueKind::None => out.push("None"),
        ValueKind::Bool => out.push(if value.is_true() { "True" } else { "False" }),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push("[")?;
            for (i, item) in value.try_iter()?.enumerate() {
                if i > 0 {
                    out.push(", ")?;
                }
                write_repr(&item, out, depth + 1)?;
            }
            out.push("]")
        }
        ValueKind::Map => {
            out.push("{")?;
            for (i, key) in value.try_iter()?.enumerate() {
                if i > 0 {
                    out.push(", ")?;
                }
                write_repr(&key, out, depth + 1)?;
                out.push(": ")?;
                write_repr(&value.get_item(&key)?, out, depth + 1)?;
            }
            out.push("}")
        }
        ValueKind::Number => out.push(&value.to_string()),
        _ => out.push("<object>"),
    }
}

/// How json.dumps was asked to write.
pub struct JsonStyle {
    pub ensure_ascii: bool,
    pub sort_keys: bool,
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
}

fn write_json_string(s: &str, style: &JsonStyle, out: &mut Text) -> Result<(), Error> {
    let mut text = String::with_capacity(s.len() + 2);
    text.push('"');
    for c in s.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            c if (c as u32) < 0x20 => text.push_str(&format!("\\u{:04x}", c as u32)),
            c if style.ensure_ascii && (c as u32) > 0x7e => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    text.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => text.push(c),
        }
    }
    text.push('"');
    out.push(&text)
}

fn break_line(style: &JsonStyle, level: usize, out: &mut Text) -> Result<(), Error> {
    if let Some(indent) = &style.indent {
        out.push("\n")?;
        for _ in 0..level {
            out.push(indent)?;
        }
    }
    Ok(())
}

/// Keys of a JSON object are text: json.dumps turns numbers, booleans and None into it.
fn json_key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or("").to_owned()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number => str(key),
        kind => Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: a key cannot be of type {kind}"))),
    }
}

pub fn write_json(value: &Value, style: &JsonStyle, out: &mut Text, depth: usize) -> Result<(), Error> {
    if depth > budget::DEPTH_MAX {
        return Err(budget::too_deep());
    }
    if let Some(s) = value.as_str() {
        return write_json_string(s, style, out);
    }
    if let Some(v) = as_float(value) {
        return out.push(match v {
            v if v.is_nan() => "NaN",
            v if v == f64::INFINITY => "Infinity",
            v if v == f64::NEG_INFINITY => "-Infinity",
            _ => return out.push(&float(v)),
        });
    }
    match value.kind() {
        ValueKind::None => out.push("null"),
        ValueKind::Bool => out.push(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push(&value.to_string()),
        ValueKind::Seq | ValueKind::Iterable => {
            let mut n = 0;
            out.push("[")?;
            for item in value.try_iter()? {
                if n > 0 {
                    out.push(&style.item_separator)?;
                }
                n += 1;
                break_line(style, depth + 1, out)?;
                write_json(&item, style, out, depth + 1)?;
            }
            if n > 0 {
                break_line(style, depth, out)?;
            }
            out.push("]")
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            out.push("{")?;
            for (i, key) in keys.iter().enumerate() {
                if i > 0 {
                    out.push(&style.item_separator)?;
                }
                break_line(style, depth + 1, out)?;
                write_json_string(&json_key(key)?, style, out)?;
                out.push(&style.key_separator)?;
                write_json(&value.get_item(key)?, style, out, depth + 1)?;
            }
            if !keys.is_empty() {
                break_line(style, depth, out)?;
            }
            out.push("}")
        }
        kind => Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: a value of type {kind} is not JSON"))),
    }
}
