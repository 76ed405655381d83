//! Formatting: `%`, str.format() and strftime.

use minijinja::value::{Value, ValueKind};
use minijinja::{format_filter, Error, FormatStyle, State};

use crate::budget;
use crate::ops::fail;
use crate::pystr;

/// Pays for every width and precision that the format asks for, which one short format can make huge.
fn charge_widths(format: &str) -> Result<(), Error> {
    for digits in format.split(|c: char| !c.is_ascii_digit()) {
        match digits.parse::<usize>() {
            Ok(width) if width > 4096 => return Err(budget::limit(format!("a format asks for a width of {digits}"))),
            Ok(width) => budget::charge(width)?,
            Err(_) if digits.is_empty() => {}
            Err(_) => return Err(budget::limit(format!("a format asks for a width of {digits}"))),
        }
    }
    budget::charge(format.len())
}

/// minijinja writes lists as Rust does; numbers, text and keyword arguments pass as they are.
fn arguments(args: &[Value]) -> Result<Vec<Value>, Error> {
    args.iter()
        .map(|v| {
            budget::charge(v.as_str().map_or(16, str::len))?;
            match v.kind() {
                ValueKind::Number | ValueKind::String => Ok(v.clone()),
                _ if v.is_kwargs() => budget::charge_walk(v, 0).map(|()| v.clone()),
                _ => pystr::str(v).map(Value::from),
            }
        })
        .collect()
}

pub fn percent(_: &State, format: &str, args: &[Value]) -> Result<Value, Error> {
    if format.contains('*') {
        return Err(fail("a width of * is not supported in a format"));
    }
    charge_widths(format)?;
    format_filter(FormatStyle::Printf, format, &arguments(args)?).map(Value::from)
}

pub fn braces(_: &State, format: &str, args: &[Value]) -> Result<Value, Error> {
    if format.contains(":{") {
        return Err(fail("a field inside a format specification is not supported"));
    }
    charge_widths(format)?;
    // One argument may be named by many fields.
    let arguments = arguments(args)?;
    let longest = arguments.iter().filter_map(Value::as_str).map(str::len).max().unwrap_or(0);
    let walk: usize = if args.last().is_some_and(Value::is_kwargs) { longest_keyword(args) } else { 0 };
    budget::charge(longest.max(walk).saturating_mul(format.matches('{').count()))?;
    format_filter(FormatStyle::StrFormat, format, &arguments).map(Value::from)
}

fn longest_keyword(args: &[Value]) -> usize {
    let Some(kwargs) = args.last() else { return 0 };
    let Ok(keys) = kwargs.try_iter() else { return 0 };
    keys.filter_map(|key| kwargs.get_item(&key).ok()?.as_str().map(str::len)).max().unwrap_or(0)
}

const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

struct Date {
    year: i64,
    month: usize,  // 0 is January
    day: i64,      // 1..=31
    year_day: i64, // 1..=366
    week_day: i64, // 0 is Sunday
}

/// The Gregorian date of a number of days since 1970-01-01. Years are counted from March, so that the leap day comes last.
fn date(days: i64) -> Date {
    let shifted = days + 719_468; // days since 0000-03-01
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let month = (from_march + 2) % 12;
    let year = year_of_era + era * 400 + i64::from(month < 2);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize];
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    Date { year, month: month as usize, day, year_day: before + day + i64::from(leap && month > 1), week_day: (days + 4).rem_euclid(7) }
}

/// strftime in the C locale, in UTC. An unknown directive stays as it is, as in glibc.
pub fn strftime(format: &str, now_s: u64) -> Result<String, Error> {
    if format.len() > 1024 {
        return Err(fail("strftime_now: the format is longer than 1024 bytes"));
    }
    // Year 9999 is also Python's last.
    let now_s = now_s.min(253_402_300_799) as i64;
    let (d, in_day) = (date(now_s / 86_400), now_s % 86_400);
    let (hour, minute, second) = (in_day / 3_600, in_day / 60 % 60, in_day % 60);
    let hour12 = (hour + 11) % 12 + 1;
    let monday_based = (d.week_day + 6) % 7;
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = rest.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = rest.next();
        }
        let two = |n: i64| if unpadded { n.to_string() } else { format!("{n:02}") };
        match directive {
            Some('Y') => out += &d.year.to_string(),
            Some('y') => out += &two(d.year % 100),
            Some('C') => out += &two(d.year / 100),
            Some('m') => out += &two(d.month as i64 + 1),
            Some('d') => out += &two(d.day),
            Some('e') => out += &if unpadded { d.day.to_string() } else { format!("{:2}", d.day) },
            Some('H') => out += &two(hour),
            Some('I') => out += &two(hour12),
            Some('M') => out += &two(minute),
            Some('S') => out += &two(second),
            Some('f') => out += "000000",
            Some('p') => out += if hour < 12 { "AM" } else { "PM" },
            Some('b' | 'h') => out += &MONTHS[d.month][..3],
            Some('B') => out += MONTHS[d.month],
            Some('a') => out += &DAYS[d.week_day as usize][..3],
            Some('A') => out += DAYS[d.week_day as usize],
            Some('j') => out += &if unpadded { d.year_day.to_string() } else { format!("{:03}", d.year_day) },
            Some('u') => out += &(monday_based + 1).to_string(),
            Some('w') => out += &d.week_day.to_string(),
            Some('U') => out += &two((d.year_day + 6 - d.week_day) / 7),
            Some('W') => out += &two((d.year_day + 6 - monday_based) / 7),
            Some('s') => out += &now_s.to_string(),
            Some('F') => out += &strftime("%Y-%m-%d", now_s as u64)?,
            Some('D' | 'x') => out += &strftime("%m/%d/%y", now_s as u64)?,
            Some('T' | 'X') => out += &strftime("%H:%M:%S", now_s as u64)?,
            Some('R') => out += &strftime("%H:%M", now_s as u64)?,
            Some('c') => out += &strftime("%a %b %e %H:%M:%S %Y", now_s as u64)?,
            Some('z' | 'Z') => {} // Python's own local time carries no zone either
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('%') => out.push('%'),
            Some(other) => {
                out.push('%');
                if unpadded {
                    out.push('-');
                }
                out.push(other);
            }
            None => out.push('%'),
        }
    }
    Ok(out)
}
