//! Rewrites a parsed template so that every operation that can make or walk much data goes through a filter of ours.
//!
//! minijinja's own operators work on Rust's idea of a value and cannot be bounded; ours (ops.rs, methods.rs) follow Python and pay for
//! what they do (budget.rs). The internal filters have names that start with `$`, which no template can write. The tree cannot be
//! changed in place, so this is a copy. Raw text becomes an expression for the same reason: its length is counted on output.

use minijinja::machinery::ast::*;
use minijinja::machinery::Span;
use minijinja::value::Value;
use minijinja::{Error, ErrorKind};

use crate::methods::METHODS;

/// Filters that look at no more than the outside of their value, or pay themselves.
const CHEAP_FILTERS: &[&str] =
    &["count", "d", "default", "first", "format", "indent", "items", "join", "length", "list", "replace", "string", "tojson", "trim"];

fn filter<'a>(name: &'a str, expr: Expr<'a>, args: Vec<Expr<'a>>, span: Span) -> Expr<'a> {
    let args = args.into_iter().map(CallArg::Pos).collect();
    Expr::Filter(Spanned::new(Filter { name, expr: Some(expr), args }, span))
}

fn constant<'a>(value: Value, span: Span) -> Expr<'a> {
    Expr::Const(Spanned::new(Const { value }, span))
}

/// Pays for a walk over the value of an expression. Constants are as long as the source, and stay as they are.
fn paid<'a>(expr: Expr<'a>) -> Expr<'a> {
    match expr {
        Expr::Const(_) => expr,
        _ => {
            let span = expr.span();
            filter("$walk", expr, vec![], span)
        }
    }
}

fn block<'a>(body: &[Stmt<'a>]) -> Result<Vec<Stmt<'a>>, Error> {
    body.iter().map(stmt).collect()
}

fn exprs<'a>(list: &[Expr<'a>]) -> Result<Vec<Expr<'a>>, Error> {
    list.iter().map(expr).collect()
}

fn optional<'a>(e: &Option<Expr<'a>>) -> Result<Option<Expr<'a>>, Error> {
    e.as_ref().map(expr).transpose()
}

fn call_args<'a>(args: &[CallArg<'a>], wrap: fn(Expr<'a>) -> Expr<'a>) -> Result<Vec<CallArg<'a>>, Error> {
    args.iter()
        .map(|arg| {
            Ok(match arg {
                CallArg::Pos(e) => CallArg::Pos(wrap(expr(e)?)),
                CallArg::Kwarg(name, e) => CallArg::Kwarg(name, wrap(expr(e)?)),
                CallArg::PosSplat(e) => CallArg::PosSplat(wrap(expr(e)?)),
                CallArg::KwargSplat(e) => CallArg::KwargSplat(wrap(expr(e)?)),
            })
        })
        .collect()
}

fn unsupported(what: &str) -> Error {
    Error::new(ErrorKind::SyntaxError, format!("{what} is not supported in a chat template"))
}

/// The target of an assignment: names, lists of names, or an attribute of a namespace.
fn target<'a>(e: &Expr<'a>) -> Result<Expr<'a>, Error> {
    Ok(match e {
        Expr::Var(v) => Expr::Var(Spanned::new(Var { id: v.id }, v.span())),
        Expr::GetAttr(a) => Expr::GetAttr(Spanned::new(GetAttr { expr: expr(&a.expr)?, name: a.name }, a.span())),
        Expr::List(l) => {
            let items = l.items.iter().map(target).collect::<Result<_, _>>()?;
            Expr::List(Spanned::new(List { items }, l.span()))
        }
        other => return Err(unsupported(&format!("assigning to a {}", other.description()))),
    })
}

fn macro_decl<'a>(m: &Spanned<Macro<'a>>) -> Result<Spanned<Macro<'a>>, Error> {
    let args = m.args.iter().map(target).collect::<Result<_, _>>()?;
    let node = Macro { name: m.name, args, defaults: exprs(&m.defaults)?, body: block(&m.body)? };
    Ok(Spanned::new(node, m.span()))
}

pub fn stmt<'a>(s: &Stmt<'a>) -> Result<Stmt<'a>, Error> {
    Ok(match s {
        Stmt::Template(t) => Stmt::Template(Spanned::new(Template { children: block(&t.children)? }, t.span())),
        Stmt::EmitExpr(e) => Stmt::EmitExpr(Spanned::new(EmitExpr { expr: expr(&e.expr)? }, e.span())),
        Stmt::EmitRaw(r) => {
            let text = constant(Value::from(r.raw), r.span());
            Stmt::EmitExpr(Spanned::new(EmitExpr { expr: text }, r.span()))
        }
        Stmt::ForLoop(f) => {
            let node = ForLoop {
                target: target(&f.target)?,
                iter: filter("$iter", expr(&f.iter)?, vec![], f.iter.span()),
                filter_expr: optional(&f.filter_expr)?,
                recursive: f.recursive,
                body: block(&f.body)?,
                else_body: block(&f.else_body)?,
            };
            Stmt::ForLoop(Spanned::new(node, f.span()))
        }
        Stmt::IfCond(c) => {
            let node = IfCond { expr: expr(&c.expr)?, true_body: block(&c.true_body)?, false_body: block(&c.false_body)? };
            Stmt::IfCond(Spanned::new(node, c.span()))
        }
        Stmt::WithBlock(w) => {
            let pairs = w.assignments.iter().map(|(t, e)| Ok((target(t)?, expr(e)?)));
            let assignments = pairs.collect::<Result<_, Error>>()?;
            Stmt::WithBlock(Spanned::new(WithBlock { assignments, body: block(&w.body)? }, w.span()))
        }
        Stmt::Set(x) => {
            let mut value = expr(&x.expr)?;
            if let Expr::GetAttr(_) = x.target {
                value = filter("$plain", value, vec![], x.expr.span());
            }
            Stmt::Set(Spanned::new(Set { target: target(&x.target)?, expr: value }, x.span()))
        }
        Stmt::SetBlock(x) => {
            let node = SetBlock { target: target(&x.target)?, filter: optional(&x.filter)?, body: block(&x.body)? };
            Stmt::SetBlock(Spanned::new(node, x.span()))
        }
        Stmt::FilterBlock(f) => {
            let node = FilterBlock { filter: expr(&f.filter)?, body: block(&f.body)? };
            Stmt::FilterBlock(Spanned::new(node, f.span()))
        }
        Stmt::Macro(m) => Stmt::Macro(macro_decl(m)?),
        Stmt::CallBlock(c) => {
            let node = CallBlock { call: plain_call(&c.call)?, macro_decl: macro_decl(&c.macro_decl)? };
            Stmt::CallBlock(Spanned::new(node, c.span()))
        }
        Stmt::Continue(c) => Stmt::Continue(Spanned::new(Continue, c.span())),
        Stmt::Break(b) => Stmt::Break(Spanned::new(Break, b.span())),
        Stmt::Do(d) => Stmt::Do(Spanned::new(Do { call: plain_call(&d.call)? }, d.span())),
        Stmt::AutoEscape(_) => return Err(unsupported("autoescape")),
        Stmt::Block(_) | Stmt::Extends(_) => return Err(unsupported("template inheritance")),
        Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Include(_) => return Err(unsupported("including other templates")),
    })
}

/// A call of a function, macro or object; method calls on Python's own types are rewritten by expr().
fn plain_call<'a>(c: &Spanned<Call<'a>>) -> Result<Spanned<Call<'a>>, Error> {
    let callee = match &c.expr {
        Expr::Var(v) => Expr::Var(Spanned::new(Var { id: v.id }, v.span())),
        Expr::GetAttr(a) => Expr::GetAttr(Spanned::new(GetAttr { expr: expr(&a.expr)?, name: a.name }, a.span())),
        other => expr(other)?,
    };
    let is_method = matches!(c.expr, Expr::GetAttr(_));
    let args = call_args(&c.args, if is_method { paid } else { |e| e })?;
    Ok(Spanned::new(Call { expr: callee, args }, c.span()))
}

fn operator(op: BinOpKind) -> Option<&'static str> {
    Some(match op {
        BinOpKind::Add => "$add",
        BinOpKind::Sub => "$sub",
        BinOpKind::Mul => "$mul",
        BinOpKind::Div => "$div",
        BinOpKind::FloorDiv => "$floordiv",
        BinOpKind::Rem => "$mod",
        BinOpKind::Pow => "$pow",
        BinOpKind::Concat => "$concat",
        BinOpKind::In => "$in",
        BinOpKind::Eq => "$eq",
        BinOpKind::Ne => "$ne",
        BinOpKind::Lt => "$lt",
        BinOpKind::Lte => "$le",
        BinOpKind::Gt => "$gt",
        BinOpKind::Gte => "$ge",
        BinOpKind::ScAnd | BinOpKind::ScOr => return None,
    })
}

fn binary<'a>(b: &Spanned<BinOp<'a>>) -> Result<Expr<'a>, Error> {
    let (left, right) = (expr(&b.left)?, expr(&b.right)?);
    if let Some(name) = operator(b.op) {
        return Ok(filter(name, left, vec![right], b.span()));
    }
    // Two constants would be folded by minijinja, whose `and` gives false where Python gives the operand.
    let left = filter("$same", left, vec![], b.left.span());
    Ok(Expr::BinOp(Spanned::new(BinOp { op: b.op, left, right }, b.span())))
}

fn compare<'a>(c: &Spanned<Compare<'a>>) -> Result<Expr<'a>, Error> {
    let step = |o: &CompareOp<'a>| Ok(CompareOp { op: o.op, expr: paid(expr(&o.expr)?) });
    let ops = c.ops.iter().map(step).collect::<Result<_, Error>>()?;
    Ok(Expr::Compare(Spanned::new(Compare { expr: paid(expr(&c.expr)?), ops }, c.span())))
}

fn call<'a>(c: &Spanned<Call<'a>>) -> Result<Expr<'a>, Error> {
    if let Expr::GetAttr(a) = &c.expr {
        if let Some((internal, _)) = METHODS.iter().find(|(internal, _)| &internal[1..] == a.name) {
            let node = Filter { name: internal, expr: Some(expr(&a.expr)?), args: call_args(&c.args, |e| e)? };
            return Ok(Expr::Filter(Spanned::new(node, c.span())));
        }
    }
    Ok(Expr::Call(plain_call(c)?))
}

pub fn expr<'a>(e: &Expr<'a>) -> Result<Expr<'a>, Error> {
    Ok(match e {
        Expr::Var(v) => Expr::Var(Spanned::new(Var { id: v.id }, v.span())),
        Expr::Const(c) => constant(c.value.clone(), c.span()),
        Expr::Slice(s) => {
            let bound = |b: &Option<Expr<'a>>| Ok(optional(b)?.unwrap_or_else(|| constant(Value::from(()), s.span())));
            let args = [&s.start, &s.stop, &s.step].into_iter().map(bound).collect::<Result<_, Error>>()?;
            filter("$slice", expr(&s.expr)?, args, s.span())
        }
        Expr::UnaryOp(u) => {
            let inner = expr(&u.expr)?;
            match u.op {
                UnaryOpKind::Not => Expr::UnaryOp(Spanned::new(UnaryOp { op: UnaryOpKind::Not, expr: inner }, u.span())),
                UnaryOpKind::Neg => filter("$neg", inner, vec![], u.span()),
            }
        }
        Expr::BinOp(b) => binary(b)?,
        Expr::Compare(c) => compare(c)?,
        Expr::IfExpr(i) => {
            let node = IfExpr { test_expr: expr(&i.test_expr)?, true_expr: expr(&i.true_expr)?, false_expr: optional(&i.false_expr)? };
            Expr::IfExpr(Spanned::new(node, i.span()))
        }
        Expr::Filter(f) => {
            let value = match optional(&f.expr)? {
                Some(value) if !CHEAP_FILTERS.contains(&f.name) => Some(paid(value)),
                other => other,
            };
            let node = Filter { name: f.name, expr: value, args: call_args(&f.args, paid)? };
            Expr::Filter(Spanned::new(node, f.span()))
        }
        Expr::Test(t) => {
            let value = expr(&t.expr)?;
            let value = if t.args.is_empty() { value } else { paid(value) };
            let node = Test { name: t.name, expr: value, args: call_args(&t.args, paid)? };
            Expr::Test(Spanned::new(node, t.span()))
        }
        Expr::GetAttr(a) => Expr::GetAttr(Spanned::new(GetAttr { expr: expr(&a.expr)?, name: a.name }, a.span())),
        Expr::GetItem(i) => filter("$item", expr(&i.expr)?, vec![paid(expr(&i.subscript_expr)?)], i.span()),
        Expr::Call(c) => call(c)?,
        Expr::List(l) => Expr::List(Spanned::new(List { items: exprs(&l.items)? }, l.span())),
        Expr::Map(m) => {
            let keys = m.keys.iter().map(|k| expr(k).map(paid)).collect::<Result<_, _>>()?;
            Expr::Map(Spanned::new(Map { keys, values: exprs(&m.values)? }, m.span()))
        }
    })
}
