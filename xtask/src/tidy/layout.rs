//! Offsets of `repr(C)` structures, computed from their source, so that a document can be held against them.
//!
//! The compiler's own answer is asserted beside each structure in tssx-core; this gives the same numbers with the
//! fields' names and lines. Only what shared memory may hold is known: atomics, integers, arrays and other such structures.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail};
use syn::spanned::Spanned;
use syn::{Expr, Item, ItemStruct, Type};

/// One field of a structure.
pub(super) struct Field {
    pub(super) name: String,
    /// Line of its declaration.
    pub(super) line: usize,
    /// Bytes from the start of its structure.
    pub(super) offset: usize,
    /// Bytes it takes.
    pub(super) size: usize,
}

/// Structures and constants of a set of files.
#[derive(Default)]
pub(super) struct Layouts {
    structures: BTreeMap<String, ItemStruct>,
    constants: BTreeMap<String, Expr>,
}

impl Layouts {
    /// Takes the `repr(C)` structures and the constants of one file.
    pub(super) fn add(&mut self, file: &syn::File) {
        for item in &file.items {
            match item {
                Item::Struct(structure) if repr(structure).is_some() => {
                    self.structures.insert(structure.ident.to_string(), structure.clone());
                }
                Item::Const(constant) => {
                    self.constants.insert(constant.ident.to_string(), (*constant.expr).clone());
                }
                _ => {}
            }
        }
    }

    /// The fields of the structure called `name`, in order.
    ///
    /// # Errors
    /// Where a type or an array length is beyond this module.
    pub(super) fn fields(&self, name: &str) -> Result<Vec<Field>> {
        let structure = self.structures.get(name).with_context(|| format!("no repr(C) structure {name}"))?;
        let mut offset = 0;
        let mut fields = Vec::new();
        for field in &structure.fields {
            let (size, align) = self.measure(&field.ty)?;
            offset = usize::next_multiple_of(offset, align);
            let name = field.ident.as_ref().context("shared structures name their fields")?.to_string();
            fields.push(Field { name, line: field.span().start().line, offset, size });
            offset += size;
        }
        Ok(fields)
    }

    /// Size and alignment in bytes.
    fn measure(&self, of: &Type) -> Result<(usize, usize)> {
        match of {
            Type::Array(array) => {
                let (size, align) = self.measure(&array.elem)?;
                Ok((size * self.evaluate(&array.len)?, align))
            }
            Type::Path(path) => {
                let name = path.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default();
                match name.as_str() {
                    "AtomicU8" | "u8" | "i8" => Ok((1, 1)),
                    "AtomicU16" | "u16" | "i16" => Ok((2, 2)),
                    "AtomicU32" | "AtomicI32" | "u32" | "i32" => Ok((4, 4)),
                    "AtomicU64" | "AtomicI64" | "u64" | "i64" => Ok((8, 8)),
                    _ => self.measure_structure(&name),
                }
            }
            _ => bail!("line {}: a type that shared memory should not hold", of.span().start().line),
        }
    }

    fn measure_structure(&self, name: &str) -> Result<(usize, usize)> {
        let structure = self.structures.get(name).with_context(|| format!("the size of {name} is not known here"))?;
        let mut align = repr(structure).unwrap_or(1);
        for field in &structure.fields {
            align = align.max(self.measure(&field.ty)?.1);
        }
        let end = self.fields(name)?.last().map_or(0, |field| field.offset + field.size);
        Ok((end.next_multiple_of(align), align))
    }

    fn evaluate(&self, expression: &Expr) -> Result<usize> {
        match expression {
            Expr::Lit(literal) => match &literal.lit {
                syn::Lit::Int(number) => Ok(number.base10_parse()?),
                _ => bail!("line {}: not a number", literal.span().start().line),
            },
            Expr::Path(path) => {
                let name = path.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default();
                self.evaluate(self.constants.get(&name).with_context(|| format!("the constant {name} is not known here"))?)
            }
            Expr::Paren(inner) => self.evaluate(&inner.expr),
            Expr::Cast(inner) => self.evaluate(&inner.expr),
            Expr::Binary(binary) => {
                let (left, right) = (self.evaluate(&binary.left)?, self.evaluate(&binary.right)?);
                let result = match binary.op {
                    syn::BinOp::Add(_) => left.checked_add(right),
                    syn::BinOp::Sub(_) => left.checked_sub(right),
                    syn::BinOp::Mul(_) => left.checked_mul(right),
                    syn::BinOp::Div(_) => left.checked_div(right),
                    syn::BinOp::Shl(_) => u32::try_from(right).ok().and_then(|by| left.checked_shl(by)),
                    _ => None,
                };
                result.ok_or_else(|| anyhow!("line {}: cannot be computed here", binary.span().start().line))
            }
            _ => bail!("line {}: cannot be computed here", expression.span().start().line),
        }
    }
}

/// The least alignment that `#[repr(C)]` or `#[repr(C, align(N))]` gives; `None` without `repr(C)`.
fn repr(structure: &ItemStruct) -> Option<usize> {
    let (mut is_c, mut align) = (false, 1);
    for attribute in structure.attrs.iter().filter(|attribute| attribute.path().is_ident("repr")) {
        attribute
            .parse_nested_meta(|meta| {
                is_c |= meta.path.is_ident("C");
                if meta.path.is_ident("align") {
                    let content;
                    syn::parenthesized!(content in meta.input);
                    align = content.parse::<syn::LitInt>()?.base10_parse()?;
                }
                Ok(())
            })
            .ok()?;
    }
    is_c.then_some(align)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_those_of_repr_c() {
        let source = "const N: usize = 2 * 3; #[repr(C)] struct A { a: u8, b: AtomicU64, c: [u8; N + 1] }
            #[repr(C, align(64))] struct B { x: AtomicU32, a: A } #[repr(C)] struct C { b: [B; 2], z: u8 } struct D { q: u8 }";
        let mut layouts = Layouts::default();
        layouts.add(&syn::parse_file(source).expect("parses"));
        let offsets = |name| layouts.fields(name).expect("known").iter().map(|field| field.offset).collect::<Vec<_>>();
        assert_eq!(offsets("A"), [0, 8, 16]);
        assert_eq!(offsets("B"), [0, 8]);
        assert_eq!(offsets("C"), [0, 128]);
        assert!(layouts.fields("D").is_err());
    }
}
