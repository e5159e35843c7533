//! The engine's threads, and on which processors of the machine they run.
//!
//! A machine of several NUMA nodes has memory beside each of them, and what a thread writes first comes to lie
//! beside the node that it runs on. So the threads are spread over the nodes, each bound to all processors of its
//! own that this process may use: another job may have taken any single one. Weights, which all threads pack, then
//! lie about evenly on all nodes, and a thread's own activations on its own.
//!
//! On one node, with one thread, or where the system does not tell, threads run wherever the system likes.

use std::fs;
use std::io;
use std::path::Path;

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// Where Linux tells which processors a node has.
const NODES: &str = "/sys/devices/system/node";

/// Where Linux tells which processors share a core.
const CPUS: &str = "/sys/devices/system/cpu";

/// Processors that a set of them can name. Where there are more, the system does not tell which may be used.
const CPUS_MAX: usize = 1_024;

/// Starts `threads` threads, spread over the nodes of the machine.
///
/// # Errors
/// When the system refuses a thread.
pub(super) fn start(threads: usize) -> Result<ThreadPool, ThreadPoolBuildError> {
    let threads = threads.max(1);
    let allowed = allowed().unwrap_or_default();
    start_on(threads, places(threads, &nodes(Path::new(NODES), &allowed)))
}

/// Threads that suit the engine: one for each core that this process may use, as far as a container's limit goes.
///
/// Two threads of one core share what multiplies, and the caches that their blocks are made for.
pub fn auto() -> usize {
    let limit = std::thread::available_parallelism().map_or(1, usize::from);
    let cores = allowed().ok().and_then(|allowed| cores(Path::new(CPUS), &allowed));
    cores.map_or(limit, |cores| limit.min(cores))
}

/// How many cores the processors that are `allowed` are of; `None` unless the folder tells of each.
fn cores(folder: &Path, allowed: &[usize]) -> Option<usize> {
    let mut firsts = Vec::new();
    for cpu in allowed {
        let place = folder.join(format!("cpu{cpu}/topology/thread_siblings_list"));
        let siblings = cpu_list(&fs::read_to_string(place).ok()?)?;
        firsts.push(siblings.into_iter().min()?);
    }
    firsts.sort_unstable();
    firsts.dedup();
    (!firsts.is_empty()).then_some(firsts.len())
}

/// Starts `threads` threads, each on the processors of its place, if it has one.
fn start_on(threads: usize, places: Vec<Vec<usize>>) -> Result<ThreadPool, ThreadPoolBuildError> {
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("cpu-engine-{index}"))
        .start_handler(move |thread| {
            let Some(cpus) = places.get(thread) else { return };
            if let Err(error) = bind(cpus) {
                tracing::info!(thread, ?cpus, %error, "thread not bound to its node");
            }
        })
        .build()
}

/// The processors of each thread; empty where there is nothing to choose.
fn places(threads: usize, nodes: &[Vec<usize>]) -> Vec<Vec<usize>> {
    if threads < 2 || nodes.len() < 2 {
        return Vec::new();
    }
    divide(threads, nodes).into_iter().map(|node| nodes[node].clone()).collect()
}

/// The node of each thread, in proportion to their processors: each node has its share of the threads, rounded up or
/// down, and threads beside each other are on the same one.
fn divide(threads: usize, nodes: &[Vec<usize>]) -> Vec<usize> {
    let owners: Vec<usize> =
        nodes.iter().enumerate().flat_map(|(node, cpus)| cpus.iter().map(move |_| node)).collect();
    // The owner of the processor in the middle of the thread's part of all of them.
    (0..threads).map(|thread| owners[(2 * thread + 1) * owners.len() / (2 * threads)]).collect()
}

/// The processors of each node in `folder` that are `allowed`, for nodes that have any; nothing, unless every
/// allowed one is on one of them.
fn nodes(folder: &Path, allowed: &[usize]) -> Vec<Vec<usize>> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut nodes = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("node")?.parse::<usize>().ok());
        let Some(number) = number else { continue };
        let text = fs::read_to_string(entry.path().join("cpulist")).ok();
        let Some(mut cpus) = text.and_then(|text| cpu_list(&text)) else { return Vec::new() };
        cpus.retain(|cpu| allowed.contains(cpu));
        if !cpus.is_empty() {
            nodes.push((number, cpus));
        }
    }
    let told: usize = nodes.iter().map(|(_, cpus)| cpus.len()).sum();
    if told != allowed.len() {
        return Vec::new();
    }
    nodes.sort_unstable();
    nodes.into_iter().map(|(_, cpus)| cpus).collect()
}

/// Reads a list of processors as Linux writes it, `0-3,8-11`; `None` for anything else.
fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let (text, mut cpus) = (text.trim(), Vec::new());
    if text.is_empty() {
        return Some(cpus);
    }
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last {
            return None;
        }
        cpus.extend(first..=last.min(CPUS_MAX - 1));
    }
    Some(cpus)
}

/// The processors that this thread may use, and with it those that it starts.
#[cfg(target_os = "linux")]
fn allowed() -> io::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    Ok((0..CPUS_MAX).filter(|&cpu| set.is_set(cpu)).collect())
}

#[cfg(not(target_os = "linux"))]
fn allowed() -> io::Result<Vec<usize>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Has this thread run on `cpus` alone.
#[cfg(target_os = "linux")]
fn bind(cpus: &[usize]) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

#[cfg(not(target_os = "linux"))]
fn bind(_: &[usize]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder such as Linux keeps, with these lists.
    fn machine(lists: &[(usize, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (node, list) in lists {
            let node = folder.path().join(format!("node{node}"));
            fs::create_dir(&node).unwrap();
            fs::write(node.join("cpulist"), format!("{list}\n")).unwrap();
        }
        // What else is there.
        fs::create_dir(folder.path().join("power")).unwrap();
        fs::write(folder.path().join("possible"), "0-3\n").unwrap();
        fs::write(folder.path().join("node"), "0\n").unwrap();
        folder
    }

    /// Processors of each node that a process allowed these finds, and how many of `threads` each gets.
    fn spread(lists: &[(usize, &str)], allowed: &str, threads: usize) -> (Vec<Vec<usize>>, Vec<usize>) {
        let folder = machine(lists);
        let nodes = nodes(folder.path(), &cpu_list(allowed).unwrap());
        let places = places(threads, &nodes);
        let on = |node: &Vec<usize>| places.iter().filter(|place| *place == node).count();
        let counts = nodes.iter().map(on).collect();
        (nodes, counts)
    }

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(cpu_list("0-3,8-11\n"), Some(vec![0, 1, 2, 3, 8, 9, 10, 11]));
        assert_eq!(cpu_list("5\n"), Some(vec![5]));
        assert_eq!(cpu_list("\n"), Some(vec![]));
        assert_eq!(cpu_list("1022-18446744073709551615"), Some(vec![1_022, 1_023]));
        for text in ["0-", "-3", "3-1", "0,,1", "0-3:1/2", "all", "0x1"] {
            assert_eq!(cpu_list(text), None, "{text}");
        }
    }

    #[test]
    fn threads_are_spread_in_proportion() {
        let two = [(0, "0-3,8-11"), (1, "4-7,12-15")];
        assert_eq!(
            spread(&two, "0-15", 16),
            (vec![vec![0, 1, 2, 3, 8, 9, 10, 11], vec![4, 5, 6, 7, 12, 13, 14, 15]], vec![8, 8])
        );
        assert_eq!(spread(&two, "0-15", 2).1, [1, 1]);
        assert_eq!(spread(&two, "0-15", 5).1, [2, 3]);
        // More than there are processors.
        assert_eq!(spread(&two, "0-15", 40).1, [20, 20]);
        // A mask that leaves most of a node out.
        assert_eq!(
            spread(&two, "0-3,8-11,4-5", 10),
            (vec![vec![0, 1, 2, 3, 8, 9, 10, 11], vec![4, 5]], vec![8, 2])
        );
        assert_eq!(spread(&two, "0-3,8-11,4", 2).1, [2, 0]);
        let four = [(0, "0-1"), (1, "2-3"), (2, "4-5"), (3, "6-7")];
        assert_eq!(spread(&four, "0-7", 8).1, [2, 2, 2, 2]);
        assert_eq!(spread(&four, "0-7", 4).1, [1, 1, 1, 1]);
        assert_eq!(spread(&four, "0-7", 2).1.iter().sum::<usize>(), 2);
        // Two of four nodes, and numbers with a gap.
        assert_eq!(spread(&four, "2-3,6-7", 4), (vec![vec![2, 3], vec![6, 7]], vec![2, 2]));
        assert_eq!(
            spread(&[(8, "4-7"), (0, "0-3"), (16, "")], "0-7", 4),
            (vec![vec![0, 1, 2, 3], vec![4, 5, 6, 7]], vec![2, 2])
        );
    }

    #[test]
    fn every_node_has_its_share_rounded_up_or_down() {
        for sizes in [vec![4, 4], vec![1, 63], vec![3, 5, 7], vec![2, 2, 2, 2], vec![64, 48, 1, 1]] {
            let all: usize = sizes.iter().sum();
            let nodes: Vec<Vec<usize>> = sizes.iter().map(|&size| vec![0; size]).collect();
            for threads in 2..3 * all {
                let owners = divide(threads, &nodes);
                assert!(owners.len() == threads && owners.is_sorted());
                for (node, &size) in sizes.iter().enumerate() {
                    let count = owners.iter().filter(|&&owner| owner == node).count();
                    let share = threads * size / all..=(threads * size).div_ceil(all);
                    assert!(share.contains(&count), "{threads} on {sizes:?}: {count} on {node}");
                }
            }
        }
    }

    #[test]
    fn where_there_is_nothing_to_choose_threads_stay_free() {
        let two = [(0, "0-3"), (1, "4-7")];
        for (lists, allowed, threads) in [
            (&[(0, "0-7")][..], "0-7", 8),
            (&two, "0-7", 1),
            // A mask that leaves a node out.
            (&two, "4-7", 4),
            // Memory without processors.
            (&[(0, "0-7"), (1, "")], "0-7", 8),
            // What cannot be understood: a processor without a node, a list in another form.
            (&two, "0-8", 4),
            (&[(0, "0-3"), (1, "f0")], "0-7", 4),
            (&[], "0-7", 4),
        ] {
            let folder = machine(lists);
            let nodes = nodes(folder.path(), &cpu_list(allowed).unwrap());
            assert_eq!(places(threads, &nodes), Vec::<Vec<usize>>::new(), "{lists:?} {allowed} {threads}");
        }
        assert_eq!(nodes(Path::new("/nonexistent"), &[0, 1]), Vec::<Vec<usize>>::new());
        // The system does not tell what is allowed.
        assert_eq!(nodes(machine(&two).path(), &[]), Vec::<Vec<usize>>::new());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn threads_run_on_the_processors_of_their_place() {
        let all = allowed().unwrap();
        let half = all.len() / 2;
        let places = vec![all[..half.max(1)].to_vec(), all[half..].to_vec(), all[half..].to_vec()];
        let pool = start_on(3, places.clone()).unwrap();
        assert_eq!(pool.broadcast(|_| allowed().unwrap()), places);
        // The thread that starts them stays as it was.
        assert_eq!(allowed().unwrap(), all);
        // A processor that is not there: the thread runs all the same.
        let absent = (0..CPUS_MAX).rev().find(|cpu| !all.contains(cpu)).unwrap();
        let pool = start_on(1, vec![vec![absent]]).unwrap();
        assert_eq!(pool.broadcast(|_| allowed().unwrap()), [all]);
    }

    #[test]
    fn a_core_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        for (cpu, siblings) in [(0, "0,4"), (1, "1,5"), (2, "2-3"), (3, "2-3"), (4, "0,4"), (5, "1,5")] {
            let place = folder.path().join(format!("cpu{cpu}/topology"));
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("thread_siblings_list"), format!("{siblings}\n")).unwrap();
        }
        let cores = |allowed: &[usize]| cores(folder.path(), allowed);
        assert_eq!(cores(&[0, 1, 2, 3, 4, 5]), Some(3));
        assert_eq!(cores(&[0, 4]), Some(1));
        assert_eq!(cores(&[4, 5]), Some(2));
        assert_eq!(cores(&[0, 6]), None);
        assert_eq!(cores(&[]), None);
        fs::write(folder.path().join("cpu1/topology/thread_siblings_list"), "many").unwrap();
        assert_eq!(cores(&[0, 1]), None);
    }

    #[test]
    fn this_machine_has_a_thread_for_us() {
        let threads = auto();
        assert!(threads >= 1 && threads <= std::thread::available_parallelism().unwrap().get(), "{threads}");
    }
}
