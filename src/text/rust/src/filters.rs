//! The filters, tests and functions a template may use. Nothing is there that this file does not name: minijinja's own are taken only
//! where they cannot make much more than they get.

use minijinja::value::{from_args, Kwargs, Rest, Value, ValueKind};
use minijinja::{filters as mini, functions, tests, Environment, Error, ErrorKind, State};

use crate::budget;
use crate::format;
use crate::methods::{self, METHODS};
use crate::ops::{self, fail, Op, OPERATORS};
use crate::pystr::{self, JsonStyle, Text};

const FILTERS: &[(&str, Op)] = &[
    ("batch", batch),
    ("capitalize", |_, v, a| letters(v, a, methods::capitalize)),
    ("center", center),
    ("count", length),
    ("d", default),
    ("default", default),
    ("e", escape),
    ("escape", escape),
    ("float", float),
    ("forceescape", escape),
    ("format", |s, v, a| format::percent(s, &pystr::str(v)?, a)),
    ("indent", indent),
    ("int", int),
    ("join", join),
    ("last", |_, v, _| last(v)),
    ("first", |_, v, _| first(v)),
    ("length", length),
    ("list", |_, v, _| ops::items(v).map(Value::from)),
    ("items", items),
    ("lower", |_, v, a| letters(v, a, |s| s.to_lowercase())),
    ("replace", |_, v, a| replace(v, a)),
    ("reverse", |_, v, _| reverse(v)),
    ("round", round),
    ("safe", |_, v, _| pystr::str(v).map(Value::from_safe_string)),
    ("string", |_, v, _| pystr::str(v).map(Value::from)),
    ("sum", sum),
    ("title", |_, v, a| letters(v, a, title)),
    ("tojson", tojson),
    ("trim", trim),
    ("truncate", truncate),
    ("upper", |_, v, a| letters(v, a, |s| s.to_uppercase())),
    ("wordcount", |_, v, _| {
        pystr::str(v).map(|s| Value::from(s.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| !w.is_empty()).count()))
    }),
];

pub fn install(env: &mut Environment<'static>) {
    for &(name, f) in FILTERS.iter().chain(OPERATORS).chain(METHODS) {
        env.add_filter(name, move |state: &State, value: &Value, args: Rest<Value>| f(state, value, &args));
    }
    env.add_filter("abs", mini::abs);
    env.add_filter("attr", mini::attr);
    env.add_filter("dictsort", mini::dictsort);
    env.add_filter("groupby", mini::groupby);
    env.add_filter("map", mini::map);
    env.add_filter("max", mini::max);
    env.add_filter("min", mini::min);
    env.add_filter("reject", mini::reject);
    env.add_filter("rejectattr", mini::rejectattr);
    env.add_filter("select", mini::select);
    env.add_filter("selectattr", mini::selectattr);
    env.add_filter("sort", mini::sort);
    env.add_filter("unique", mini::unique);
    install_tests(env);
    env.add_function("range", functions::range);
    env.add_function("dict", functions::dict);
    env.add_function("namespace", functions::namespace);
    env.add_function("raise_exception", |message: &Value| -> Result<Value, Error> { Err(budget::refuse(pystr::str(message)?)) });
    env.add_function("strftime_now", |format: &str| format::strftime(format, budget::now_s()));
}

fn install_tests(env: &mut Environment<'static>) {
    env.add_test("boolean", tests::is_boolean);
    env.add_test("callable", |v: &Value| v.kind() == ValueKind::Plain);
    env.add_test("defined", tests::is_defined);
    env.add_test("divisibleby", tests::is_divisibleby);
    env.add_test("even", tests::is_even);
    env.add_test("false", tests::is_false);
    env.add_test("filter", tests::is_filter);
    env.add_test("float", tests::is_float);
    env.add_test("integer", |v: &Value| v.is_integer() && v.kind() == ValueKind::Number);
    // An undefined value has an (empty) iterator in Jinja2, None has not.
    env.add_test("iterable", |v: &Value| !v.is_none() && v.try_iter().is_ok());
    env.add_test("lower", |v: &Value| v.as_str().is_some_and(|s| !s.chars().any(char::is_uppercase) && s.chars().any(char::is_lowercase)));
    env.add_test("mapping", tests::is_mapping);
    env.add_test("none", tests::is_none);
    // bool is a number in Python.
    env.add_test("number", |v: &Value| matches!(v.kind(), ValueKind::Number | ValueKind::Bool));
    env.add_test("odd", tests::is_odd);
    env.add_test("sameas", tests::is_sameas);
    // Text and mappings have a length and items, which is all that Jinja2 asks.
    env.add_test("sequence", |v: &Value| {
        matches!(v.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Iterable | ValueKind::Undefined)
    });
    env.add_test("string", tests::is_string);
    env.add_test("test", tests::is_test);
    env.add_test("true", tests::is_true);
    env.add_test("undefined", tests::is_undefined);
    env.add_test("upper", |v: &Value| v.as_str().is_some_and(|s| !s.chars().any(char::is_lowercase) && s.chars().any(char::is_uppercase)));
    let comparisons: [(&[&str], &str); 7] = [
        (&["eq", "equalto", "=="], "$eq"),
        (&["ne", "!="], "$ne"),
        (&["lt", "lessthan", "<"], "$lt"),
        (&["le", "<="], "$le"),
        (&["gt", "greaterthan", ">"], "$gt"),
        (&["ge", ">="], "$ge"),
        (&["in"], "$in"),
    ];
    for (names, operator) in comparisons {
        let Some(&(_, f)) = OPERATORS.iter().find(|(name, _)| *name == operator) else { continue };
        for name in names {
            env.add_test(*name, move |state: &State, a: &Value, b: Value| f(state, a, &[b]).map(|v| v.is_true()));
        }
    }
}

/// The n-th argument of a filter, by place or by name.
fn argument(positional: &[Value], kwargs: &Kwargs, n: usize, name: &str) -> Result<Option<Value>, Error> {
    match positional.get(n) {
        Some(v) => Ok(Some(v.clone())),
        None if kwargs.has(name) => kwargs.get::<Value>(name).map(Some),
        None => Ok(None),
    }
}

fn arguments(args: &[Value], names: &[&str]) -> Result<Vec<Option<Value>>, Error> {
    let (positional, kwargs): (Rest<Value>, Kwargs) = match args.last() {
        Some(last) if last.is_kwargs() => (Rest(args[..args.len() - 1].to_vec()), Kwargs::try_from(last.clone())?),
        _ => (Rest(args.to_vec()), from_args::<(Kwargs,)>(&[])?.0),
    };
    if positional.len() > names.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let found = names.iter().enumerate().map(|(n, name)| argument(&positional, &kwargs, n, name));
    let found = found.collect::<Result<_, _>>()?;
    kwargs.assert_all_used()?;
    Ok(found)
}

fn size(v: &Option<Value>, absent: usize, what: &str) -> Result<usize, Error> {
    match v {
        None => Ok(absent),
        Some(v) => v.as_i64().map(|n| usize::try_from(n).unwrap_or(0)).ok_or_else(|| fail(format!("{what} must be a number"))),
    }
}

fn truth(v: &Option<Value>) -> bool {
    v.as_ref().is_some_and(Value::is_true)
}

/// Calls a method of Python's types (methods.rs).
fn method(state: &State, name: &str, v: &Value, args: &[Value]) -> Result<Value, Error> {
    match METHODS.iter().find(|(internal, _)| *internal == name) {
        Some((_, f)) => f(state, v, args),
        None => Err(fail(format!("no method {name}"))),
    }
}

fn center(state: &State, v: &Value, args: &[Value]) -> Result<Value, Error> {
    let width = arguments(args, &["width"])?.swap_remove(0).unwrap_or_else(|| Value::from(80));
    method(state, "$center", &Value::from(pystr::str(v)?), &[width])
}

fn letters(v: &Value, args: &[Value], f: fn(&str) -> String) -> Result<Value, Error> {
    let () = from_args(args)?;
    let s = pystr::str(v)?;
    budget::charge(s.len() * 3)?;
    Ok(Value::from(f(&s)))
}

/// Jinja2's own idea of a title: words begin after a space, a dash or an opening bracket.
fn title(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut at_start = true;
    for c in s.chars() {
        if at_start {
            out.extend(c.to_uppercase());
        } else {
            out.extend(c.to_lowercase());
        }
        at_start = c.is_whitespace() || matches!(c, '-' | '(' | '{' | '[' | '<');
    }
    out
}

fn default(_: &State, v: &Value, args: &[Value]) -> Result<Value, Error> {
    let found = arguments(args, &["default_value", "boolean"])?;
    if v.is_undefined() || (truth(&found[1]) && !v.is_true()) {
        return Ok(found[0].clone().unwrap_or_else(|| Value::from("")));
    }
    Ok(v.clone())
}

fn length(_: &State, v: &Value, _: &[Value]) -> Result<Value, Error> {
    if let Some(s) = v.as_str() {
        budget::charge(s.len())?;
        return Ok(Value::from(s.chars().count()));
    }
    match v.kind() {
        ValueKind::Undefined => Ok(Value::from(0)),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => match v.len() {
            Some(n) => Ok(Value::from(n)),
            None => Ok(Value::from(ops::items(v)?.len())),
        },
        kind => Err(fail(format!("a value of type {kind} has no length"))),
    }
}

fn first(v: &Value) -> Result<Value, Error> {
    Ok(ops::iterate(v)?.next().unwrap_or(Value::UNDEFINED))
}

fn last(v: &Value) -> Result<Value, Error> {
    if let Some(s) = v.as_str() {
        return Ok(s.chars().next_back().map_or(Value::UNDEFINED, |c| Value::from(c.to_string())));
    }
    Ok(ops::items(v)?.pop().unwrap_or(Value::UNDEFINED))
}

fn items(state: &State, v: &Value, args: &[Value]) -> Result<Value, Error> {
    if v.is_undefined() {
        return Ok(Value::from(Vec::<Value>::new()));
    }
    if v.kind() != ValueKind::Map {
        return Err(fail(format!("items takes a mapping, not {}", v.kind())));
    }
    method(state, "$items", v, args)
}

fn reverse(v: &Value) -> Result<Value, Error> {
    if let Some(s) = v.as_str() {
        budget::charge(s.len())?;
        return Ok(Value::from(s.chars().rev().collect::<String>()));
    }
    let mut all = ops::items(v)?;
    all.reverse();
    Ok(Value::from(all))
}

fn batch(_: &State, v: &Value, args: &[Value]) -> Result<Value, Error> {
    let found = arguments(args, &["linecount", "fill_with"])?;
    let n = size(&found[0], 0, "batch: the size")?;
    if n == 0 {
        return Err(fail("batch: the size must be at least 1"));
    }
    let mut rows: Vec<Vec<Value>> = ops::items(v)?.chunks(n).map(<[Value]>::to_vec).collect();
    if let (Some(fill), Some(row)) = (&found[1], rows.last_mut()) {
        budget::charge((n - row.len()).saturating_mul(32))?;
        row.resize(n, fill.clone());
    }
    Ok(rows.into_iter().map(Value::from).collect())
}

fn sum(_: &State, v: &Value, args: &[Value]) -> Result<Value, Error> {
    let found = arguments(args, &["attribute", "start"])?;
    let mut total = found[1].clone().unwrap_or_else(|| Value::from(0));
    for item in ops::items(v)? {
        let item = match &found[0] {
            Some(attribute) => item.get_item(attribute)?,
            None => item,
        };
        total = ops::add(&total, &item)?;
    }
    Ok(total)
}

fn int(_: &State, v: &Value, args: &[Value]) -> Result<Value, Error> {
    let found = arguments(args, &["default", "base"])?;
    let default = found[0].clone().unwrap_or_else(|| Value::from(0));
    if let Some(s) = v.as_str() {
        let digits = s.trim().replace('_', "");
        let base = u32::try_from(size(&found[1], 10, "int: the base")?).unwrap_or(0);
        let parsed = match base {
            10 => digits.parse::<i128>().ok(),
            2..=36 => {
                let bare = digits.trim_start_matches("0x").trim_start_matches("0b").trim_start_matches("0o");
                i128::from_str_radix(bare, base).ok()
            }
            _ => None,
        };
        let parsed = parsed.or_else(|| digits.parse::<f64>().ok().filter(|f| f.is_finite()).map(|f| f as i128));
        return Ok(parsed.map_or(default, ops::int));
    }
    match v.kind() {
        ValueKind::Bool => Ok(Value::from(i64::from(v.is_true()))),
        ValueKind::Number if v.is_integer() => Ok(v.clone()),
        ValueKind::Number => Ok(pystr::as_float(v).filter(|f| f.is_finite()).map_or(default, |f| ops::int(f as i128))),
        _ => Ok(default),
    }
}

fn float(_: &State, v: &Value, args: &[Value]) -> Result<Value, Error> {
    let found = arguments(args, &["default"])?;
    let parsed = match v.as_str() {
        Some(s) => s.trim().parse::<f64>().ok(),
        None if v.kind() == ValueKind::Bool => Some(f64::from(u8::from(v.is_true()))),
        None if v.kind() == ValueKind::Number => f64::try_from(v.clone()).ok(),
        None => None,
    };
    Ok(parsed.map_or_else(|| found[0].clone().unwrap_or_else(|| Value::from(0.0)), Value::from))
}

fn round(_: &State, v: &Value, args: &[Value]) -> Result<Value, Error> {
    let found = arguments(args, &["precision", "method"])?;
    let precision = found[0].as_ref().map_or(Some(0), Value::as_i64).ok_or_else(|| fail("round: the precision must be a number"))?;
    let method = found[1].as_ref().and_then(|m| m.as_str().map(str::to_owned)).unwrap_or_else(|| "common".into());
    let number = f64::try_from(v.clone()).map_err(|_| fail(format!("cannot round a value of type {}", v.kind())))?;
    let scale = 10f64.powi(precision.clamp(-300, 300) as i32);
    let rounded = match method.as_str() {
        "ceil" => (number * scale).ceil() / scale,
        "floor" => (number * scale).floor() / scale,
        // Python rounds the decimal digits of the exact number, half to even, as formatting does.
        "common" if precision > 0 => format!("{number:.*}", precision.min(300) as usize).parse().unwrap_or(number),
        "common" => round_half_even(number * scale) / scale,
        other => return Err(fail(format!("round: no method {other:?} (common, ceil or floor)"))),
    };
    Ok(if v.is_integer() && method == "common" { ops::int(rounded as i128) } else { Value::from(rounded) })
}

fn round_half_even(v: f64) -> f64 {
    let rounded = v.round();
    if (v - v.trunc()).abs() == 0.5 {
        2.0 * (v / 2.0).round()
    } else {
        rounded
    }
}

fn escape(_: &State, v: &Value, _: &[Value]) -> Result<Value, Error> {
    if v.is_safe() {
        return Ok(v.clone());
    }
    let mut out = Text(String::new());
    pystr::write_escaped(&pystr::str(v)?, &mut out)?;
    Ok(Value::from_safe_string(out.0))
}

fn replace(v: &Value, args: &[Value]) -> Result<Value, Error> {
    let found = arguments(args, &["old", "new", "count"])?;
    let (Some(old), Some(new)) = (&found[0], &found[1]) else {
        return Err(Error::from(ErrorKind::MissingArgument));
    };
    let mut plain = vec![Value::from(pystr::str(old)?), Value::from(pystr::str(new)?)];
    plain.extend(found[2].clone());
    methods::replace(&pystr::str(v)?, &plain)
}

fn join(_: &State, v: &Value, args: &[Value]) -> Result<Value, Error> {
    let found = arguments(args, &["d", "attribute"])?;
    let separator = found[0].as_ref().map_or(Ok(String::new()), pystr::str)?;
    let mut out = Text(String::new());
    if v.is_undefined() {
        return Ok(Value::from(""));
    }
    for (i, item) in ops::iterate(v)?.enumerate() {
        if i > 0 {
            out.push(&separator)?;
        }
        budget::charge(8)?;
        match &found[1] {
            Some(attribute) => pystr::write_str(&item.get_item(attribute)?, &mut out)?,
            None => pystr::write_str(&item, &mut out)?,
        }
    }
    Ok(Value::from(out.0))
}

fn trim(_: &State, v: &Value, args: &[Value]) -> Result<Value, Error> {
    let found = arguments(args, &["chars"])?;
    let chars = match &found[0] {
        Some(c) if !c.is_none() => Some(pystr::str(c)?),
        _ => None,
    };
    methods::trimmed(&pystr::str(v)?, chars.as_deref(), true, true).map(Value::from)
}

fn indent(_: &State, v: &Value, args: &[Value]) -> Result<Value, Error> {
    let found = arguments(args, &["width", "first", "blank"])?;
    let margin = match found[0].as_ref().and_then(Value::as_str) {
        Some(text) => text.to_owned(),
        None => {
            let width = size(&found[0], 4, "indent: the width")?;
            budget::charge(width)?;
            " ".repeat(width)
        }
    };
    let text = pystr::str(v)?;
    let mut out = Text(String::new());
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            out.push("\n")?;
        }
        let wanted = if i == 0 { truth(&found[1]) } else { truth(&found[2]) || !line.is_empty() };
        if wanted {
            out.push(&margin)?;
        }
        out.push(line)?;
    }
    Ok(Value::from(out.0))
}

fn truncate(_: &State, v: &Value, args: &[Value]) -> Result<Value, Error> {
    let found = arguments(args, &["length", "killwords", "end", "leeway"])?;
    let length = size(&found[0], 255, "truncate: the length")?;
    let end = found[2].as_ref().map_or(Ok("...".to_owned()), pystr::str)?;
    let leeway = size(&found[3], 5, "truncate: the leeway")?;
    let text = pystr::str(v)?;
    let end_length = end.chars().count();
    if length < end_length {
        return Err(fail(format!("truncate: expected a length of at least {end_length}, got {length}")));
    }
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(Value::from(text));
    }
    let cut: String = text.chars().take(length - end_length).collect();
    let kept = if truth(&found[1]) { cut.as_str() } else { cut.rsplit_once(' ').map_or(cut.as_str(), |(head, _)| head) };
    Ok(Value::from([kept, &end].concat()))
}

/// json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False), as transformers' tojson calls it.
fn tojson(_: &State, v: &Value, args: &[Value]) -> Result<Value, Error> {
    let found = arguments(args, &["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match &found[1] {
        None => None,
        Some(v) if v.is_none() => None,
        Some(v) => Some(match v.as_str() {
            Some(text) => text.to_owned(),
            None => {
                let width = size(&found[1], 0, "tojson: the indent")?;
                budget::charge(width)?;
                " ".repeat(width)
            }
        }),
    };
    let mut style = JsonStyle {
        ensure_ascii: truth(&found[0]),
        sort_keys: truth(&found[3]),
        item_separator: if indent.is_some() { "," } else { ", " }.into(),
        key_separator: ": ".into(),
        indent,
    };
    if let Some(separators) = found[2].as_ref().filter(|v| !v.is_none()) {
        let both = ops::items(separators)?;
        let [item, key] = both.as_slice() else { return Err(fail("tojson: separators must be two texts")) };
        (style.item_separator, style.key_separator) = (pystr::str(item)?, pystr::str(key)?);
    }
    let mut out = Text(String::new());
    pystr::write_json(v, &style, &mut out, 0)?;
    Ok(Value::from(out.0))
}
