//! Gives an open library the first name that the bindings ask for.
//!
//! They would otherwise take whatever of that name the system's loader finds, such as another version of CUDA.
//! An alias is an empty library by that name which depends on the real one; the loader looks functions up through it.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libloading::Library;

use super::CudaLibrary;

/// Loads an alias for the library in `file`; `None` where no file can be written or this processor is not known.
///
/// The caller checks what the bindings get, so a failure here is not silent.
pub(super) fn load(library: CudaLibrary, file: &Path) -> Option<Library> {
    let name = cudarc::get_lib_name_candidates(library.stem()).into_iter().next()?;
    let image = image(name.as_bytes(), file.as_os_str().as_bytes())?;
    let path = write(&name, &image)?;
    let loaded = super::load(&path).ok();
    // What the loader mapped stays; a file that cannot be removed is in the folder for temporary files.
    let _ = std::fs::remove_file(&path);
    loaded
}

fn write(name: &str, image: &[u8]) -> Option<PathBuf> {
    /// Names that other processes, or this one before, may hold.
    const NAMES_MAX: u32 = 64;
    let folder = std::env::temp_dir();
    let folder = std::path::absolute(&folder).unwrap_or(folder);
    (0..NAMES_MAX).find_map(|number| {
        let path = folder.join(OsStr::new(&format!(".virnucpro-{}-{number}-{name}", std::process::id())));
        // Never follows a link that somebody laid there.
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path).ok()?;
        match file.write_all(image) {
            Ok(()) => Some(path),
            Err(_) => {
                let _ = std::fs::remove_file(&path);
                None
            }
        }
    })
}

/// The machine number of ELF files for this processor.
const MACHINE: Option<u16> = if cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
    Some(62)
} else if cfg!(all(target_arch = "aarch64", target_endian = "little")) {
    Some(183)
} else {
    None
};

/// An ELF library of one segment: its name, and the library that it needs.
///
/// The segment is not executable, so that it loads from a folder that forbids execution, and is writable because
/// the loader adjusts the dynamic section in place.
fn image(soname: &[u8], needed: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 64;
    const PROGRAM_HEADER: usize = 56;
    const PROGRAM_HEADERS: usize = 3;
    const SYMBOL: usize = 24;
    const DYNAMIC_ENTRIES: usize = 7;
    const DYNAMIC: usize = HEADER + PROGRAM_HEADERS * PROGRAM_HEADER;
    const SYMBOLS: usize = DYNAMIC + DYNAMIC_ENTRIES * 16;
    const STRINGS: usize = SYMBOLS + SYMBOL;
    /// No processor has larger pages.
    const PAGE: u64 = 0x1_0000;
    const READ_WRITE: u32 = 6;

    let mut strings = vec![0];
    let mut string = |text: &[u8]| {
        let offset = strings.len() as u64;
        strings.extend_from_slice(text);
        strings.push(0);
        offset
    };
    let (soname, needed) = (string(soname), string(needed));
    let total = (STRINGS + strings.len()) as u64;

    let mut image = Vec::new();
    image.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let half = |image: &mut Vec<u8>, number: u16| image.extend_from_slice(&number.to_le_bytes());
    let word = |image: &mut Vec<u8>, number: u32| image.extend_from_slice(&number.to_le_bytes());
    let long = |image: &mut Vec<u8>, number: u64| image.extend_from_slice(&number.to_le_bytes());
    half(&mut image, 3); // a shared object
    half(&mut image, MACHINE?);
    word(&mut image, 1); // version
    long(&mut image, 0); // no entry point
    long(&mut image, HEADER as u64); // program headers
    long(&mut image, 0); // no section headers
    word(&mut image, 0); // flags
    for number in [HEADER, PROGRAM_HEADER, PROGRAM_HEADERS, 64, 0, 0] {
        half(&mut image, number as u16);
    }
    let mut program_header = |kind: u32, offset: u64, size: u64, align: u64| {
        word(&mut image, kind);
        word(&mut image, READ_WRITE);
        for number in [offset, offset, offset, size, size, align] {
            long(&mut image, number);
        }
    };
    program_header(1, 0, total, PAGE); // all of the file is loaded
    program_header(2, DYNAMIC as u64, (DYNAMIC_ENTRIES * 16) as u64, 8); // the dynamic section
    program_header(0x6474_e551, 0, 0, 16); // without it the loader would want an executable stack
    let dynamic = [
        (1, needed),
        (14, soname),
        (5, STRINGS as u64),
        (6, SYMBOLS as u64),
        (10, strings.len() as u64),
        (11, SYMBOL as u64),
        (0, 0),
    ];
    for (tag, value) in dynamic {
        long(&mut image, tag);
        long(&mut image, value);
    }
    image.extend_from_slice(&[0; SYMBOL]);
    image.extend_from_slice(&strings);
    Some(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The C library is on every machine that runs this test, under a name that is not asked for here.
    #[test]
    fn an_alias_answers_to_its_name_with_the_functions_of_another_library() {
        let maths = super::super::load(Path::new("libm.so.6")).unwrap();
        let file = super::super::path_of(&maths, "cos").unwrap();
        let name = "libvirnucpro-alias-test.so";
        assert!(super::super::load(Path::new(name)).is_err());
        let image = image(name.as_bytes(), file.as_os_str().as_bytes()).unwrap();
        let path = write(name, &image).unwrap();
        let alias = super::super::load(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let by_name = super::super::load(Path::new(name)).unwrap();
        assert_eq!(super::super::address(&by_name, "cos"), super::super::address(&maths, "cos"));
        assert!(super::super::address(&by_name, "no_such_function").is_none());
        drop(alias);
    }
}
