//! Where the running kernel keeps a structure's members, by its BTF (`/sys/kernel/btf/vmlinux`).
//!
//! Rust emits no CO-RE relocations and aya keeps its own reader private, so this one reads what the kernel programs need and
//! nothing else: named structures and the byte offsets of named members, also through members without a name. Whatever does not
//! look as the format says gives `None`; nothing here trusts a length.

use std::collections::{HashMap, HashSet};

/// The kinds of BTF types, with bytes of each that follow the common 12: a part for the type, and one for each of its `vlen` items.
const FOLLOWING: [(usize, usize); 20] = [
    (0, 0),  // void
    (4, 0),  // int
    (0, 0),  // pointer
    (12, 0), // array
    (0, 12), // struct
    (0, 12), // union
    (0, 8),  // enum
    (0, 0),  // forward
    (0, 0),  // typedef
    (0, 0),  // volatile
    (0, 0),  // const
    (0, 0),  // restrict
    (0, 0),  // function
    (0, 8),  // function prototype
    (4, 0),  // variable
    (0, 12), // data section
    (0, 0),  // float
    (4, 0),  // declaration tag
    (0, 0),  // type tag
    (0, 12), // enum of 64 bits
];
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const TYPEDEF: u32 = 8;
const FUNCTION: u32 = 12;
/// Members without a name may lie in each other, and type definitions name each other; nothing in the kernel goes deeper.
const DEPTH: u32 = 8;

/// The kernel's types.
pub(crate) struct KernelTypes {
    bytes: Vec<u8>,
    strings: usize,
    /// Where each type begins; the first, void, has no bytes.
    types: Vec<usize>,
    structs: HashMap<Vec<u8>, u32>,
    typedefs: HashSet<Vec<u8>>,
    functions: HashSet<Vec<u8>>,
}

impl KernelTypes {
    /// Reads the types of the running kernel; `None` if it shows none.
    pub(crate) fn of_running_kernel() -> Option<Self> {
        Self::parse(std::fs::read("/sys/kernel/btf/vmlinux").ok()?)
    }

    /// Reads BTF, little-endian as the kernel of this machine writes it.
    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let word = |at: usize| word(&bytes, at);
        if bytes.get(..2)? != 0xeb9f_u16.to_ne_bytes() {
            return None;
        }
        let header = word(4)? as usize;
        let (type_at, type_bytes, strings) = (word(8)? as usize, word(12)? as usize, word(16)? as usize);
        let mut at = header.checked_add(type_at)?;
        let end = at.checked_add(type_bytes)?;
        let mut read = Self { strings: header.checked_add(strings)?, types: vec![0], ..Self::empty() };
        let mut named = Vec::new();
        while at < end {
            let info = word(at.checked_add(4)?)?;
            let (kind, items) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let (own, each) = *FOLLOWING.get(kind as usize)?;
            if matches!(kind, STRUCT | TYPEDEF | FUNCTION) {
                named.push((kind, u32::try_from(read.types.len()).ok()?, word(at)?));
            }
            read.types.push(at);
            at = at.checked_add(12 + own + each * items)?;
        }
        read.bytes = bytes;
        for (kind, id, name) in named {
            let Some(name) = read.string(name).filter(|name| !name.is_empty()).map(<[u8]>::to_vec) else { continue };
            match kind {
                STRUCT => drop(read.structs.entry(name).or_insert(id)),
                TYPEDEF => drop(read.typedefs.insert(name)),
                _ => drop(read.functions.insert(name)),
            }
        }
        Some(read)
    }

    fn empty() -> Self {
        Self {
            bytes: Vec::new(),
            strings: 0,
            types: Vec::new(),
            structs: HashMap::new(),
            typedefs: HashSet::new(),
            functions: HashSet::new(),
        }
    }

    /// Whether the kernel has a function of that name which can be attached to.
    pub(crate) fn has_function(&self, name: &str) -> bool {
        self.functions.contains(name.as_bytes())
    }

    /// Whether the kernel has a type definition of that name.
    pub(crate) fn has_type(&self, name: &str) -> bool {
        self.typedefs.contains(name.as_bytes())
    }

    /// Bytes from the beginning of `structure` to the member that `path` leads to, each step a member of the one before.
    pub(crate) fn offset(&self, structure: &str, path: &[&str]) -> Option<u64> {
        let mut id = *self.structs.get(structure.as_bytes())?;
        let mut offset = 0;
        for step in path {
            let (bits, inner) = self.member(id, step, DEPTH)?;
            if bits % 8 != 0 {
                return None; // a bit field
            }
            offset += u64::from(bits / 8);
            id = inner;
        }
        Some(offset)
    }

    /// Bits to a member of a structure or union, and its type.
    fn member(&self, id: u32, name: &str, depth: u32) -> Option<(u32, u32)> {
        let id = self.behind_typedefs(id)?;
        let at = *self.types.get(id as usize)?;
        let info = word(&self.bytes, at + 4)?;
        if id == 0 || !matches!(info >> 24 & 0x1f, STRUCT | UNION) {
            return None;
        }
        let has_bit_fields = info >> 31 == 1;
        for index in 0..(info & 0xffff) as usize {
            let member = at + 12 + index * 12;
            let (own, inner) = (word(&self.bytes, member)?, word(&self.bytes, member + 4)?);
            let place = word(&self.bytes, member + 8)?;
            // With bit fields, the upper byte is the field's width.
            let bits = if has_bit_fields { place & 0x00ff_ffff } else { place };
            let own = self.string(own)?;
            if own == name.as_bytes() {
                return (!has_bit_fields || place >> 24 == 0).then_some((bits, inner));
            }
            if own.is_empty()
                && depth > 0
                && let Some((deeper, found)) = self.member(inner, name, depth - 1)
            {
                return Some((bits.checked_add(deeper)?, found));
            }
        }
        None
    }

    /// The type that a chain of type definitions ends with.
    fn behind_typedefs(&self, mut id: u32) -> Option<u32> {
        for _ in 0..DEPTH {
            let at = *self.types.get(id as usize)?;
            if word(&self.bytes, at + 4)? >> 24 & 0x1f != TYPEDEF {
                return Some(id);
            }
            id = word(&self.bytes, at + 8)?;
        }
        None
    }

    fn string(&self, at: u32) -> Option<&[u8]> {
        let rest = self.bytes.get(self.strings.checked_add(at as usize)?..)?;
        rest.split(|byte| *byte == 0).next()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BTF of one structure `outer`: 4 bytes without a name that hold `inner`, then `flag` of one bit, then `last`.
    fn sample() -> Vec<u8> {
        let strings = b"\0outer\0inner\0flag\0last\0";
        let kind = |kind: u32, bit_fields: u32, items: u32| bit_fields << 31 | kind << 24 | items;
        let types = [
            vec![0, kind(STRUCT, 0, 1), 4],  // type 1: no name
            vec![7, 0, 0],                   // `inner`, at 0
            vec![1, kind(STRUCT, 1, 3), 16], // type 2: `outer`
            vec![0, 1, 32],                  // type 1, at byte 4
            vec![13, 0, 1 << 24 | 64],       // `flag`, one bit at byte 8
            vec![18, 0, 96],                 // `last`, at byte 12
        ];
        let types: Vec<u8> = types.concat().iter().flat_map(|word| word.to_ne_bytes()).collect();
        let lengths = [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32];
        let mut bytes = 0xeb9f_u16.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        bytes.extend(lengths.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_are_found_also_in_parts_without_a_name() {
        let types = KernelTypes::parse(sample()).expect("types");
        assert_eq!(types.offset("outer", &["inner"]), Some(4));
        assert_eq!(types.offset("outer", &["last"]), Some(12));
        for (structure, member) in [("outer", "flag"), ("outer", "none"), ("none", "last"), ("", "inner")] {
            assert_eq!(types.offset(structure, &[member]), None, "{structure} {member}");
        }
    }

    #[test]
    fn what_is_cut_off_or_changed_is_refused_or_read_without_a_panic() {
        let whole = sample();
        crate::mutations::each(&whole, 50_000, |bytes| {
            let _offset = KernelTypes::parse(bytes.to_vec()).and_then(|types| types.offset("outer", &["last"]));
        });
        for length in 0..whole.len() {
            if let Some(types) = KernelTypes::parse(whole[..length].to_vec()) {
                let _offset = types.offset("outer", &["last"]);
            }
        }
        for at in 0..whole.len() {
            for value in [0, 1, 4, 0x1f, 0x7f, 0xff] {
                let mut changed = whole.clone();
                changed[at] = value;
                if let Some(types) = KernelTypes::parse(changed) {
                    let _offset = types.offset("outer", &["last"]);
                }
            }
        }
    }

    #[test]
    fn the_running_kernel_tells_where_a_socket_has_its_type() {
        let types = KernelTypes::of_running_kernel().expect("this kernel shows its types");
        // `state` and `type` have been the first two since before BTF: an enum and a short.
        assert_eq!(types.offset("socket", &["type"]), Some(4));
        assert_eq!(types.offset("sock", &["__sk_common", "skc_family"]), types.offset("sock_common", &["skc_family"]));
        assert!(types.has_function("vfs_read") && !types.has_function("tssx_no_such_function"));
    }
}
