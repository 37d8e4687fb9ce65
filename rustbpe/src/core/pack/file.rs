//! A file that goes to disk while it is written.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::core::memory;

/// A file that goes to disk while more is to come, so that little is left for the fsync at the end.
pub struct EagerFile {
    file: File,
    written: u64,
    begun: u64,
}

/// Bytes that are sent to disk together.
const TOGETHER: u64 = 8 << 20;

impl EagerFile {
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(EagerFile { file: File::create(path)?, written: 0, begun: 0 })
    }
}

impl Write for EagerFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.written += n as u64;
        if self.written - self.begun >= TOGETHER {
            memory::write_back(&self.file, self.begun, self.written - self.begun);
            self.begun = self.written;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_sent_to_disk_early_holds_all() {
        let path = std::env::temp_dir().join(format!("rustbpe-eager-{}", std::process::id()));
        let bytes: Vec<u8> = (0..TOGETHER as usize * 5 / 2).map(|i| (i >> 3) as u8).collect();
        let mut file = EagerFile::create(&path).unwrap();
        bytes.chunks(1 << 20).for_each(|some| file.write_all(some).unwrap());
        file.flush().unwrap();
        let found = std::fs::read(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(file.begun == 2 * TOGETHER && found.unwrap() == bytes);
    }
}
