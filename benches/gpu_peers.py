#!/usr/bin/env python3
"""ESM-2 embeddings per second: virnucpro-orch and PyTorch on one GPU, the same weights and sequences, in one run.

Needs the program, and Python 3.10 or later with torch (2.5 or later for CUDA; 2.10 or later for its varlen attention)
and transformers; flash-attn is used where it is installed. No internet, no repository, no real weights:
`virnucpro-orch gpu-check --peers-out` makes seeded ones in the published shapes, and sequences and our embeddings.

    python gpu_peers.py --program ./virnucpro-orch > peers.md      # 8M, 650M and 3B, three kinds of lengths: some 20 minutes
    python gpu_peers.py --program ./virnucpro-orch --sizes 3B --lengths 102,166 --seconds 10 --json peers.json
    python gpu_peers.py --program ./virnucpro-orch --device cpu --sizes tiny --lengths 51 --seconds 1    # tries the script

Peers:
  transformers  EsmModel with sdpa attention, batches sorted by length and padded; the best of several batch sizes
  packed        the same network written for speed: no padding, fused QKV, each attention that this PyTorch offers
                (torch.nn.attention.varlen, flash-attn, else flex_attention; for sequences of one length plain sdpa,
                too), with torch.compile, torch.compile max-autotune, and the latter as a CUDA graph; the best of them

Each peer is timed as we are: sustained, after a warm-up, tokens copied to the device and pooled embeddings back. Ratios
are ours / peer in tokens per second (BOS and EOS counted); the cosine is between our pooled embeddings and the peer's.
A peer that does not work here is reported as a line, never as a number.
"""
import argparse
import datetime
import gc
import itertools
import json
import math
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

LETTERS = "LAGVSERTIDPKQNFYMHWCXBUZO.-"
BOS, PAD, EOS, FIRST_LETTER = 0, 1, 2, 4
TOKEN = {letter: FIRST_LETTER + index for index, letter in enumerate(LETTERS)}
# A sequence without masks is scaled as if 12 % of its tokens were masked, as in training.
TOKEN_DROPOUT = 1 - 0.15 * 0.8


def say(text):
    print(text, file=sys.stderr, flush=True)


def read_fasta(path):
    """Token lists, in the file's order: names are 0, 1, 2, ..."""
    sequences = []
    for record in path.read_text().split(">")[1:]:
        name, *lines = record.splitlines()
        assert int(name) == len(sequences), f"{path}: record {name} is out of order"
        sequences.append([BOS, *(TOKEN[letter] for letter in "".join(lines)), EOS])
    return sequences


def read_ours(path, sequences, hidden):
    """Our embeddings, [sequences, hidden]."""
    values = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.float32)
    return values.reshape(sequences, hidden)


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def upload(values, dtype, device):
    tensor = torch.tensor(values, dtype=dtype)
    if device.type == "cuda":
        return tensor.pin_memory()
    return tensor


class Transformers:
    """EsmModel as its documentation uses it, only with more care: sorted by length, few bytes back."""

    def __init__(self, folder, device, dtype):
        from transformers import EsmModel
        from transformers.utils import logging

        # It would warn that the language-model head is missing, which nobody asks for.
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.device = device
        model = EsmModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa")
        self.model = model.eval().to(device, dtype)

    def batches(self, sequences, token_budget):
        """Padded batches; a token counts whether it is one or padding."""
        order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
        batches, current = [], []
        for index in order:
            widest = len(sequences[current[0]]) if current else len(sequences[index])
            if current and widest * (len(current) + 1) > token_budget:
                batches.append(current)
                current = []
            current.append(index)
        batches.append(current)
        made = []
        for members in batches:
            width = len(sequences[members[0]])
            tokens = [sequences[index] + [PAD] * (width - len(sequences[index])) for index in members]
            pooled = [[1.0 if 0 < at < len(sequences[index]) - 1 else 0.0 for at in range(width)] for index in members]
            made.append(
                {
                    "members": members,
                    "tokens_counted": sum(len(sequences[index]) for index in members),
                    "input": upload(tokens, torch.long, self.device),
                    "pooled": upload(pooled, torch.float32, self.device),
                }
            )
        return made

    def run(self, batch):
        tokens = batch["input"].to(self.device, non_blocking=True)
        pooled = batch["pooled"].to(self.device, non_blocking=True)
        hidden = self.model(input_ids=tokens, attention_mask=(tokens != PAD).long()).last_hidden_state
        weights = (pooled / pooled.sum(1, keepdim=True)).unsqueeze(2)
        return (hidden.float() * weights).sum(1)


def rotate(x, cosines, sines):
    """Rotary positions, rotate-half, in f32: [tokens, heads, width]."""
    one, other = x.float().chunk(2, dim=-1)
    return torch.cat((one * cosines - other * sines, other * cosines + one * sines), dim=-1).to(x.dtype)


class Packed:
    """The network for packed batches, its layers one function so that it is compiled once for all of them."""

    NAMES = {
        "norm1": "attention.LayerNorm",
        "output": "attention.output.dense",
        "norm2": "LayerNorm",
        "expand": "intermediate.dense",
        "contract": "output.dense",
    }

    def __init__(self, folder, device, dtype):
        self.device, self.dtype = device, dtype
        config = json.loads((folder / "config.json").read_text())
        self.heads, self.eps = config["num_attention_heads"], config["layer_norm_eps"]
        weights = load_file(folder / "model.safetensors", device=str(device))
        get = lambda name: weights[f"esm.{name}"].to(dtype)
        self.embedding = get("embeddings.word_embeddings.weight")
        self.hidden = self.embedding.shape[1]
        self.width = self.hidden // self.heads
        self.layers = []
        for index in range(config["num_hidden_layers"]):
            prefix = f"encoder.layer.{index}."
            part = lambda kind: torch.cat(
                [get(f"{prefix}attention.self.{name}.{kind}") for name in ("query", "key", "value")]
            )
            layer = {"qkv_weight": part("weight"), "qkv_bias": part("bias")}
            for name, theirs in self.NAMES.items():
                layer[f"{name}_weight"] = get(f"{prefix}{theirs}.weight")
                layer[f"{name}_bias"] = get(f"{prefix}{theirs}.bias")
            self.layers.append(layer)
        self.final = get("encoder.emb_layer_norm_after.weight"), get("encoder.emb_layer_norm_after.bias")
        self.layer_function = self.layer
        self.attention = None

    def batches(self, sequences, token_budget):
        """Packed batches, each of the same number of tokens: a filler that nobody pools makes up what lacks."""
        batches, current, room = [], [], 0
        for index in sorted(range(len(sequences)), key=lambda index: -len(sequences[index])):
            tokens = len(sequences[index])
            if current and tokens > room:
                batches.append(current)
                current = []
            room = (room if current else max(token_budget, tokens)) - tokens
            current.append(index)
        batches.append(current)
        most = max(sum(len(sequences[index]) for index in members) for members in batches)
        made = []
        for members in batches:
            parts = [sequences[index] for index in members]
            counted = sum(map(len, parts))
            filler = [[BOS] + [FIRST_LETTER] * (most - counted - 2) + [EOS]] if most - counted > 2 else []
            if not filler and most > counted:
                # Too few for BOS, a residue and EOS; nobody looks at what becomes of them.
                filler = [[PAD] * (most - counted)]
            lengths = [len(part) for part in parts + filler]
            segments = list(itertools.chain.from_iterable([at] * length for at, length in enumerate(lengths)))
            weights = []
            for length in map(len, parts):
                weights += [0.0] + [1.0 / (length - 2)] * (length - 2) + [0.0]
            weights += [0.0] * (most - counted)
            # Input of one batch in one copy each: tokens and positions, limits.
            made.append(
                {
                    "members": members,
                    "tokens_counted": counted,
                    "rows": len(parts),
                    "longest": max(lengths),
                    "equal": lengths[0] if len(set(lengths)) == 1 else None,
                    "tokens": upload(list(itertools.chain.from_iterable(parts + filler)), torch.int32, self.device),
                    "positions": upload(
                        list(itertools.chain.from_iterable(range(length) for length in lengths)), torch.int32, self.device
                    ),
                    "segments": upload(segments, torch.int32, self.device),
                    "weights": upload(weights, torch.float32, self.device),
                    "limits": upload([0, *itertools.accumulate(lengths)], torch.int32, self.device),
                }
            )
        # One number for all, so that nothing is compiled again for the next batch.
        longest = max(batch["longest"] for batch in made)
        for batch in made:
            batch["longest"] = longest
        return made

    def layer(self, x, cosines, sines, state, attention, layer):
        tokens = x.shape[0]
        h = F.layer_norm(x, (self.hidden,), layer["norm1_weight"], layer["norm1_bias"], self.eps)
        qkv = F.linear(h, layer["qkv_weight"], layer["qkv_bias"]).view(tokens, 3, self.heads, self.width)
        query, key, value = qkv.unbind(1)
        query, key = rotate(query, cosines, sines), rotate(key, cosines, sines)
        attended = attention(query, key, value, state).reshape(tokens, self.hidden)
        x = x + F.linear(attended, layer["output_weight"], layer["output_bias"])
        h = F.layer_norm(x, (self.hidden,), layer["norm2_weight"], layer["norm2_bias"], self.eps)
        h = F.gelu(F.linear(h, layer["expand_weight"], layer["expand_bias"]))
        return x + F.linear(h, layer["contract_weight"], layer["contract_bias"])

    def forward(self, tokens, positions, segments, weights, state, rows):
        frequencies = 1.0 / 10000 ** (torch.arange(0, self.width, 2, device=self.device).float() / self.width)
        angles = positions.float()[:, None] * frequencies
        cosines, sines = angles.cos()[:, None], angles.sin()[:, None]
        x = self.embedding[tokens] * TOKEN_DROPOUT
        for layer in self.layers:
            x = self.layer_function(x, cosines, sines, state, self.attention, layer)
        x = F.layer_norm(x, (self.hidden,), *self.final, self.eps).float() * weights[:, None]
        pooled = torch.zeros(rows + 1, self.hidden, device=self.device)
        # The filler is the last row.
        return pooled.index_add_(0, segments.clamp(max=rows), x)[:rows]

    def state(self, batch, limits, segments):
        """What attention reads besides its operands."""
        state = {"limits": limits, "longest": batch["longest"], "equal": batch["equal"]}
        if self.attention is flex:
            from torch.nn.attention.flex_attention import create_block_mask

            same = lambda b, h, query, key: segments[query] == segments[key]
            state["mask"] = create_block_mask(same, None, None, len(segments), len(segments), device=self.device)
        return state

    def run(self, batch):
        inputs = {
            name: batch[name].to(self.device, non_blocking=True)
            for name in ("tokens", "positions", "segments", "weights", "limits")
        }
        state = self.state(batch, inputs["limits"], inputs["segments"])
        names = ("tokens", "positions", "segments", "weights")
        return self.forward(*(inputs[name] for name in names), state, batch["rows"])


def varlen(query, key, value, state):
    from torch.nn.attention.varlen import varlen_attn

    limits, longest = state["limits"], state["longest"]
    return varlen_attn(query, key, value, limits, limits, longest, longest)


def flash(query, key, value, state):
    from flash_attn import flash_attn_varlen_func

    limits, longest = state["limits"], state["longest"]
    return flash_attn_varlen_func(query, key, value, limits, limits, longest, longest)


def flex(query, key, value, state):
    from torch.nn.attention.flex_attention import flex_attention

    lead = lambda x: x.transpose(0, 1).unsqueeze(0)
    out = flex_attention(lead(query), lead(key), lead(value), block_mask=state["mask"])
    return out.squeeze(0).transpose(0, 1)


def dense(query, key, value, state):
    """For sequences of one length packed is padded."""
    length = state["equal"]
    fold = lambda x: x.reshape(-1, length, *x.shape[1:]).transpose(1, 2)
    out = F.scaled_dot_product_attention(fold(query), fold(key), fold(value))
    return out.transpose(1, 2).reshape(query.shape)


def each(query, key, value, state):
    """Sequence by sequence: works anywhere, for trying this script without a GPU."""
    limits = state["limits"].tolist()
    lead = lambda x, a, b: x[a:b].transpose(0, 1)
    parts = [
        F.scaled_dot_product_attention(lead(query, a, b), lead(key, a, b), lead(value, a, b)).transpose(0, 1)
        for a, b in zip(limits, limits[1:])
    ]
    return torch.cat(parts)


def attentions():
    """Those that are there; flex_attention, the slowest to compile, only where there is no other for packed batches."""
    found = []
    for name, module in (("varlen", "torch.nn.attention.varlen"), ("flash", "flash_attn")):
        try:
            __import__(module)
            found.append(name)
        except Exception:
            pass
    return [*(found or ["flex"]), "dense"]


class Graph:
    """A whole forward pass as one CUDA graph, for batches of one shape: small models wait for launches otherwise."""

    NAMES = ("tokens", "positions", "segments", "weights", "limits")

    def __init__(self, packed, batch):
        self.packed, self.device = packed, packed.device
        self.inputs = {name: batch[name].to(self.device) for name in self.NAMES}
        self.shape = self.shape_of(batch)
        state = packed.state(batch, self.inputs["limits"], self.inputs["segments"])
        call = lambda: packed.forward(*(self.inputs[name] for name in self.NAMES[:4]), state, batch["rows"])
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = call()

    def shape_of(self, batch):
        return [*(tuple(batch[name].shape) for name in self.NAMES), batch["rows"], batch["longest"], batch["equal"]]

    def run(self, batch):
        assert self.shape_of(batch) == self.shape
        for name in self.NAMES:
            self.inputs[name].copy_(batch[name], non_blocking=True)
        self.graph.replay()
        return self.output


def embeddings(run, batches, sequences, hidden, device):
    """Pooled vectors in the order of the sequences."""
    values = torch.empty(len(sequences), hidden)
    for batch in batches:
        values[batch["members"]] = run(batch).float().cpu()
    return values


def measure(run, batches, seconds, device):
    """Sustained tokens per second over the fullest batches in turn."""
    most = max(batch["tokens_counted"] for batch in batches)
    full = [batch for batch in batches if batch["tokens_counted"] >= 0.9 * most]

    def turn(duration, runs_min):
        began, runs, tokens, held = time.perf_counter(), 0, 0, []
        while runs < runs_min or time.perf_counter() - began < duration:
            batch = full[runs % len(full)]
            result = run(batch)
            if device.type == "cuda":
                # As many in flight as we hold; a queue without bound would be timed as if it were computed.
                result = torch.empty(result.shape, pin_memory=True).copy_(result, non_blocking=True)
                event = torch.cuda.Event()
                event.record()
                held.append((event, result))
                if len(held) >= 3:
                    held.pop(0)[0].synchronize()
            runs, tokens = runs + 1, tokens + batch["tokens_counted"]
        synchronise(device)
        return tokens / (time.perf_counter() - began)

    turn(seconds / 3, 2 * len(full))
    return turn(seconds, 1)


def cosines(ours, theirs):
    similarity = F.cosine_similarity(ours.double(), theirs.double(), dim=1)
    return {"cosine_min": similarity.min().item(), "cosine_median": similarity.median().item()}


def release(device):
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def attempt(results, peer, variant, body):
    """One variant of a peer; one that does not work is told and costs no other."""
    try:
        entry = body()
        entry.update(peer=peer, variant=variant)
        results.append(entry)
        say(f"  {peer:12} {variant:40} {entry['tokens_per_s']:12,.0f} tokens/s, cosine >= {entry['cosine_min']:.7f}")
    except Exception as error:  # Whatever it is, the others go on.
        text = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        results.append({"peer": peer, "variant": variant, "error": text})
        say(f"  {peer:12} {variant:40} does not work here: {text}")


def peers_of(arguments, folder, lengths, budget, device, dtype):
    """Every variant of every peer for one size; yields (length, results)."""
    hidden = json.loads((folder / "config.json").read_text())["hidden_size"]
    work = {}
    for length in lengths:
        sequences = read_fasta(folder / f"{length}.fasta")
        work[length] = sequences, read_ours(folder / f"{length}.f32", len(sequences), hidden), []

    def timed(run, batches, length):
        sequences, ours, _ = work[length]
        theirs = embeddings(run, batches, sequences, hidden, device)
        assert torch.isfinite(theirs).all(), "embeddings are not finite"
        return {"tokens_per_s": measure(run, batches, arguments.seconds, device), **cosines(ours, theirs)}

    with torch.inference_mode():
        if "transformers" in arguments.peers:
            try:
                model = Transformers(folder, device, dtype)
            except Exception as error:
                model = None
                for length in lengths:
                    work[length][2].append({"peer": "transformers", "variant": "load", "error": str(error)[:160]})
            for length in lengths if model else ():
                for size in sorted({budget // 4, budget // 2, budget}):
                    run = lambda: timed(model.run, model.batches(work[length][0], size), length)
                    attempt(work[length][2], "transformers", f"sdpa, padded, {size} tokens", run)
                    release(device)
            del model
            release(device)
        if "packed" in arguments.peers:
            packed = Packed(folder, device, dtype)
            for length in lengths:
                sequences, _, results = work[length]
                batches = packed.batches(sequences, budget)
                kinds = arguments.attention
                if not all(batch["equal"] for batch in batches):
                    kinds = [kind for kind in kinds if kind is not dense]
                for kind, how in itertools.product(kinds, arguments.how):
                    # Eager flex_attention holds all scores; `each` is no function of tensors alone.
                    wanted = {flex: ("compile", "max-autotune"), each: ("eager",)}.get(kind, arguments.how)
                    if how not in wanted or how == "graph" and device.type != "cuda":
                        continue

                    def body():
                        packed.attention = kind
                        packed.layer_function = packed.layer
                        torch._dynamo.reset()
                        if how in ("compile", "max-autotune", "graph"):
                            mode = None if how == "compile" else "max-autotune-no-cudagraphs"
                            packed.layer_function = torch.compile(packed.layer, mode=mode)
                        run = packed.run
                        if how == "graph":
                            shapes = {tuple(batch["limits"].shape) for batch in batches}
                            assert len(shapes) == 1, "batches differ in their number of sequences"
                            graph = Graph(packed, batches[0])
                            run = graph.run
                        return timed(run, batches, length)

                    attempt(results, "packed", f"{kind.__name__}, {how}", body)
                    release(device)
    return {length: results for length, (_, _, results) in work.items()}


def ours_of(arguments, size, lengths, folder):
    """Runs our program on one size; returns its report."""
    report = folder / "ours.json"
    command = [
        arguments.program, "gpu-check", "--only", "speed", "--device", "cpu" if arguments.device == "cpu" else arguments.ours,
        "--sizes", size, "--lengths", ",".join(lengths), "--seconds", str(arguments.seconds),
        "--peers-out", str(folder), "--json", str(report),
    ]  # fmt: skip
    if arguments.tokens:
        command += ["--tokens", str(arguments.tokens)]
    say(f"{' '.join(command)}")
    status = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    if not report.exists():
        sys.exit(f"gpu-check ended with {status} and left no report")
    return json.loads(report.read_text())


def table(rows):
    print("\n| model | residues | ours tokens/s | peer | variant | peer tokens/s | ours / peer | cosine, least | cosine, median |")
    print("|---|---|---:|---|---|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['size']} | {row['lengths']} | {row['ours']:,.0f} | {row['peer']} | {row['variant']} | "
            f"{row['tokens_per_s']:,.0f} | {row['ours'] / row['tokens_per_s']:.2f} | {row['cosine_min']:.7f} | "
            f"{row['cosine_median']:.7f} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="virnucpro-orch", help="our executable")
    parser.add_argument("--device", default="cuda", help="of PyTorch: cuda, cuda:1, cpu")
    parser.add_argument("--ours", default="cuda:0", help="the same device in our words")
    parser.add_argument("--sizes", default="8M,650M,3B")
    parser.add_argument("--lengths", default="102,400,uniprot")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--tokens", type=int, help="per batch, of ours and of the packed peer")
    parser.add_argument("--peers", default="transformers,packed")
    parser.add_argument("--how", help="of eager,compile,max-autotune,graph; on a GPU all but the first")
    parser.add_argument("--attention", help="of varlen,flash,flex,dense,each; on a GPU all but the last that are there")
    parser.add_argument("--folder", type=pathlib.Path, help="keeps weights and sequences here")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    arguments.peers = arguments.peers.split(",")
    on_cpu = device.type == "cpu"
    arguments.how = (arguments.how or ("eager" if on_cpu else "compile,max-autotune,graph")).split(",")
    kinds = {"varlen": varlen, "flash": flash, "flex": flex, "dense": dense, "each": each}
    names = (arguments.attention or ("each,dense" if on_cpu else ",".join(attentions()))).split(",")
    arguments.attention = [kinds[name] for name in names]
    lengths = arguments.lengths.split(",")
    folder = arguments.folder or pathlib.Path(tempfile.mkdtemp(prefix="gpu-peers-"))
    folder.mkdir(parents=True, exist_ok=True)

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("transformers", "flash_attn"):
        try:
            versions[name] = __import__(name).__version__
        except Exception:
            versions[name] = "not installed"
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(sys.argv),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU: no GPU is measured",
        **versions,
    }
    everything, rows, missing = {"facts": facts, "sizes": {}}, [], []
    try:
        for size in arguments.sizes.split(","):
            report = ours_of(arguments, size, lengths, folder)
            told = [(name, value) for name, value in report["facts"] if name not in ("date", "command", "took")]
            for name in dict.fromkeys(name for name, _ in told):
                facts[f"ours, {name}"] = "; ".join(value for other, value in told if other == name)
            cells = {cell["lengths"]: cell for cell in report["cells"]}
            done = [length for length in lengths if length in cells and (folder / size / f"{length}.f32").exists()]
            missing += [f"{size}, {length}: ours failed" for length in lengths if length not in done]
            if not done:
                continue
            budget = report["loads"][0]["token_budget"]
            results = peers_of(arguments, folder / size, done, budget, device, dtype)
            everything["sizes"][size] = {"ours": report, "peers": results}
            for length in done:
                for peer in arguments.peers:
                    worked = [entry for entry in results[length] if entry["peer"] == peer and "error" not in entry]
                    if not worked:
                        missing.append(f"{size}, {length}: no variant of {peer} works here")
                        continue
                    best = max(worked, key=lambda entry: entry["tokens_per_s"])
                    rows.append({"size": size, "lengths": length, "ours": cells[length]["tokens_per_s"], **best})
            if not arguments.folder:
                shutil.rmtree(folder / size, ignore_errors=True)
    finally:
        if not arguments.folder:
            shutil.rmtree(folder, ignore_errors=True)

    print("# gpu_peers\n\n| | |\n|---|---|")
    for name, value in facts.items():
        print(f"| {name} | {value} |")
    table(rows)
    for line in missing:
        print(f"\nmissing: {line}")
    for peer in arguments.peers:
        ratios = [row["ours"] / row["tokens_per_s"] for row in rows if row["peer"] == peer]
        if ratios:
            mean = math.exp(statistics.fmean(map(math.log, ratios)))
            print(f"\nours / {peer}: {min(ratios):.2f} to {max(ratios):.2f}, geometric mean {mean:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**everything, "rows": rows, "missing": missing}, indent=1))
    sys.exit(1 if missing or not rows else 0)


if __name__ == "__main__":
    main()
