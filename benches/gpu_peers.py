#!/usr/bin/env python3
"""ESM-2 embeddings per second: virnucpro-orch and PyTorch on one GPU, the same weights and sequences, in one run.

Needs the program, and Python 3.10 or later with torch (2.5 or later for CUDA; 2.10 or later for its varlen attention)
and transformers; flash-attn is used where it is installed. No internet, no repository, no real weights:
`virnucpro-orch gpu-check --peers-out` makes seeded ones in the published shapes, and sequences and our embeddings.

    python gpu_peers.py --program ./virnucpro-orch --json peers.json > peers.md      # within ten minutes, the most telling first
    python gpu_peers.py --program ./virnucpro-orch --how compile,max-autotune,graph --within 3000     # all variants
    python gpu_peers.py --program ./virnucpro-orch --sizes 3B --lengths 102,166 --seconds 10 --json peers.json
    python gpu_peers.py --program ./virnucpro-orch --device cpu --sizes tiny --lengths 51 --seconds 1    # tries the script

Peers:
  transformers  EsmModel with sdpa attention, batches sorted by length and padded, as it is and with torch.compile; the
                best of the batch sizes of --batches
  packed        the same network written for speed: no padding, fused QKV, an attention for packed batches that this
                PyTorch offers (torch.nn.attention.varlen, else flash-attn, else flex_attention; --attention dense:
                plain sdpa for sequences of one length), with torch.compile; on request (--how) with torch.compile
                max-autotune, and the latter as a CUDA graph; the best of them

Each peer is timed as we are: sustained, after a warm-up, tokens copied to the device and pooled embeddings back. Ratios
are ours / peer in tokens per second (BOS and EOS counted); the cosine is between our pooled embeddings and the peer's.
A peer that does not work here is reported as a line, never as a number. Table and JSON are written anew after each
attempt (the table where standard output is a file, else once at the end); what --within leaves no time for is named as
not run, which makes exit code 1 as a failure does.
"""
import argparse
import datetime
import fcntl
import gc
import itertools
import json
import math
import os
import pathlib
import platform
import shutil
import signal
import stat
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
        self.restore_frequencies(device, dtype)
        self.eager = self.model

    def compile(self, how):
        self.model = torch.compile(self.eager) if how == "compile" else self.eager

    def restore_frequencies(self, device, dtype):
        """`.to` has rounded the rotary frequencies to halves: tenths of a radian wrong at a thousand residues."""
        found = 0
        for module in self.model.modules():
            for buffer in ("inv_freq", "original_inv_freq"):
                frequencies = getattr(module, buffer, None)
                if not isinstance(frequencies, torch.Tensor):
                    continue
                exponents = torch.arange(0, 2 * len(frequencies), 2, dtype=torch.float32, device=device)
                exact = 1.0 / 10000 ** (exponents / (2 * len(frequencies)))
                setattr(module, buffer, exact)
                # Tables made before would stay as they are.
                for table in ("_seq_len_cached", "_cos_cached", "_sin_cached"):
                    if hasattr(module, table):
                        setattr(module, table, None)
                found += 1
        assert found, "transformers keeps its rotary frequencies elsewhere: positions would be wrong in fp16"

        self.check_dtype(dtype, device)

    def check_dtype(self, dtype, device):
        """Positions in f32 must leave queries and keys in their own dtype, else attention is another, slow one."""
        seen, theirs = [], F.scaled_dot_product_attention

        def look(query, key, value, *rest, **named):
            seen.extend((query.dtype, key.dtype))
            return theirs(query, key, value, *rest, **named)

        F.scaled_dot_product_attention = look
        try:
            tokens = torch.tensor([[BOS, FIRST_LETTER, EOS]], device=device)
            with torch.inference_mode():
                self.model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        finally:
            F.scaled_dot_product_attention = theirs
        assert seen, "transformers does not call scaled_dot_product_attention"
        assert set(seen) == {dtype}, f"queries and keys are {seen}, not {dtype}"

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

    def state(self, batch, limits):
        """What attention reads besides its operands."""
        state = {"limits": limits, "longest": batch["longest"], "equal": batch["equal"]}
        if self.attention is flex:
            state["mask"] = batch["mask"]
        return state

    def prepare(self, batches):
        """What depends on a batch's lengths alone, and is no part of what is timed."""
        if self.attention is not flex:
            return
        from torch.nn.attention.flex_attention import create_block_mask

        # Compiled it never holds all pairs of tokens.
        create = torch.compile(create_block_mask)
        for batch in batches:
            if "mask" not in batch:
                segments = batch["segments"].to(self.device)
                batch["mask"] = create(same(segments), None, None, len(segments), len(segments), device=self.device)

    def run(self, batch):
        inputs = {
            name: batch[name].to(self.device, non_blocking=True)
            for name in ("tokens", "positions", "segments", "weights", "limits")
        }
        state = self.state(batch, inputs["limits"])
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


def same(segments):
    """Tokens see those of their own sequence."""
    return lambda b, h, query, key: segments[query] == segments[key]


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
    """The first that is there; flex_attention, the slowest to compile, only where there is no other."""
    for name, module in (("varlen", "torch.nn.attention.varlen"), ("flash", "flash_attn")):
        try:
            __import__(module)
            return [name]
        except Exception:
            pass
    return ["flex"]


class Graph:
    """A whole forward pass as one CUDA graph, for batches of one shape: small models wait for launches otherwise."""

    NAMES = ("tokens", "positions", "segments", "weights", "limits")

    def __init__(self, packed, batch):
        self.packed, self.device = packed, packed.device
        self.inputs = {name: batch[name].to(self.device) for name in self.NAMES}
        self.shape = self.shape_of(batch)
        state = packed.state(batch, self.inputs["limits"])
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


class CutOff(BaseException):
    """The time is over, or the operator has had enough; no failure of an attempt."""


class Clock:
    """Ends everything in time, however long a compiler thinks."""

    def __init__(self, within):
        self.within, self.ends = within, time.monotonic() + within
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.cut_off("interrupted"))
        signal.signal(signal.SIGALRM, self.cut_off(f"the {within:.0f} s of --within were over"))
        # More than once: where Python cannot raise, as in a destructor, it drops the first.
        signal.setitimer(signal.ITIMER_REAL, within, 5.0)

    @staticmethod
    def cut_off(why):
        def handler(*_):
            raise CutOff(why)

        return handler

    def left(self):
        return self.ends - time.monotonic()

    def stop(self):
        """The report is to be written in peace."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)


class Attempts:
    """What was tried for one size, told and written one after the other."""

    def __init__(self, clock, seconds, lengths, written):
        self.clock, self.seconds, self.written = clock, seconds, written
        self.results = {length: [] for length in lengths}

    def note(self, length, peer, variant, entry):
        self.results[length].append({"peer": peer, "variant": variant, **entry})
        if "error" in entry or "not_run" in entry:
            words = "not run" if "not_run" in entry else "does not work here"
            say(f"  {length:8} {peer:12} {variant:40} {words}: {entry.get('error') or entry['not_run']}")
        else:
            speed, cosine = entry["tokens_per_s"], entry["cosine_min"]
            say(f"  {length:8} {peer:12} {variant:40} {speed:12,.0f} tokens/s, cosine >= {cosine:.7f}")
        self.written()

    def attempt(self, length, peer, variant, body):
        """One variant of a peer; one that does not work is told and costs no other."""
        if self.clock.left() < 2 + self.seconds * 4 / 3:
            self.note(length, peer, variant, {"not_run": "no time left"})
            return
        try:
            entry = body()
        except CutOff as cut:
            self.note(length, peer, variant, {"not_run": f"cut off: {cut}"})
            raise
        except Exception as error:  # Whatever it is, the others go on.
            entry = {"error": first_line(error)}
        self.note(length, peer, variant, entry)


def first_line(error):
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def peers_of(arguments, attempts, folder, lengths, budget, device, dtype):
    """Every variant of every peer for one size, the most telling first."""
    hidden = json.loads((folder / "config.json").read_text())["hidden_size"]
    work = {}
    for length in lengths:
        sequences = read_fasta(folder / f"{length}.fasta")
        work[length] = sequences, read_ours(folder / f"{length}.f32", len(sequences), hidden)

    def timed(run, batches, length):
        sequences, ours = work[length]
        theirs = embeddings(run, batches, sequences, hidden, device)
        assert torch.isfinite(theirs).all(), "embeddings are not finite"
        return {"tokens_per_s": measure(run, batches, arguments.seconds, device), **cosines(ours, theirs)}

    def loaded(kind):
        try:
            return kind(folder, device, dtype)
        except Exception as error:
            for length in lengths:
                attempts.note(length, kind.__name__.lower(), "load", {"error": first_line(error)})

    with torch.inference_mode():
        packed = loaded(Packed) if "packed" in arguments.peers else None
        for how, length in itertools.product(arguments.how, lengths) if packed else ():
            batches = packed.batches(work[length][0], budget)
            for kind in arguments.attention:
                if kind is dense and not all(batch["equal"] for batch in batches):
                    continue
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
                    packed.prepare(batches)
                    run = packed.run
                    if how == "graph":
                        shapes = {tuple(batch["limits"].shape) for batch in batches}
                        assert len(shapes) == 1, "batches differ in their number of sequences"
                        graph = Graph(packed, batches[0])
                        run = graph.run
                    return timed(run, batches, length)

                attempts.attempt(length, "packed", f"{kind.__name__}, {how}", body)
                release(device)
        del packed
        release(device)
        model = loaded(Transformers) if "transformers" in arguments.peers else None
        for how, length in itertools.product(arguments.how_padded, lengths) if model else ():
            for share in arguments.batches:
                size = max(1, int(budget * share))

                def body():
                    torch._dynamo.reset()
                    model.compile(how)
                    return timed(model.run, model.batches(work[length][0], size), length)

                attempts.attempt(length, "transformers", f"sdpa, padded, {size} tokens, {how}", body)
                release(device)
        del model
        release(device)


def ours_of(arguments, clock, size, lengths, folder):
    """Runs our program on one size; returns its report."""
    report = folder / "ours.json"
    report.unlink(missing_ok=True)
    command = [
        arguments.program, "gpu-check", "--only", "speed", "--device", "cpu" if arguments.device == "cpu" else arguments.ours,
        "--sizes", size, "--lengths", ",".join(lengths), "--seconds", str(arguments.seconds),
        "--within", f"{max(clock.left(), 1):.0f}", "--peers-out", str(folder), "--json", str(report),
    ]  # fmt: skip
    if arguments.tokens:
        command += ["--tokens", str(arguments.tokens)]
    say(f"{' '.join(command)}")
    # So that it finds the libraries that came with PyTorch, as wheels of this interpreter.
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        try:
            status = process.wait()
        except CutOff:
            # It ends its own processes, which a kill would leave on the GPU.
            process.terminate()
            raise
    if not report.exists():
        raise RuntimeError(f"gpu-check ended with {status} and left no report")
    return json.loads(report.read_text())


class Output:
    """The report while it grows: whenever it is cut off, what was measured is there."""

    def __init__(self, arguments, facts, sizes, lengths):
        self.arguments, self.facts, self.sizes, self.lengths = arguments, facts, sizes, lengths
        self.ours, self.results, self.failures, self.begins = {}, {}, {}, None
        status = os.fstat(sys.stdout.fileno())
        if stat.S_ISREG(status.st_mode) and not fcntl.fcntl(sys.stdout, fcntl.F_GETFL) & os.O_APPEND:
            self.begins = os.lseek(sys.stdout.fileno(), 0, os.SEEK_CUR)

    def rows_and_missing(self):
        rows, missing = [], []
        for size, length in itertools.product(self.sizes, self.lengths):
            cells = {cell["lengths"]: cell for cell in self.ours.get(size, {"cells": []})["cells"]}
            if length not in cells:
                missing.append(f"{size}, {length}: ours: {self.failures.get(size, 'not run, or failed')}")
                continue
            for peer in self.arguments.peers:
                tried = [entry for entry in self.results.get(size, {}).get(length, []) if entry["peer"] == peer]
                worked = [entry for entry in tried if "tokens_per_s" in entry]
                for entry in tried:
                    if "not_run" in entry:
                        missing.append(f"{size}, {length}: {peer}, {entry['variant']}: not run: {entry['not_run']}")
                if not tried:
                    missing.append(f"{size}, {length}: {peer}: not run")
                elif not worked and any("error" in entry for entry in tried):
                    missing.append(f"{size}, {length}: no variant of {peer} that was tried works here")
                if worked:
                    best = max(worked, key=lambda entry: entry["tokens_per_s"])
                    rows.append({"size": size, "lengths": length, "ours": cells[length]["tokens_per_s"], **best})
        return rows, missing

    def markdown(self, rows, missing):
        lines = ["# gpu_peers", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in self.facts.items()]
        lines += table(rows)
        for line in missing:
            lines += ["", f"missing: {line}"]
        for peer in self.arguments.peers:
            ratios = [row["ours"] / row["tokens_per_s"] for row in rows if row["peer"] == peer]
            if ratios:
                mean = math.exp(statistics.fmean(map(math.log, ratios)))
                lines += ["", f"ours / {peer}: {min(ratios):.2f} to {max(ratios):.2f}, geometric mean {mean:.2f}"]
        return "\n".join(lines) + "\n"

    def write(self, finally_=False):
        rows, missing = self.rows_and_missing()
        if self.begins is not None:
            sys.stdout.flush()
            os.lseek(sys.stdout.fileno(), self.begins, os.SEEK_SET)
            os.ftruncate(sys.stdout.fileno(), self.begins)
        if self.begins is not None or finally_:
            print(self.markdown(rows, missing), end="", flush=True)
        if self.arguments.json:
            sizes = {size: {"ours": ours, "peers": self.results.get(size, {})} for size, ours in self.ours.items()}
            everything = {"facts": self.facts, "sizes": sizes, "rows": rows, "missing": missing}
            temporary = self.arguments.json.with_name(f"{self.arguments.json.name}.part")
            temporary.write_text(json.dumps(everything, indent=1))
            temporary.replace(self.arguments.json)
        return rows, missing


def table(rows):
    lines = ["", "| model | residues | ours tokens/s | peer | variant | peer tokens/s | ours / peer | cosine, least | cosine, median |"]
    lines.append("|---|---|---:|---|---|---:|---:|---:|---:|")
    for row in rows:
        lines.append(
            f"| {row['size']} | {row['lengths']} | {row['ours']:,.0f} | {row['peer']} | {row['variant']} | "
            f"{row['tokens_per_s']:,.0f} | {row['ours'] / row['tokens_per_s']:.2f} | {row['cosine_min']:.7f} | "
            f"{row['cosine_median']:.7f} |"
        )
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="virnucpro-orch", help="our executable")
    parser.add_argument("--device", default="cuda", help="of PyTorch: cuda, cuda:1, cpu")
    parser.add_argument("--ours", default="cuda:0", help="the same device in our words")
    parser.add_argument("--sizes", default="3B,650M,8M", help="in this order")
    parser.add_argument("--lengths", default="102,uniprot")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--tokens", type=int, help="per batch, of ours and of the packed peer")
    parser.add_argument("--peers", default="transformers,packed")
    parser.add_argument("--within", type=float, default=570.0, help="end after so many seconds at the latest")
    parser.add_argument("--how", help="of the packed peer, of eager,compile,max-autotune,graph; on a GPU compile")
    parser.add_argument("--how-padded", help="of transformers, of eager,compile; on a GPU both")
    parser.add_argument("--batches", default="0.5", help="of transformers: shares of our tokens per batch, as in 0.25,0.5,1")
    parser.add_argument("--attention", help="of varlen,flash,flex,dense,each; on a GPU the first that is there")
    parser.add_argument("--folder", type=pathlib.Path, help="keeps weights and sequences here")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    clock = Clock(arguments.within)
    device = torch.device(arguments.device)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    arguments.peers = arguments.peers.split(",")
    on_cpu = device.type == "cpu"
    arguments.how = (arguments.how or ("eager" if on_cpu else "compile")).split(",")
    arguments.how_padded = (arguments.how_padded or ("eager" if on_cpu else "eager,compile")).split(",")
    arguments.batches = [float(share) for share in arguments.batches.split(",")]
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
    sizes = arguments.sizes.split(",")
    output = Output(arguments, facts, sizes, lengths)
    output.write()
    try:
        for size in sizes:
            try:
                report = ours_of(arguments, clock, size, lengths, folder)
            except (OSError, RuntimeError, ValueError) as error:
                output.failures[size] = first_line(error)
                say(f"{size}: {output.failures[size]}")
                continue
            output.ours[size] = report
            told = [(name, value) for name, value in report["facts"] if name not in ("date", "command", "took")]
            for name in dict.fromkeys(name for name, _ in told):
                facts[f"ours, {name}"] = "; ".join(value for other, value in told if other == name)
            cells = {cell["lengths"] for cell in report["cells"]}
            done = [length for length in lengths if length in cells and (folder / size / f"{length}.f32").exists()]
            attempts = Attempts(clock, arguments.seconds, lengths, output.write)
            output.results[size] = attempts.results
            output.write()
            if done:
                budget = report["loads"][0]["token_budget"]
                peers_of(arguments, attempts, folder / size, done, budget, device, dtype)
            if not arguments.folder:
                shutil.rmtree(folder / size, ignore_errors=True)
    except CutOff as cut:
        facts["cut off"] = str(cut)
        say(f"cut off: {cut}")
    finally:
        clock.stop()
        rows, missing = output.write(finally_=True)
        if not arguments.folder:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(1 if missing or not rows else 0)


if __name__ == "__main__":
    main()
