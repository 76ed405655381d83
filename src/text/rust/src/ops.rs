//! Python's operators on template values.

use minijinja::value::{Value, ValueIter, ValueKind};
use minijinja::{Error, ErrorKind, State};

use crate::budget;
use crate::format;
use crate::pystr::{self, Text};

pub type Op = fn(&State, &Value, &[Value]) -> Result<Value, Error>;

pub const OPERATORS: &[(&str, Op)] = &[
    ("$add", |_, a, r| add(a, &r[0])),
    ("$sub", |_, a, r| arithmetic("-", a, &r[0], i128::checked_sub, |x, y| x - y)),
    ("$mul", |_, a, r| mul(a, &r[0])),
    ("$div", |_, a, r| div(a, &r[0])),
    ("$floordiv", |_, a, r| floor_div(a, &r[0])),
    ("$mod", |s, a, r| modulo(s, a, &r[0])),
    ("$pow", |_, a, r| pow(a, &r[0])),
    ("$neg", |_, a, _| neg(a)),
    ("$concat", |_, a, r| concat(a, &r[0])),
    ("$in", |_, a, r| contains(a, &r[0]).map(Value::from)),
    ("$eq", |_, a, r| equal(a, &r[0]).map(Value::from)),
    ("$ne", |_, a, r| equal(a, &r[0]).map(|x| Value::from(!x))),
    ("$lt", |_, a, r| order("<", a, &r[0]).map(|o| Value::from(o.is_some_and(|o| o.is_lt())))),
    ("$le", |_, a, r| order("<=", a, &r[0]).map(|o| Value::from(o.is_some_and(|o| o.is_le())))),
    ("$gt", |_, a, r| order(">", a, &r[0]).map(|o| Value::from(o.is_some_and(|o| o.is_gt())))),
    ("$ge", |_, a, r| order(">=", a, &r[0]).map(|o| Value::from(o.is_some_and(|o| o.is_ge())))),
    ("$slice", |_, a, r| slice(a, &r[0], &r[1], &r[2])),
    ("$item", |_, a, r| item(a, &r[0])),
    ("$iter", |_, a, _| iterable(a)),
    ("$same", |_, a, _| Ok(a.clone())),
    ("$walk", |_, a, _| budget::charge_walk(a, 0).map(|()| a.clone())),
    ("$plain", |_, a, _| budget::charge_walk_plain(a, 0).map(|()| a.clone())),
];

pub fn fail(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, text.into())
}

fn unfit(op: &str, a: &Value, b: &Value) -> Error {
    if a.is_undefined() || b.is_undefined() {
        return Error::new(ErrorKind::UndefinedError, format!("operand of {op} is undefined"));
    }
    fail(format!("{op} does not go with {} and {}", a.kind(), b.kind()))
}

fn is_list(v: &Value) -> bool {
    matches!(v.kind(), ValueKind::Seq | ValueKind::Iterable)
}

enum Number {
    Int(i128),
    Float(f64),
}

fn number(v: &Value) -> Option<Number> {
    match v.kind() {
        ValueKind::Bool => Some(Number::Int(v.is_true() as i128)),
        ValueKind::Number if v.is_integer() => i128::try_from(v.clone()).ok().map(Number::Int),
        ValueKind::Number => f64::try_from(v.clone()).ok().map(Number::Float),
        _ => None,
    }
}

impl Number {
    fn float(self) -> f64 {
        match self {
            Number::Int(i) => i as f64,
            Number::Float(f) => f,
        }
    }
}

pub fn int(v: i128) -> Value {
    i64::try_from(v).map_or_else(|_| Value::from(v), Value::from)
}

fn arithmetic(op: &str, a: &Value, b: &Value, ints: fn(i128, i128) -> Option<i128>, floats: fn(f64, f64) -> f64) -> Result<Value, Error> {
    match (number(a), number(b)) {
        (Some(Number::Int(x)), Some(Number::Int(y))) => {
            ints(x, y).map(int).ok_or_else(|| fail(format!("the result of {op} is not a number of 128 bits")))
        }
        (Some(x), Some(y)) => Ok(Value::from(floats(x.float(), y.float()))),
        _ => Err(unfit(op, a, b)),
    }
}

/// Iterates as Python does: None is not iterable, an undefined value is empty.
pub fn iterate(v: &Value) -> Result<ValueIter, Error> {
    if v.is_none() {
        return Err(fail("None is not iterable"));
    }
    v.try_iter()
}

/// The items of a list, paid for.
pub fn items(v: &Value) -> Result<Vec<Value>, Error> {
    let mut out = Vec::new();
    for item in iterate(v)? {
        budget::charge(32)?;
        out.push(item);
    }
    Ok(out)
}

pub fn add(a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        let mut out = Text(String::new());
        if a.is_safe() || b.is_safe() {
            // Python's Markup: what `safe` marked stays, what is added to it is escaped.
            for (text, safe) in [(x, a.is_safe()), (y, b.is_safe())] {
                if safe {
                    out.push(text)?;
                } else {
                    pystr::write_escaped(text, &mut out)?;
                }
            }
            return Ok(Value::from_safe_string(out.0));
        }
        out.push(x)?;
        out.push(y)?;
        return Ok(Value::from(out.0));
    }
    if is_list(a) && is_list(b) {
        let mut out = items(a)?;
        out.extend(items(b)?);
        return Ok(Value::from(out));
    }
    arithmetic("+", a, b, i128::checked_add, |x, y| x + y)
}

fn mul(a: &Value, b: &Value) -> Result<Value, Error> {
    let (thing, count) = if a.as_str().is_some() || is_list(a) { (a, b) } else { (b, a) };
    if thing.as_str().is_none() && !is_list(thing) {
        return arithmetic("*", a, b, i128::checked_mul, |x, y| x * y);
    }
    let count = match number(count) {
        Some(Number::Int(n)) => usize::try_from(n.max(0)).unwrap_or(usize::MAX),
        _ => return Err(unfit("*", a, b)),
    };
    if let Some(s) = thing.as_str() {
        budget::charge(s.len().saturating_mul(count))?;
        return Ok(Value::from(if s.is_empty() { String::new() } else { s.repeat(count) }));
    }
    let once = items(thing)?;
    budget::charge(once.len().saturating_mul(32).saturating_mul(count))?;
    let mut out = Vec::new();
    for _ in 0..if once.is_empty() { 0 } else { count } {
        out.extend(once.iter().cloned());
    }
    Ok(Value::from(out))
}

fn div(a: &Value, b: &Value) -> Result<Value, Error> {
    match (number(a), number(b)) {
        (Some(x), Some(y)) => match (x.float(), y.float()) {
            (_, y) if y == 0.0 => Err(fail("division by zero")),
            (x, y) => Ok(Value::from(x / y)),
        },
        _ => Err(unfit("/", a, b)),
    }
}

fn floor_div_int(x: i128, y: i128) -> Option<i128> {
    let q = x.checked_div(y)?;
    Some(if x % y != 0 && (x < 0) != (y < 0) { q - 1 } else { q })
}

fn floor_div(a: &Value, b: &Value) -> Result<Value, Error> {
    if number(b).is_some_and(|n| n.float() == 0.0) {
        return Err(fail("division by zero"));
    }
    arithmetic("//", a, b, floor_div_int, |x, y| (x / y).floor())
}

fn modulo(state: &State, a: &Value, b: &Value) -> Result<Value, Error> {
    if let Some(s) = a.as_str() {
        let args = if is_list(b) { items(b)? } else { vec![b.clone()] };
        return format::percent(state, s, &args);
    }
    if number(b).is_some_and(|n| n.float() == 0.0) {
        return Err(fail("division by zero"));
    }
    let ints = |x: i128, y: i128| Some(x.checked_sub(floor_div_int(x, y)?.checked_mul(y)?)?);
    arithmetic("%", a, b, ints, |x, y| x - (x / y).floor() * y)
}

fn pow(a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(Number::Int(x)), Some(Number::Int(y))) = (number(a), number(b)) {
        if y < 0 {
            return Ok(Value::from((x as f64).powf(y as f64)));
        }
    }
    arithmetic("**", a, b, |x, y| x.checked_pow(u32::try_from(y).ok()?), f64::powf)
}

fn neg(a: &Value) -> Result<Value, Error> {
    match number(a) {
        Some(Number::Int(i)) => i.checked_neg().map(int).ok_or_else(|| fail("the number is too large")),
        Some(Number::Float(f)) => Ok(Value::from(-f)),
        None => Err(fail(format!("- does not go with {}", a.kind()))),
    }
}

fn concat(a: &Value, b: &Value) -> Result<Value, Error> {
    let mut out = Text(String::new());
    pystr::write_str(a, &mut out)?;
    pystr::write_str(b, &mut out)?;
    Ok(Value::from(out.0))
}

pub fn equal(a: &Value, b: &Value) -> Result<bool, Error> {
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        budget::charge(x.len().min(y.len()) / 16)?;
        return Ok(x == y);
    }
    if a.as_object().is_some() && b.as_object().is_some() {
        budget::charge_walk(a, 0)?;
        budget::charge_walk(b, 0)?;
    }
    Ok(a == b)
}

fn contains(needle: &Value, container: &Value) -> Result<bool, Error> {
    if container.is_undefined() {
        return Ok(false);
    }
    if let Some(s) = container.as_str() {
        let needle = needle.as_str().ok_or_else(|| unfit("in", needle, container))?;
        budget::charge(s.len())?;
        return Ok(s.contains(needle));
    }
    match container.kind() {
        ValueKind::Map => {
            budget::charge_walk(needle, 0)?;
            Ok(container.as_object().and_then(|o| o.get_value(needle)).is_some())
        }
        ValueKind::Seq | ValueKind::Iterable => {
            for item in container.try_iter()? {
                budget::charge(8)?;
                if equal(&item, needle)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        _ => Err(unfit("in", needle, container)),
    }
}

fn order(op: &str, a: &Value, b: &Value) -> Result<Option<std::cmp::Ordering>, Error> {
    if let (Some(x), Some(y)) = (number(a), number(b)) {
        return Ok(match (x, y) {
            (Number::Int(x), Number::Int(y)) => Some(x.cmp(&y)),
            (x, y) => x.float().partial_cmp(&y.float()),
        });
    }
    if (a.as_str().is_some() && b.as_str().is_some()) || (is_list(a) && is_list(b)) {
        budget::charge_walk(a, 0)?;
        budget::charge_walk(b, 0)?;
        return Ok(a.partial_cmp(b));
    }
    Err(unfit(op, a, b))
}

fn bound(v: &Value) -> Result<Option<i64>, Error> {
    match number(v) {
        _ if v.is_none() => Ok(None),
        Some(Number::Int(i)) => Ok(Some(i.clamp(i64::MIN as i128 / 2, i64::MAX as i128 / 2) as i64)),
        _ => Err(fail(format!("a slice bound cannot be of type {}", v.kind()))),
    }
}

/// Python's slice.indices(): the positions a slice takes of n items.
fn positions(n: usize, start: &Value, stop: &Value, step: &Value) -> Result<Vec<usize>, Error> {
    let (n, step) = (n as i64, bound(step)?.unwrap_or(1));
    if step == 0 {
        return Err(fail("slice step cannot be zero"));
    }
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let place = |v: Option<i64>, absent: i64| match v {
        None => absent,
        Some(i) if i < 0 => (i + n).clamp(low, high),
        Some(i) => i.clamp(low, high),
    };
    let first = place(bound(start)?, if step > 0 { low } else { high });
    let end = place(bound(stop)?, if step > 0 { high } else { low });
    let mut out = Vec::new();
    let mut i = first;
    while (step > 0 && i < end) || (step < 0 && i > end) {
        out.push(i as usize);
        i = i.saturating_add(step);
    }
    Ok(out)
}

fn slice(v: &Value, start: &Value, stop: &Value, step: &Value) -> Result<Value, Error> {
    if let Some(s) = v.as_str() {
        budget::charge(s.len().saturating_mul(13))?; // code points, positions and the result
        let chars: Vec<char> = s.chars().collect();
        let taken: String = positions(chars.len(), start, stop, step)?.into_iter().map(|i| chars[i]).collect();
        return Ok(Value::from(taken));
    }
    if v.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "cannot slice an undefined value"));
    }
    if !is_list(v) {
        return Err(fail(format!("cannot slice a value of type {}", v.kind())));
    }
    let all = items(v)?;
    let taken: Vec<Value> = positions(all.len(), start, stop, step)?.into_iter().map(|i| all[i].clone()).collect();
    Ok(Value::from(taken))
}

fn item(v: &Value, key: &Value) -> Result<Value, Error> {
    if let Some(s) = v.as_str() {
        let Some(Number::Int(i)) = number(key) else { return Ok(Value::UNDEFINED) };
        budget::charge(s.len())?;
        let i = if i < 0 { i + s.chars().count() as i128 } else { i };
        let found = usize::try_from(i).ok().and_then(|i| s.chars().nth(i));
        return Ok(found.map_or(Value::UNDEFINED, |c| Value::from(c.to_string())));
    }
    if v.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, format!("cannot take item {key} of an undefined value")));
    }
    v.get_item(key)
}

fn iterable(v: &Value) -> Result<Value, Error> {
    match v.kind() {
        ValueKind::Undefined => Ok(v.clone()),
        ValueKind::String => budget::charge(v.as_str().map_or(0, str::len)).map(|()| v.clone()),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => Ok(v.clone()),
        kind => Err(fail(format!("cannot loop over a value of type {kind}"))),
    }
}
