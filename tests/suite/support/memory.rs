//! What memory the real binary takes.

use super::binary::Server;

/// The memory of a process, as Linux accounts for it.
pub(crate) struct Memory {
    id: u32,
}

impl Memory {
    pub(crate) fn of(server: &Server) -> Memory {
        Memory {
            id: server.process.id(),
        }
    }

    /// Bytes of a line of `/proc/ID/status`.
    pub(crate) fn bytes(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.unwrap().trim_start_matches(':').trim();
        kib.strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
    }

    pub(crate) fn resident(&self) -> u64 {
        self.bytes("VmRSS")
    }

    /// By how much the memory exceeded its size before, at any time while `work` went on.
    pub(crate) async fn growth(&self, work: impl Future<Output = ()>) -> u64 {
        // Makes the peak what is resident now.
        std::fs::write(format!("/proc/{}/clear_refs", self.id), "5").unwrap();
        let before = self.resident();
        work.await;
        self.bytes("VmHWM").saturating_sub(before)
    }
}
