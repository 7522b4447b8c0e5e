//! The library's machine code and its debug information: which line makes a system call, and who called that line.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use addr2line::Context as Lines;
use anyhow::{Context, Result, ensure};
use gimli::{EndianSlice, LittleEndian};
use object::{Object, ObjectSection, ObjectSymbol};

use super::site::{Place, Site};

/// A part of a file that stays in memory.
pub(super) type Bytes = EndianSlice<'static, LittleEndian>;

/// One function that is active at an address; the innermost of several that were inlined comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Its name; the innermost has none.
    pub function: String,
    /// From the crate's directory on.
    pub file: String,
    /// Where in it.
    pub line: u32,
}

impl Frame {
    /// Whether it belongs to the library's only door to the kernel.
    fn is_door(&self) -> bool {
        self.file.starts_with("tssx-core/src/sys/") || self.file == "tssx-core/src/sys.rs"
    }

    /// Whether it belongs to the library's only list of libc's functions.
    fn is_next(&self) -> bool {
        self.file == "tssx-preload/src/next.rs"
    }

    fn is_ours(&self) -> bool {
        self.file.starts_with("tssx-")
    }
}

/// The library as a file.
pub(super) struct Symbols {
    /// As the kernel names it in a process's mappings.
    pub path: PathBuf,
    lines: Lines<Bytes>,
    known: RefCell<HashMap<u64, Rc<[Frame]>>>,
}

/// A file's bytes for the rest of this program's life: few files, and everything here points into them.
pub(super) fn bytes_of(path: &Path) -> Result<&'static [u8]> {
    Ok(Box::leak(std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?.into_boxed_slice()))
}

/// A section, uncompressed; nothing where there is none.
pub(super) fn section(file: &object::File<'static>, name: &str) -> Bytes {
    let data = file.section_by_name(name).and_then(|section| section.data().ok());
    EndianSlice::new(data.unwrap_or(&[]), LittleEndian)
}

impl Symbols {
    /// Reads the library.
    ///
    /// # Errors
    /// It is no ELF file, or has no debug information.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let path = path.canonicalize().with_context(|| format!("no library {}", path.display()))?;
        let file = object::File::parse(bytes_of(&path)?)?;
        let dwarf = gimli::Dwarf::load(|id| Ok::<_, gimli::Error>(section(&file, id.name())))?;
        let lines = Lines::from_dwarf(dwarf)?;
        Ok(Self { path, lines, known: RefCell::default() })
    }

    /// What is active at an address of the file. For a return address, give the one before.
    pub(super) fn frames(&self, address: u64) -> Rc<[Frame]> {
        if let Some(frames) = self.known.borrow().get(&address) {
            return Rc::clone(frames);
        }
        let frames: Rc<[Frame]> = self.look_up(address).unwrap_or_default().into();
        self.known.borrow_mut().insert(address, Rc::clone(&frames));
        frames
    }

    fn look_up(&self, address: u64) -> Result<Vec<Frame>> {
        let mut found = Vec::new();
        let mut frames = self.lines.find_frames(address).skip_all_loads()?;
        while let Some(frame) = frames.next()? {
            let function = frame.function.as_ref().and_then(|function| function.demangle().ok()).unwrap_or_default();
            let (file, line) = frame.location.as_ref().map_or(("", 0), |at| (at.file.unwrap_or_default(), at.line.unwrap_or(0)));
            found.push(Frame { function: without_hash(&function), file: from_crate(file), line });
        }
        Ok(found)
    }

    /// Whether the address belongs to a function of the door that was not inlined, so that its caller is what we want to know.
    pub(super) fn is_door(&self, address: u64) -> bool {
        self.frames(address).iter().rfind(|frame| frame.is_ours()).is_some_and(Frame::is_door)
    }

    /// The place from which a call was made: of the addresses, the innermost first, what is active at them.
    pub(super) fn place(&self, chain: &[u64]) -> Place {
        let frames: Vec<Frame> = chain.iter().flat_map(|address| self.frames(*address).to_vec()).collect();
        let ours: Vec<&Frame> = frames.iter().filter(|frame| frame.is_ours()).collect();
        let through = ours.iter().take_while(|frame| frame.is_door() || frame.is_next()).count();
        let name = |frame: &Frame| frame.function.rsplit("::").next().unwrap_or_default().to_owned();
        let named = |frame: &&&Frame| !frame.function.is_empty() && !frame.function.contains('{');
        let door = ours.iter().take(through).rfind(named);
        let own_work = |frame: &&&Frame| named(frame) && !["call", "patiently"].contains(&name(frame).as_str());
        let innermost = ours.iter().take(through).find(own_work);
        let outer = ours.get(through);
        let function = ours.iter().skip(through).find(named);
        Place {
            door: door.map(|frame| name(frame)).unwrap_or_default(),
            innermost: innermost.map(|frame| name(frame)).unwrap_or_default(),
            door_line: ours.get(1).filter(|_| through > 1).map_or(0, |frame| frame.line),
            file: outer.map(|frame| frame.file.clone()).unwrap_or_default(),
            line: outer.map_or(0, |frame| frame.line),
            function: function.map(|frame| name(frame)).unwrap_or_default(),
        }
    }

    /// Every place in the library that makes a system call itself.
    ///
    /// # Errors
    /// No such instruction is found: the debug information is not what this reads.
    pub(super) fn own_sites(&self) -> Result<BTreeSet<Site>> {
        let file = object::File::parse(bytes_of(&self.path)?)?;
        let text = file.section_by_name(".text").context("the library has no code")?;
        let (code, base) = (text.data()?, text.address());
        let starts: Vec<u64> = file.symbols().filter(ObjectSymbol::is_definition).map(|symbol| symbol.address()).collect();
        let mut sites = BTreeSet::new();
        for (offset, _) in code.windows(2).enumerate().filter(|(_, bytes)| *bytes == [0x0f, 0x05]) {
            let address = base + offset as u64;
            // Two bytes in the middle of something else belong to no such function.
            if self.frames(address).first().is_some_and(Frame::is_door) {
                self.add_callers(code, base, &starts, &[address], &mut sites);
            }
        }
        ensure!(!sites.is_empty(), "{} shows no system call: was it built without debug information?", self.path.display());
        Ok(sites)
    }

    fn add_callers(&self, code: &[u8], base: u64, starts: &[u64], chain: &[u64], sites: &mut BTreeSet<Site>) {
        let Some(&last) = chain.last() else { return };
        if !self.is_door(last) || chain.len() > 4 {
            sites.insert(Site { own: true, place: self.place(chain) });
            return;
        }
        let start = starts.iter().copied().filter(|start| *start <= last).max().unwrap_or(0);
        // `call` and `jmp` with a 32-bit distance from the next instruction.
        for (offset, bytes) in code.windows(5).enumerate().filter(|(_, bytes)| matches!(bytes, [0xe8 | 0xe9, ..])) {
            let distance = bytes.get(1..).and_then(|word| word.try_into().ok()).map_or(0, i32::from_le_bytes);
            let next = base + offset as u64 + 5;
            if next.wrapping_add_signed(i64::from(distance)) == start {
                let longer: Vec<u64> = chain.iter().copied().chain([next - 1]).collect();
                self.add_callers(code, base, starts, &longer, sites);
            }
        }
    }
}

fn without_hash(function: &str) -> String {
    let hash = |tail: &str| tail.len() == 17 && tail.starts_with('h') && tail.bytes().skip(1).all(|byte| byte.is_ascii_hexdigit());
    function.rsplit_once("::").filter(|(_, tail)| hash(tail)).map_or(function, |(head, _)| head).to_owned()
}

/// The path from the crate's directory on; others as they are.
fn from_crate(file: &str) -> String {
    let at = ["tssx-core/src/", "tssx-preload/src/"].into_iter().filter_map(|name| file.rfind(name)).max();
    at.and_then(|at| file.get(at..)).unwrap_or(file).to_owned()
}
