//! Where the running kernel keeps the members of its structures: just enough of BTF (`linux/btf.h`) to ask that.
//!
//! Kernel programs in Rust have no CO-RE relocations, and aya keeps what it knows of members to itself. So the places that
//! [`tssx_ebpf::birth`] needs are looked up here and handed to the programs as a global.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, bail};
use tssx_ebpf::birth::{PLACES, Place};

/// The types of the running kernel.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xEB9F;
/// Deepest nesting of structures without a name within one another.
const DEPTH: usize = 8;

/// `BTF_KIND_STRUCT` and `BTF_KIND_UNION`, the kinds that have members.
const STRUCT: u32 = 4;
const UNION: u32 = 5;

/// Each place with its structure and the members on the way.
const WANTED: [(Place, &str, &[&str]); PLACES] = [
    (Place::Address, "unix_sock", &["addr"]),
    (Place::Peer, "unix_sock", &["peer"]),
    (Place::Dentry, "unix_sock", &["path", "dentry"]),
    (Place::AddressLength, "unix_address", &["len"]),
    (Place::AddressName, "unix_address", &["name"]),
    (Place::Cookie, "sock", &["__sk_common", "skc_cookie"]),
    (Place::Net, "sock", &["__sk_common", "skc_net"]),
    (Place::Type, "sock", &["sk_type"]),
    (Place::NetInode, "net", &["ns", "inum"]),
    (Place::DentryInode, "dentry", &["d_inode"]),
    (Place::Inode, "inode", &["i_ino"]),
    (Place::SuperBlock, "inode", &["i_sb"]),
    (Place::Device, "super_block", &["s_dev"]),
];

/// The places in the running kernel, for the global [`tssx_ebpf::birth::SHAPE`].
///
/// # Errors
/// One that names the structure or member that this kernel does not have.
pub(crate) fn shape() -> anyhow::Result<[u32; PLACES]> {
    let bytes = std::fs::read(Path::new(VMLINUX)).with_context(|| format!("cannot read {VMLINUX}"))?;
    let types = Types::parse(&bytes).with_context(|| format!("{VMLINUX} is no BTF that this release reads"))?;
    let mut shape = [0; PLACES];
    for (place, structure, members) in WANTED {
        let offset = types.offset(structure, members)?;
        if let Some(slot) = shape.get_mut(place as usize) {
            *slot = offset;
        }
    }
    Ok(shape)
}

/// A structure or union: its members as (name, type, offset in bits).
struct Structure<'a> {
    members: Vec<(&'a [u8], u32, u32)>,
}

/// The structures of a BTF blob. Type numbers count from 1.
struct Types<'a> {
    structures: HashMap<u32, Structure<'a>>,
    by_name: HashMap<&'a [u8], u32>,
}

impl<'a> Types<'a> {
    fn parse(bytes: &'a [u8]) -> anyhow::Result<Self> {
        let word = |at: usize| u32_at(bytes, at).map(|word| word as usize);
        if u32_at(bytes, 0).is_none_or(|word| word & 0xffff != u32::from(MAGIC)) {
            bail!("it does not begin with BTF's magic number");
        }
        let header = || -> Option<_> { Some((word(4)?, word(8)?, word(12)?, word(16)?, word(20)?)) };
        let (start, type_offset, type_length, string_offset, string_length) = header().context("its header is cut off")?;
        let section = |offset: usize, length: usize| {
            let from = start.checked_add(offset)?;
            bytes.get(from..from.checked_add(length)?)
        };
        let types = section(type_offset, type_length).context("its types are cut off")?;
        let strings = section(string_offset, string_length).context("its names are cut off")?;
        let mut found = Self { structures: HashMap::new(), by_name: HashMap::new() };
        found.read(types, strings).context("a type is cut off or of an unknown kind")?;
        Ok(found)
    }

    /// Every structure of `types`, `None` where that is malformed.
    fn read(&mut self, types: &'a [u8], strings: &'a [u8]) -> Option<()> {
        let mut rest = types;
        let mut number: u32 = 0;
        while !rest.is_empty() {
            number = number.checked_add(1)?;
            let (name, info) = (u32_at(rest, 0)?, u32_at(rest, 4)?);
            let (kind, count, flag) = (info >> 24 & 0x1f, (info & 0xffff) as usize, info >> 31 == 1);
            rest = rest.get(12..)?;
            let trailer = match kind {
                1 | 14 | 17 => 4,          // integer, variable, declaration tag
                2 | 7..=12 | 16 | 18 => 0, // pointers, names for types, functions, floats, type tags
                3 => 12,                   // array
                STRUCT | UNION | 15 | 19 => count * 12,
                6 | 13 => count * 8,
                _ => return None,
            };
            let body = rest.get(..trailer)?;
            rest = rest.get(trailer..)?;
            if kind == STRUCT || kind == UNION {
                let member = |member: &[u8]| {
                    let bits = u32_at(member, 8)?;
                    Some((string(strings, u32_at(member, 0)?)?, u32_at(member, 4)?, if flag { bits & 0x00ff_ffff } else { bits }))
                };
                let members = body.chunks_exact(12).map(member).collect::<Option<_>>()?;
                self.structures.insert(number, Structure { members });
                self.by_name.entry(string(strings, name)?).or_insert(number);
            }
        }
        Some(())
    }

    /// Bytes from the start of `structure` to the member at the end of the way.
    fn offset(&self, structure: &str, way: &[&str]) -> anyhow::Result<u32> {
        let mut within = self.by_name.get(structure.as_bytes()).copied();
        let mut bits = 0_u32;
        for member in way {
            let found = within.and_then(|number| self.member(number, member.as_bytes(), DEPTH));
            let Some((kind, offset)) = found else {
                bail!("this kernel's `struct {structure}` has no member `{}`", way.join("."));
            };
            bits = bits.saturating_add(offset);
            within = Some(kind);
        }
        if !bits.is_multiple_of(8) {
            bail!("this kernel's `struct {structure}` keeps `{}` in a bit field", way.join("."));
        }
        Ok(bits / 8)
    }

    /// Type and offset in bits of a member, also of a nameless structure within.
    fn member(&self, structure: u32, name: &[u8], depth: usize) -> Option<(u32, u32)> {
        let structure = self.structures.get(&structure)?;
        structure.members.iter().find_map(|(own, kind, bits)| {
            if *own == name {
                return Some((*kind, *bits));
            }
            let inner = if own.is_empty() && depth > 0 { self.member(*kind, name, depth - 1) } else { None };
            inner.map(|(kind, offset)| (kind, bits.saturating_add(offset)))
        })
    }
}

fn string(strings: &[u8], at: u32) -> Option<&[u8]> {
    strings.get(at as usize..)?.split(|byte| *byte == 0).next()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutations;

    /// `struct outer { int a; union { struct inner b; }; }`, `struct inner { int c; int d; }`.
    fn sample() -> Vec<u8> {
        let strings = b"\0outer\0inner\0a\0b\0c\0d\0int\0";
        let at = |name: &str| {
            let name = format!("\0{name}\0").into_bytes();
            u32::try_from(strings.windows(name.len()).position(|window| window == name).expect("there") + 1).expect("small")
        };
        let types = [
            [at("int"), 1 << 24, 4, 32].as_slice(),
            [at("inner"), STRUCT << 24 | 2, 8, at("c"), 1, 0, at("d"), 1, 32].as_slice(),
            [0, UNION << 24 | 1, 8, at("b"), 2, 0].as_slice(),
            [at("outer"), STRUCT << 24 | 2, 12, at("a"), 1, 0, 0, 3, 32].as_slice(),
        ]
        .concat();
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("small");
        let header = [u32::from(MAGIC) | 1 << 16, 24, 0, length(&types), length(&types), length(strings)];
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_are_found_also_within_what_has_no_name() {
        let bytes = sample();
        let types = Types::parse(&bytes).expect("BTF");
        assert_eq!(types.offset("outer", &["b", "d"]).expect("there"), 8);
        let missing = types.offset("outer", &["e"]).expect_err("not there").to_string();
        assert!(missing.contains("outer") && missing.contains("`e`"), "{missing}");
    }

    #[test]
    fn no_bytes_make_it_panic_or_go_on_for_ever() {
        mutations::each(&sample(), 50_000, |bytes| {
            let _offset = Types::parse(bytes).and_then(|types| types.offset("outer", &["b", "d"]));
        });
    }
}
