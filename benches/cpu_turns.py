#!/usr/bin/env python3
"""The CPU engine and other programs by short turns, with a look at the machine between any two.

  benches/cpu_turns.py --harness bench_cpu.py --venvs DIR --models DIR --cache DIR --size 650m --fasta FASTA --limit 4 \
      --ours BIN --core-speed BIN --precision fp32 --peers torch-packed-fp32-malloc,ov-fp32 --minutes 10 --out passes.jsonl
  benches/cpu_turns.py --summary passes.jsonl ...

A machine whose cores are shared with others is faster at one moment than at the next, and a program that happens to run
in the better ones looks faster. Here every program is loaded once, then each in turn computes the same few sequences,
in an order that is shuffled anew each round. Before and after every pass one product of matrices (the example core_speed)
runs for ten milliseconds on all cores at once: a pass between two looks at which every core reached --quiet of the best
seen is "undisturbed", one between two looks at both of which some core did not reach --busy of it "disturbed"; the others count
only under "all". How fast the measured programs are plays no part in it.

--harness: the program that knows the other engines; its workers are started with its own options.
--ours: the bench `cpu_embed` as built (`cargo bench --bench cpu_embed --no-run` says where it is);
--core-speed: target/…/examples/core_speed (`cargo build --release -p kernels --example core_speed`).
Speeds are medians; tokens = residues + 2 for each sequence.
"""
import argparse, importlib.util, json, os, random, statistics, subprocess, sys, tempfile, time


def cores():
    """One processor of each core that this process may use: two of one core would disturb each other."""
    allowed, firsts = sorted(os.sched_getaffinity(0)), {}
    for processor in allowed:
        try:
            siblings = open(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list").read().strip()
        except OSError:
            siblings = processor
        firsts.setdefault(siblings, processor)
    return sorted(firsts.values())


class Looks:
    """The least of what the cores reach at this moment, by one `core_speed` bound to each."""

    def __init__(self, program):
        self.processes = [
            subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             preexec_fn=lambda core=core: os.sched_setaffinity(0, {core}))
            for core in cores()]
        self.look()

    def look(self):
        for process in self.processes:
            process.stdin.write("\n")
            process.stdin.flush()
        return min(float(process.stdout.readline()) for process in self.processes)

    def close(self):
        for process in self.processes:
            process.stdin.close()
            process.wait()


def jiffies():
    """The machine's busy time and all of its time, in ticks."""
    fields = [int(field) for field in open("/proc/stat").readline().split()[1:9]]
    return sum(fields) - fields[3] - fields[4], sum(fields)


class Ours:
    """`cpu_embed passes=stdin`"""

    def __init__(self, name, arguments, env):
        self.name, self.process = name, subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **env})
        self.wait("READY ")

    def wait(self, word):
        for line in self.process.stdout:
            if line.startswith(word):
                return json.loads(line[len(word):])
        raise RuntimeError(f"{self.name} ended")

    def run(self):
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return self.wait("DONE ")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def cut(a, folder):
    """A model of the first layers alone; and the harness, told of its size: its workers are started from its file."""
    from safetensors.torch import load_file, save_file
    whole, size = os.path.join(a.models, a.size), f"{a.size}-{a.layers}"
    model = os.path.join(folder, size)
    os.makedirs(model)
    config = json.load(open(os.path.join(whole, "config.json")))
    config["num_hidden_layers"] = a.layers
    json.dump(config, open(os.path.join(model, "config.json"), "w"))
    kept = {name: tensor for name, tensor in load_file(os.path.join(whole, "model.safetensors")).items()
            if ".layer." not in name or int(name.split(".layer.")[1].split(".")[0]) < a.layers}
    save_file(kept, os.path.join(model, "model.safetensors"), metadata={"format": "pt"})
    shape = (a.layers, config["hidden_size"], config["num_attention_heads"])
    harness = os.path.join(folder, os.path.basename(a.harness))
    with open(harness, "w") as file:
        file.write(open(a.harness).read().replace("SIZES = {", f'SIZES = {{"{size}": {shape}, ', 1))
    return folder, size, harness


def measure(a):
    folder = tempfile.mkdtemp(prefix="turns_")
    if a.layers:
        a.models, a.size, a.harness = cut(a, folder)
    spec = importlib.util.spec_from_file_location("harness", a.harness)
    harness = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(harness)
    records = harness.pick(harness.read_fasta(a.fasta), a.limit)
    fasta = os.path.join(folder, "picked.fasta")
    with open(fasta, "w") as file:
        file.writelines(f">{name}\n{residues[:1022]}\n" for name, residues in records)
    tokens = sum(min(len(residues), 1022) + 2 for _, residues in records)
    model = os.path.join(a.models, a.size)
    ours = [a.ours, model, fasta, f"threads={a.threads}", "passes=stdin", f"budgets={a.budget}"]
    programs = [Ours(f"ours-{precision}", [*ours, f"precisions={precision}"], {}) for precision in a.precision.split(",")]
    if a.multiply_adds:
        programs.append(Ours("ours-multiply-adds", [*ours, "precisions=fp32"], {"VIRNUCPRO_FP32_TILES": "off"}))
    a.limit, a.toks = 0, {"*": a.budget}
    programs += [harness.Worker(a, peer, fasta, a.size, a.threads, folder) for peer in a.peers.split(",") if peer]
    for program in programs:
        program.run()
    looks = Looks(a.core_speed)
    workload = os.path.splitext(os.path.basename(a.fasta))[0].removeprefix("workload_")
    end, before = time.time() + 60 * a.minutes, looks.look()
    with open(a.out, "a") as out:
        while time.time() < end:
            random.shuffle(programs)
            for program in programs:
                while a.wait and before < a.quiet * a.best and time.time() < end:
                    time.sleep(a.wait)
                    before = looks.look()
                busy, total = jiffies()
                answer = program.run()
                after_busy, after_total = jiffies()
                after = looks.look()
                # Of both cores' time, what neither idled nor was the program's.
                foreign = (after_busy - busy - answer["cpu_s"] * os.sysconf("SC_CLK_TCK")) / max(1, after_total - total)
                out.write(json.dumps({"program": program.name, "size": a.size, "workload": workload, "sequences": len(records),
                                      "tokens": tokens, "s": answer["s"], "cpu_s": answer["cpu_s"], "foreign": round(max(0.0, foreign), 3),
                                      "before": round(before, 1), "after": round(after, 1)}) + "\n")
                out.flush()
                before = after
    for program in [*programs, looks]:
        program.close()


def summary(a):
    passes = [json.loads(line) for path in a.summary for line in open(path)]
    time_of = "cpu_s" if a.cpu_time else "s"
    looks = sorted(x[side] for x in passes for side in ("before", "after"))
    best = a.best or looks[int(0.98 * len(looks))]  # of 100 looks the second best
    print(f"looks: best {looks[-1]:.0f} GFLOP/s, taken as such {best:.0f}, median {statistics.median(looks):.0f}, least {looks[0]:.0f}")
    kinds = {
        "undisturbed": lambda x: min(x["before"], x["after"]) >= a.quiet * best and (a.cpu_time or x["foreign"] < 0.05),
        "disturbed": lambda x: max(x["before"], x["after"]) < a.busy * best,
        "all": lambda x: True,
    }
    print("| model, workload | program | " + " | ".join(f"{kind}: tokens/s (passes)" for kind in kinds) + " | ours beside it |")
    print("|---|---|" + "---:|" * (len(kinds) + 1))
    for key in dict.fromkeys((x["size"], x["workload"], x["sequences"], x["tokens"]) for x in passes):
        size, workload, sequences, tokens = key
        here = [x for x in passes if (x["size"], x["workload"], x["sequences"], x["tokens"]) == key]
        speeds = {name: {kind: [x["tokens"] / x[time_of] for x in here if x["program"] == name and of(x)] for kind, of in kinds.items()}
                  for name in sorted({x["program"] for x in here})}
        for name, of in speeds.items():
            cells = [f"{statistics.median(v):,.0f} ({len(v)})" if v else "none" for v in of.values()]
            ratios = []
            if not name.startswith("ours"):
                first = "ours-" + next((p for p in ("int8", "bf16") if p in name), "fp32")
                ratios = [f"{statistics.median(speeds[first][kind]) / statistics.median(v):.2f}" if v and speeds.get(first, {}).get(kind) else "-"
                          for kind, v in of.items()]
            print(f"| {size.upper()}, {workload}, {sequences} sequences, {tokens:,} tokens | {name} | " + " | ".join(cells) + " | " + " / ".join(ratios) + " |")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--summary", nargs="+", metavar="FILE", help="read what --out wrote, print a table, measure nothing")
    p.add_argument("--harness")
    p.add_argument("--venvs", default=".")
    p.add_argument("--models", default="models")
    p.add_argument("--cache", default=tempfile.gettempdir())
    p.add_argument("--size", default="8m")
    p.add_argument("--layers", type=int, help="only so many of the model's layers, for short passes of large models")
    p.add_argument("--fasta")
    p.add_argument("--limit", type=int, default=8, help="sequences, spread evenly over the lengths")
    p.add_argument("--ours")
    p.add_argument("--core-speed", help="the example of that name as built")
    p.add_argument("--precision", default="fp32", help="of ours, separated by commas")
    p.add_argument("--multiply-adds", action="store_true", help="ours without tiles as well")
    p.add_argument("--peers", default="")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--budget", type=int, default=4096, help="tokens per batch")
    p.add_argument("--minutes", type=float, default=5)
    p.add_argument("--wait", type=float, help="look every so many seconds and begin passes in undisturbed moments only; needs --best")
    p.add_argument("--quiet", type=float, default=0.85)
    p.add_argument("--cpu-time", action="store_true",
                   help="in the table: by CPU time, for passes of one thread (taskset) while other work runs beside")
    p.add_argument("--best", type=float, help="GFLOP/s of a look that are its best, where another run has seen better")
    p.add_argument("--busy", type=float, default=0.7)
    p.add_argument("--out", default="passes.jsonl")
    a = p.parse_args()
    if a.wait and not a.best:
        p.error("--wait needs --best")
    if not a.summary and not (a.harness and a.fasta and a.ours and a.core_speed):
        p.error("--harness, --fasta, --ours and --core-speed are needed, or --summary")
    summary(a) if a.summary else measure(a)


if __name__ == "__main__":
    main()
