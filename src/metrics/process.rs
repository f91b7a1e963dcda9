//! The `process_*` metrics, read from `/proc`.
//!
//! Text in, numbers out; [`read`] is the only part that touches files. Where there is no `/proc`
//! nothing is read and the families are absent, which is not zero.
//!
//! Source: proc(5), and the client library guidelines of Prometheus for names and units.

use std::fs;

/// The kernel's clock ticks per second as `/proc` states times, on every architecture that Rust
/// has a standard library for.
const TICKS_PER_SECOND: f64 = 100.0;

/// What `/proc` says of this process; what could not be read is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Reading {
    /// User and system time spent.
    pub cpu_seconds: Option<f64>,
    /// Resident memory.
    pub resident_bytes: Option<f64>,
    /// Virtual memory.
    pub virtual_bytes: Option<f64>,
    /// Threads.
    pub threads: Option<f64>,
    /// Open file descriptors.
    pub open_fds: Option<f64>,
    /// How many file descriptors may be open; absent if unlimited.
    pub max_fds: Option<f64>,
    /// When the process started, since 1970.
    pub start_time_seconds: Option<f64>,
}

/// Reads the numbers of this process.
pub fn read() -> Reading {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let open_fds = fs::read_dir("/proc/self/fd").ok().map(|entries| {
        // The directory being read is one of them.
        let count = entries.count().saturating_sub(1);
        u32::try_from(count).map_or(f64::MAX, f64::from)
    });
    Reading {
        open_fds,
        ..parse(
            &text("/proc/self/stat"),
            &text("/proc/self/status"),
            &text("/proc/self/limits"),
            &text("/proc/stat"),
        )
    }
}

/// Takes the numbers out of `/proc/self/stat`, `/proc/self/status`, `/proc/self/limits` and
/// `/proc/stat`.
fn parse(stat: &str, status: &str, limits: &str, system: &str) -> Reading {
    // The name in parentheses can hold anything, so fields are counted from after it: the state,
    // third in the manual, is number 0 here.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_ascii_whitespace().collect())
        .unwrap_or_default();
    let ticks = |number: usize| number_at(fields.get(number).copied());
    let kilobytes = |name: &str| number_at(value_of(status, name)).map(|number| number * 1024.0);
    let started = ticks(19).zip(number_at(value_of(system, "btime")));
    Reading {
        cpu_seconds: ticks(11)
            .zip(ticks(12))
            .map(|(user, kernel)| (user + kernel) / TICKS_PER_SECOND),
        resident_bytes: kilobytes("VmRSS:"),
        virtual_bytes: kilobytes("VmSize:"),
        threads: number_at(value_of(status, "Threads:")),
        open_fds: None,
        max_fds: number_at(value_of(limits, "Max open files")),
        start_time_seconds: started.map(|(ticks, boot)| boot + ticks / TICKS_PER_SECOND),
    }
}

/// The word that follows `name` at the start of a line.
fn value_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()
}

fn number_at(word: Option<&str>) -> Option<f64> {
    word?.parse::<u64>().ok()?.to_string().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "42 (a) b) S 1 42 42 0 -1 4194560 900 0 3 0 250 50 0 0 20 0 7 0 12345 \
                        1000000 200 18446744073709551615 1 1 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0";
    const STATUS: &str =
        "Name:\ta) b\nVmPeak:\t  2000 kB\nVmSize:\t  1000 kB\nVmRSS:\t   500 kB\nThreads:\t7\n";
    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
                          Max open files            1024                 524288               files     \n";

    #[test]
    fn the_numbers_are_found() {
        let reading = parse(STAT, STATUS, LIMITS, "cpu  1 2 3\nbtime 1700000000\n");
        assert_eq!(
            reading,
            Reading {
                cpu_seconds: Some(3.0),
                resident_bytes: Some(512_000.0),
                virtual_bytes: Some(1_024_000.0),
                threads: Some(7.0),
                open_fds: None,
                max_fds: Some(1024.0),
                start_time_seconds: Some(1_700_000_123.45),
            }
        );
    }

    #[test]
    fn what_is_missing_or_unlimited_is_absent() {
        assert_eq!(parse("", "", "", ""), Reading::default());
        let unlimited =
            "Max open files            unlimited            unlimited            files\n";
        assert_eq!(parse("", "", unlimited, ""), Reading::default());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_can_be_read() {
        let reading = read();
        assert!(reading.resident_bytes > Some(0.0), "{reading:?}");
        assert!(reading.open_fds > Some(0.0), "{reading:?}");
        assert!(reading.start_time_seconds > Some(1e9), "{reading:?}");
    }
}
