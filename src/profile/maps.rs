//! What is mapped where in this process.

use std::io;
use std::path::Path;

/// Code of the program or of a library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub start: usize,
    pub end: usize,
    /// Where in the file it begins.
    pub offset: usize,
    /// The file, or a name in brackets.
    pub file: String,
}

impl Mapping {
    pub fn contains(&self, address: usize) -> bool {
        (self.start..self.end).contains(&address)
    }

    /// The file's name without its folders.
    pub fn name(&self) -> &str {
        Path::new(&self.file).file_name().and_then(|name| name.to_str()).unwrap_or(&self.file)
    }
}

/// Everything that is mapped as code, by address.
///
/// # Errors
/// When `/proc` is not there.
pub fn code() -> io::Result<Vec<Mapping>> {
    Ok(parse(&std::fs::read_to_string("/proc/self/maps")?))
}

/// The mapping of code that holds this address.
///
/// # Errors
/// When `/proc` is not there, or knows of none.
pub fn holding(address: usize) -> io::Result<Mapping> {
    code()?
        .into_iter()
        .find(|mapping| mapping.contains(address))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no mapping of the program's code"))
}

/// Lines such as `55d0c8a00000-55d0c8b00000 r-xp 00001000 fd:00 1234   /usr/bin/tallyd`.
fn parse(maps: &str) -> Vec<Mapping> {
    let mapping = |line: &str| {
        let (head, file) = match line.find(['/', '[']) {
            Some(at) => line.split_at(at),
            None => (line, ""),
        };
        let mut fields = head.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let hex = |digits| usize::from_str_radix(digits, 16).ok();
        let executable = fields.next()?.contains('x');
        let mapping = Mapping {
            start: hex(start)?,
            end: hex(end)?,
            offset: hex(fields.next()?)?,
            file: file.to_owned(),
        };
        executable.then_some(mapping)
    };
    maps.lines().filter_map(mapping).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_found_by_its_address() {
        let maps = "\
            55d0c8a00000-55d0c8b00000 r--p 00000000 fd:00 1234    /opt/my tools/tallyd\n\
            55d0c8b00000-55d0c8c00000 r-xp 00100000 fd:00 1234    /opt/my tools/tallyd\n\
            7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \n\
            7f0000002000-7f0000003000 r-xp 00000000 00:00 0 \n\
            7fff00000000-7fff00002000 r-xp 00000000 00:00 0       [vdso]\n\
            nonsense\n";
        let [program, nameless, vdso] = &parse(maps)[..] else { panic!("{:?}", parse(maps)) };
        assert_eq!(
            (program.start, program.end, program.offset, program.file.as_str()),
            (0x55d0_c8b0_0000, 0x55d0_c8c0_0000, 0x10_0000, "/opt/my tools/tallyd")
        );
        assert_eq!([program.name(), nameless.name(), vdso.name()], ["tallyd", "", "[vdso]"]);
        assert!(program.contains(0x55d0_c8b0_0000) && !program.contains(0x55d0_c8c0_0000));
    }

    #[test]
    fn this_very_function_is_in_a_mapping() {
        let here = this_very_function_is_in_a_mapping as fn() as usize;
        let mapping = holding(here).expect("one");
        assert_eq!(std::fs::canonicalize(mapping.file).ok(), std::env::current_exe().ok());
        holding(1).expect_err("nothing is there");
    }
}
