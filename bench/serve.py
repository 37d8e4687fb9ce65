"""Chat engine: tokens per second with 1 to 64 streams, compared with a single stream and with Hugging Face's generate.

The model's weights are random (their values do not change the speed) and its answers are of equal length. The peer is a GPT-2
of the same layers, width, heads and vocabulary, greedy, left-padded, with its KV cache, in a separate environment, with one
thread or all cores, whichever is faster. Prints one line per measurement and the ratios.
"""

import argparse
import json
import math
import statistics
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import torch
from peers.environment import environment

from nanochat.chat.loading import LoadedModel
from nanochat.chat.metrics import ServerMetrics
from nanochat.chat.scheduler import Delta, GenerationRequest, Scheduler
from nanochat.generate.sampling import Sampling
from nanochat.model.build import build_model
from nanochat.model.scaling import GPTConfig, count_parameters
from nanochat.tokenizer.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
TRANSFORMERS = "transformers==5.24.0"
SHAPES: dict[str, dict[str, Any]] = {
    "quickstart": {
        "depth": 3,
        "dim": 96,
        "n_head": 3,
        "n_kv_head": 3,
        "head_dim": 32,
        "vocab_size": 512,
        "max_seq_len": 256,
        "window_pattern": "SSSL",
    },
    "d8": {
        "depth": 8,
        "dim": 512,
        "n_head": 4,
        "n_kv_head": 4,
        "head_dim": 128,
        "vocab_size": 32768,
        "max_seq_len": 2048,
        "window_pattern": "L",
    },
}
TOKENS = {"quickstart": 128, "d8": 32}
# With --form: no answer ends before its tokens do.
PET = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name", "age"]}
FORM = {"type": "array", "items": PET | {"additionalProperties": False}, "minItems": 10_000}
PROMPTS = [12 + 7 * i % 40 for i in range(64)]  # lengths, mixed

PEER = """
import json, sys, time, torch
from transformers import GPT2Config, GPT2LMHeadModel
shape, lengths, tokens, threads, device = json.loads(sys.argv[1])
torch.set_num_threads(threads)
config = GPT2Config(n_layer=shape["depth"], n_embd=shape["dim"], n_head=shape["n_head"], vocab_size=shape["vocab_size"],
    n_positions=shape["max_seq_len"], bos_token_id=None, eos_token_id=None, pad_token_id=0)
torch.manual_seed(0)
model = GPT2LMHeadModel(config).eval().to(device, torch.bfloat16 if device == "cuda" else torch.float32)
for line in sys.stdin:
    streams = int(line)
    longest = max(lengths[:streams])
    ids, mask = torch.zeros(streams, longest, dtype=torch.long), torch.zeros(streams, longest, dtype=torch.long)
    for row, length in enumerate(lengths[:streams]):
        ids[row, longest - length:] = torch.randint(1, 500, (length,))
        mask[row, longest - length:] = 1
    began = time.perf_counter()
    with torch.inference_mode():
        ids, mask = ids.to(device), mask.to(device)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, use_cache=True)
    assert out.tolist() and out.shape[1] == longest + tokens
    print(time.perf_counter() - began, flush=True)
"""


def peer_python() -> Path:
    """The peer's interpreter, in a separate environment with this one's torch."""
    return environment(ROOT / ".venv" / "serve-peers", f"torch=={torch.__version__.split('+')[0]}", TRANSFORMERS)


def loaded_model(shape: dict[str, Any], device: str, streams: int = 64) -> LoadedModel:
    """A model with random weights that never generates a special token."""
    model = build_model(GPTConfig(**shape), device)
    model.use(torch.bfloat16 if device == "cuda" else torch.float32)
    tokenizer = Tokenizer([bytes([b]) for b in range(256)] + [i.to_bytes(3, "big") for i in range(shape["vocab_size"] - 265)])
    with torch.no_grad():
        model.head.weight.normal_(0, 0.05)
        model.head.weight[len(tokenizer.tokens) :] = 0
    return LoadedModel("bench", "sft", 0, model, tokenizer, True, False, 0, streams)


class Load:
    """`streams` concurrent requests; seconds to the end of all, and to the first token of each."""

    def __init__(self, model: LoadedModel, scheduler: Scheduler, streams: int, tokens: int, form: bool = False):
        self.first: list[float] = []
        self._begun: set[int] = set()  # the streams with a first token
        self._left, self._done = streams, threading.Event()
        requests = []
        for row in range(streams):
            prompt = torch.randint(1, 256, (PROMPTS[row],)).tolist()
            constraint = model.constraints.compile(FORM) if form else None
            requests.append(GenerationRequest(model, prompt, tokens, Sampling(0.0), self._take, row, constraint=constraint))
        self._began = time.perf_counter()
        scheduler.submit(requests)
        self._done.wait()
        self.seconds = time.perf_counter() - self._began
        assert all(request.completion_tokens == tokens for request in requests)

    def _take(self, delta: Delta) -> None:
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            self.first.append(time.perf_counter() - self._began)
        if delta.finish:
            self._left -= 1
            if not self._left:
                self._done.set()


class Peer:
    """Hugging Face's generate in a separate process."""

    def __init__(self, shape: dict[str, Any], tokens: int, threads: int, device: str):
        command = [str(peer_python()), "-c", PEER, json.dumps([shape, PROMPTS, tokens, threads, device])]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def seconds(self, streams: int) -> float:
        """The seconds of one batch."""
        assert self._process.stdin
        assert self._process.stdout
        print(streams, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


def measure(name: str, streams: list[int], repeats: int, device: str, alone: bool, form: bool) -> None:
    """Alternate with the peer, if there is one, and print medians and ratios."""
    shape, tokens = SHAPES[name], TOKENS[name]
    peers = [] if alone else [Peer(shape, tokens, threads, device) for threads in sorted({1, torch.get_num_threads()})]
    model, scheduler = loaded_model(shape, device), Scheduler(ServerMetrics())
    scheduler.start()
    ours: dict[int, list[float]] = {count: [] for count in streams}
    theirs: dict[int, list[list[float]]] = {count: [[] for _ in peers] for count in streams}
    first: dict[int, list[float]] = {count: [] for count in streams}
    for repeat in range(repeats + 1):  # the first one is a warm-up
        for count in streams:
            load = Load(model, scheduler, count, tokens, form)
            seconds = [peer.seconds(count) for peer in peers]
            if repeat:
                ours[count].append(count * tokens / load.seconds)
                first[count] += load.first
                for rates, taken in zip(theirs[count], seconds, strict=True):
                    rates.append(count * tokens / taken)
    for peer in peers:
        peer.end()
    scheduler.stop()
    parameters = count_parameters(model.model.config)["total"]
    print(f"{name}: {parameters:,} parameters, answers of {tokens} tokens, {model.threads} thread(s), medians of {repeats}")
    single = statistics.median(ours[streams[0]])
    for count in streams:
        own, other = statistics.median(ours[count]), max(map(statistics.median, theirs[count]), default=math.nan)
        waits = sorted(first[count])
        print(
            f"  {count:2} streams: {own:7.0f} tokens/s, {own / single:5.2f}x of {streams[0]} (generate {other:7.0f}, "
            f"ratio {own / other:5.2f}); first token median {waits[len(waits) // 2] * 1000:5.0f} ms, slowest {waits[-1] * 1000:5.0f} ms",
            flush=True,
        )


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 8, 32, 64])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--alone", action="store_true", help="without the peer, which is installed from the package registry")
    parser.add_argument("--form", action="store_true", help="answers of a JSON schema, by constrained decoding")
    options = parser.parse_args()
    for name in options.models:
        measure(name, options.streams, options.repeats, options.device, options.alone, options.form)


if __name__ == "__main__":
    main()
