//! How full the memory is that this process may use: its control group's, where a cluster or container set a
//! limit, else the machine's.
//!
//! The engine reports it after each batch, so that the orchestrator lends less before the kernel kills
//! anybody. Nothing here allocates more than a small file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Memory does not fill faster than this is worth looking at; reading takes some 50 µs.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Reads the share in use, not more often than [`LOOK_INTERVAL`].
#[derive(Debug)]
pub(crate) struct MemoryGauge {
    /// The control groups that have a limit, from the nearest on.
    groups: Vec<Group>,
    latest: Option<(Instant, Option<f32>)>,
}

/// A control group with a limit.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    usage: PathBuf,
    statistics: PathBuf,
    /// Names of the file cache, which can be dropped, in `statistics`.
    cache: [&'static str; 2],
    limit_bytes: u64,
}

impl MemoryGauge {
    pub(crate) fn new() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self { groups: limited_groups(&groups, Path::new("/sys/fs/cgroup"), machine_bytes()), latest: None }
    }

    /// Share of the memory in use, 0..=1; `None` where the system does not tell.
    pub(crate) fn share(&mut self) -> Option<f32> {
        if let Some((at, share)) = self.latest
            && at.elapsed() < LOOK_INTERVAL
        {
            return share;
        }
        // Of a job and its step either may be the fuller.
        let share = self.groups.iter().filter_map(group_share).max_by(f32::total_cmp).or_else(machine_share);
        self.latest = Some((Instant::now(), share));
        share
    }
}

/// Finds the limits below that of the machine. `groups`: the text of `/proc/self/cgroup`.
fn limited_groups(groups: &str, mounted_at: &Path, machine_bytes: u64) -> Vec<Group> {
    // number:controllers:path; version 2 has no controllers here, version 1 mounts each apart.
    let of = |wanted: &str| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            controllers.split(',').any(|name| name == wanted).then_some(path)
        })
    };
    let versions = [
        ("", "", "memory.max", "memory.current", ["inactive_file", "active_file"]),
        (
            "memory",
            "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            ["total_inactive_file", "total_active_file"],
        ),
    ];
    let found = versions.into_iter().map(|(controller, mount, limit, usage, cache)| {
        let top = mounted_at.join(mount);
        let own = of(controller).map(|path| top.join(path.trim_start_matches('/')));
        let folders =
            own.iter().flat_map(|own| own.ancestors()).take_while(|folder| folder.starts_with(&top));
        let limited = folders.filter_map(|folder| {
            // "max" is no number; version 1 writes a huge one instead.
            let limit_bytes = number(&folder.join(limit)).filter(|&bytes| bytes < machine_bytes)?;
            let (usage, statistics) = (folder.join(usage), folder.join("memory.stat"));
            Some(Group { usage, statistics, cache, limit_bytes })
        });
        limited.collect::<Vec<_>>()
    });
    found.into_iter().find(|groups| !groups.is_empty()).unwrap_or_default()
}

fn group_share(group: &Group) -> Option<f32> {
    let used = number(&group.usage)?;
    let statistics = fs::read_to_string(&group.statistics).unwrap_or_default();
    let cache = statistics.lines().filter_map(|line| {
        let (name, bytes) = line.split_once(' ')?;
        group.cache.contains(&name).then(|| bytes.trim().parse::<u64>().ok())?
    });
    Some(share(used.saturating_sub(cache.sum()), group.limit_bytes))
}

fn machine_share() -> Option<f32> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let (all, available) = (kib(&text, "MemTotal:")?, kib(&text, "MemAvailable:")?);
    Some(share(all.saturating_sub(available), all))
}

fn machine_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    kib(&text, "MemTotal:").map_or(u64::MAX, |kib| kib * 1024)
}

fn share(used: u64, all: u64) -> f32 {
    if all == 0 { 0.0 } else { (used as f64 / all as f64).min(1.0) as f32 }
}

fn kib(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok())
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_tells_how_full_it_is() {
        let share = MemoryGauge::new().share().unwrap();
        assert!(share > 0.0 && share <= 1.0, "{share}");
        assert!(machine_bytes() > 1 << 28);
    }

    #[test]
    fn the_fullest_limit_counts_and_cache_does_not() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let shares = |groups: &str, machine_bytes: u64| {
            let groups = limited_groups(groups, root.path(), machine_bytes);
            groups.iter().map(|group| group_share(group).unwrap()).collect::<Vec<_>>()
        };
        write("slurm/memory.max", "4000000\n");
        write("slurm/memory.current", "1000000\n");
        write("slurm/memory.stat", "anon 100\ninactive_file 0\n");
        write("slurm/job_7/memory.max", "1000000\n");
        write("slurm/job_7/step_0/memory.max", "max\n");
        write("slurm/job_7/memory.current", "950000\n");
        write(
            "slurm/job_7/memory.stat",
            "anon 100\ninactive_file 150000\nactive_file 50000\nactive_file_x 9\n",
        );
        let groups = "0::/slurm/job_7/step_0\n";
        assert_eq!(shares(groups, 1 << 30), [0.75, 0.25]);
        let gauge =
            |groups| MemoryGauge { groups: limited_groups(groups, root.path(), 1 << 30), latest: None };
        assert_eq!(gauge(groups).share(), Some(0.75));
        // Another step of the same job fills it.
        write("slurm/job_7/step_0/memory.max", "1000000\n");
        write("slurm/job_7/step_0/memory.current", "500000\n");
        assert_eq!(shares(groups, 1 << 30), [0.5, 0.75, 0.25]);
        assert_eq!(gauge(groups).share(), Some(0.75));
        // The first version, and a limit beyond the machine, which is none.
        write("memory/job/memory.limit_in_bytes", "400000\n");
        write("memory/job/memory.usage_in_bytes", "390000\n");
        write("memory/job/memory.stat", "total_inactive_file 0\ntotal_active_file 30000\n");
        let groups = "9:name=systemd:/\n4:cpu,memory:/job\n";
        assert_eq!(shares(groups, 1 << 30), [0.9]);
        assert!(shares(groups, 4000).is_empty());
        assert!(shares("", 1 << 30).is_empty());
    }
}
