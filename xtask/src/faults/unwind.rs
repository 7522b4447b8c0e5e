//! One step up the stack, by the tables that every library has for it (.eh_frame).

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, LittleEndian, Register, RegisterRule, UnwindContext, UnwindSection, X86_64,
};
use object::{Object, ObjectSection};

use super::symbols::{Bytes, bytes_of, section};

/// Where a thread is, in addresses of its process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    /// The next instruction.
    pub instruction: u64,
    /// rsp.
    pub stack: u64,
    /// rbp.
    pub frame: u64,
}

/// How to find a caller: the register to begin with, what to add for the caller's stack pointer, and where the caller's rbp lies below that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    by_frame: bool,
    offset: i64,
    frame_at: Option<i64>,
}

/// The tables of one file.
pub(super) struct Unwinder {
    frames: EhFrame<Bytes>,
    header: gimli::ParsedEhFrameHdr<Bytes>,
    bases: BaseAddresses,
    known: HashMap<u64, Option<Rule>>,
}

impl Unwinder {
    /// Reads a file's tables.
    ///
    /// # Errors
    /// It is no ELF file, or has none.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let file = object::File::parse(bytes_of(path)?)?;
        let address = |name: &str| file.section_by_name(name).map(|section| section.address());
        let bases = BaseAddresses::default()
            .set_eh_frame_hdr(address(".eh_frame_hdr").with_context(|| format!("{} has no unwind tables", path.display()))?)
            .set_eh_frame(address(".eh_frame").with_context(|| format!("{} has no unwind tables", path.display()))?)
            .set_text(address(".text").unwrap_or(0));
        let frames = EhFrame::from(section(&file, ".eh_frame"));
        let header = section(&file, ".eh_frame_hdr");
        let header = EhFrameHdr::new(header.slice(), LittleEndian).parse(&bases, 8)?;
        Ok(Self { frames, header, bases, known: HashMap::new() })
    }

    /// The caller of the function that `spot` is in. The file is loaded `bias` above its own addresses.
    pub(super) fn caller(&mut self, spot: Spot, bias: u64, read: impl Fn(u64) -> Option<u64>) -> Option<Spot> {
        let address = spot.instruction.wrapping_sub(bias).wrapping_sub(1);
        let known = self.known.get(&address).copied();
        let rule = known.unwrap_or_else(|| self.rule(address));
        self.known.insert(address, rule);
        let rule = rule?;
        let stack = if rule.by_frame { spot.frame } else { spot.stack }.wrapping_add_signed(rule.offset);
        let frame = rule.frame_at.map_or(Some(spot.frame), |at| read(stack.wrapping_add_signed(at)))?;
        Some(Spot { instruction: read(stack.wrapping_sub(8))?, stack, frame })
    }

    fn rule(&self, address: u64) -> Option<Rule> {
        let table = self.header.table()?;
        let mut context = UnwindContext::new();
        let row = table.unwind_info_for_address(&self.frames, &self.bases, &mut context, address, EhFrame::cie_from_offset).ok()?;
        let is = |register: Register, which: Register| register == which;
        let (by_frame, offset) = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } if is(*register, X86_64::RSP) => (false, *offset),
            CfaRule::RegisterAndOffset { register, offset } if is(*register, X86_64::RBP) => (true, *offset),
            _ => return None,
        };
        let frame_at = match row.register(X86_64::RBP) {
            Some(RegisterRule::Offset(at)) => Some(at),
            _ => None,
        };
        Some(Rule { by_frame, offset, frame_at })
    }
}
