//! C streams on a connection (`FILE`), and the calls that move bytes without the program's memory.
#![allow(unsafe_code, reason = "calls the C functions under test directly; every pointer comes from a live slice or local")]

use std::ffi::{CStr, CString};
use std::ptr::null_mut;

use libc::{FILE, c_char, c_int, c_uint};

use crate::sys::{Answer, answer, narrow, vector};

unsafe extern "C" {
    // stdio.h and unistd.h; the libc crate does not declare all of them.
    fn getline(line: *mut *mut c_char, room: *mut usize, stream: *mut FILE) -> isize;
    fn fprintf(stream: *mut FILE, format: *const c_char, ...) -> c_int;
    fn ungetc(byte: c_int, stream: *mut FILE) -> c_int;
}

/// A C stream. It is not closed when it is dropped.
#[derive(Clone, Copy)]
pub(crate) struct Stream(*mut FILE);

/// What a stream says of its state.
pub(crate) type State = (&'static str, bool, bool);

impl Stream {
    /// `fdopen`.
    pub(crate) fn open(fd: i32, mode: &CStr) -> Result<Self, &'static str> {
        // SAFETY: a live string.
        let stream = unsafe { libc::fdopen(fd, mode.as_ptr()) };
        if stream.is_null() { Err(answer(-1).expect_err("an errno")) } else { Ok(Self(stream)) }
    }

    /// `getline`, without the error.
    pub(crate) fn line(self) -> Option<String> {
        let (mut line, mut room) = (null_mut(), 0);
        // SAFETY: getline allocates the line, which is copied before it is freed.
        unsafe {
            let length = getline(&raw mut line, &raw mut room, self.0);
            let text = (length >= 0).then(|| CStr::from_ptr(line).to_string_lossy().into_owned());
            libc::free(line.cast());
            text
        }
    }

    /// `fgets` into room for `room` bytes.
    pub(crate) fn gets(self, room: c_int) -> Option<String> {
        let mut into = vec![0_u8; room as usize];
        // SAFETY: a live buffer of that length, which fgets ends with NUL.
        let got = unsafe { libc::fgets(into.as_mut_ptr().cast(), room, self.0) };
        (!got.is_null()).then(|| CStr::from_bytes_until_nul(&into).expect("ended").to_string_lossy().into_owned())
    }

    /// `fread` of up to `size` bytes.
    pub(crate) fn read(self, size: usize) -> String {
        let mut into = vec![0_u8; size];
        // SAFETY: a live buffer of that length.
        let got = unsafe { libc::fread(into.as_mut_ptr().cast(), 1, size, self.0) };
        String::from_utf8_lossy(&into[..got]).into_owned()
    }

    /// `fgetc`, and `ungetc` of what came.
    pub(crate) fn look(self) -> c_int {
        // SAFETY: an open stream.
        unsafe {
            let byte = libc::fgetc(self.0);
            ungetc(byte, self.0)
        }
    }

    /// `fprintf(stream, "%s %d\n", …)`.
    pub(crate) fn print(self, text: &str, number: c_int) -> c_int {
        let text = CString::new(text).expect("no NUL");
        // SAFETY: the format takes a string and an int, which it gets.
        unsafe { fprintf(self.0, c"%s %d\n".as_ptr(), text.as_ptr(), number) }
    }

    /// `fputs`.
    pub(crate) fn put(self, text: &str) -> bool {
        let text = CString::new(text).expect("no NUL");
        // SAFETY: a live string.
        unsafe { libc::fputs(text.as_ptr(), self.0) >= 0 }
    }

    /// `fwrite`.
    pub(crate) fn write(self, bytes: &[u8]) -> usize {
        // SAFETY: a live slice.
        unsafe { libc::fwrite(bytes.as_ptr().cast(), 1, bytes.len(), self.0) }
    }

    /// `fflush`.
    pub(crate) fn flush(self) -> Answer {
        // SAFETY: an open stream.
        narrow(unsafe { libc::fflush(self.0) })
    }

    /// `setvbuf` without a buffer of ours.
    pub(crate) fn buffer(self, how: c_int) -> Answer {
        // SAFETY: a null buffer lets libc allocate.
        narrow(unsafe { libc::setvbuf(self.0, null_mut(), how, 0) })
    }

    /// `fileno`, `feof` and `ferror`.
    pub(crate) fn state(self, fd: i32) -> State {
        // SAFETY: an open stream.
        unsafe {
            let same = if libc::fileno(self.0) == fd { "same number" } else { "another number" };
            (same, libc::feof(self.0) != 0, libc::ferror(self.0) != 0)
        }
    }

    /// `clearerr`.
    pub(crate) fn clear(self) {
        // SAFETY: an open stream.
        unsafe { libc::clearerr(self.0) };
    }

    /// `fseek` from the start: a stream on a socket cannot.
    pub(crate) fn seek(self) -> Answer {
        // SAFETY: an open stream.
        narrow(unsafe { libc::fseek(self.0, 3, libc::SEEK_SET) })
    }

    /// `freopen` onto a file.
    pub(crate) fn reopen(self, path: &str, mode: &CStr) -> bool {
        let path = CString::new(path).expect("no NUL");
        // SAFETY: live strings and an open stream.
        !unsafe { libc::freopen(path.as_ptr(), mode.as_ptr(), self.0) }.is_null()
    }

    /// `fclose`.
    pub(crate) fn close(self) -> Answer {
        // SAFETY: the cases close each stream once.
        narrow(unsafe { libc::fclose(self.0) })
    }
}

/// What a command printed, by `popen`, and its exit code.
pub(crate) fn popen(command: &str) -> (String, c_int) {
    let command = CString::new(command).expect("no NUL");
    // SAFETY: live strings; the stream is closed by pclose.
    unsafe {
        let stream = libc::popen(command.as_ptr(), c"r".as_ptr());
        let text = Stream(stream).read(1000);
        (text, libc::WEXITSTATUS(libc::pclose(stream)))
    }
}

/// A command's exit code, by `system`.
pub(crate) fn system(command: &str) -> c_int {
    let command = CString::new(command).expect("no NUL");
    // SAFETY: a live string.
    libc::WEXITSTATUS(unsafe { libc::system(command.as_ptr()) })
}

/// `splice` with flags and without offsets.
pub(crate) fn splice(from: i32, to: i32, count: usize, flags: c_uint) -> Answer {
    // SAFETY: null offsets are allowed for pipes and sockets.
    answer(unsafe { libc::splice(from, null_mut(), to, null_mut(), count, flags) })
}

/// `splice` with an offset on both sides, which neither a pipe nor a socket has.
pub(crate) fn splice_at(from: i32, to: i32, count: usize) -> Answer {
    let (mut first, mut second) = (0, 0);
    // SAFETY: live offsets.
    answer(unsafe { libc::splice(from, &raw mut first, to, &raw mut second, count, 0) })
}

/// `tee`.
pub(crate) fn tee(from: i32, to: i32, count: usize) -> Answer {
    // SAFETY: takes no pointer.
    answer(unsafe { libc::tee(from, to, count, 0) })
}

/// `vmsplice`.
pub(crate) fn vmsplice(to: i32, from: &[u8]) -> Answer {
    let part = vector(from);
    // SAFETY: one live vector of a slice that the cases do not change before it is read.
    answer(unsafe { libc::vmsplice(to, &raw const part, 1, 0) })
}

/// `copy_file_range`.
pub(crate) fn copy_range(from: i32, to: i32, count: usize) -> Answer {
    // SAFETY: null offsets are allowed.
    answer(unsafe { libc::copy_file_range(from, null_mut(), to, null_mut(), count, 0) })
}

/// `sendfile` from an offset, which it moves.
pub(crate) fn sendfile_at(to: i32, from: i32, offset: i64, count: usize) -> (Answer, i64) {
    let mut offset = offset;
    // SAFETY: a live offset.
    (answer(unsafe { libc::sendfile(to, from, &raw mut offset, count) }), offset)
}
