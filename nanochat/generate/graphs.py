"""CUDA graphs of the decoding step: a token costs two launches, an upload and a download, instead of hundreds of kernel launches.

A small model's decoding time on a GPU is the time in which the host launches kernels. A graph launches all of a step's at once, with the
addresses and numbers they had when it was captured. So everything that changes from step to step is in tensors that stay where they are,
and sizes are rounded up: rows to a power of two, and the cached positions that are attended to.

Shapes: B rows, V vocabulary.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from nanochat.console import log
from nanochat.generate.sampling import CUT, GREEDY, WHOLE, Sampling, draw
from nanochat.model.attention import KVCache
from nanochat.model.decode import Decoder

SPAN = 256  # cached positions of the smallest graph
MOST = 64  # most likely tokens in the smallest graph that ranks them
GRAPHS = 64  # of one cache; the longest unused one is dropped
FIELDS = 8  # numbers of a row: id, length, whether it is live, kind of sampling, and the four of Sampling.values
PADDING = (0.0, 0.0, 0.0, GREEDY, 1.0, 1.0, 1.0, 0.0)

Work = Callable[[], object]
Capture = Callable[[Work], Work]  # work on a GPU, recorded and not executed -> a function that executes it


class GraphedStep:
    """Feeds sequences their newest token and chooses the next one, with the cache at the addresses and the weights it has now.

    The numbers are those of a Decoder and of `sample`. Work is executed as it is when it is new, and captured when it comes again; without
    `capture`, or after one that failed, it is executed as it is every time.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, vocabulary: int, capture: Capture | None):
        device, slots = cache.lengths.device, len(cache.lengths)
        self._decoder, self._cache, self._vocabulary = decoder, cache, vocabulary
        self._executed: set[Hashable] = set()  # as it is, once at least
        self._graphs: OrderedDict[Hashable, Work] = OrderedDict()  # the longest unused one first; freed before the memory of `capture`
        self._capture = capture
        self._host = torch.zeros(slots, FIELDS, dtype=torch.float64, pin_memory=device.type == "cuda")  # float64 holds each id exactly
        self._fields = self._host.to(device, copy=True)
        self._logits = torch.zeros(slots, vocabulary, device=device)
        self._chosen = torch.zeros(slots, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def __call__(
        self, ids: Sequence[int], lengths: Sequence[int], samplings: Sequence[Sampling], generators: Sequence[torch.Generator]
    ) -> tuple[list[int], Tensor]:
        """The token chosen for each of the first B slots, and the logits (B, V), which the next call replaces.

        Slot b has `lengths[b]` tokens, to which `ids[b]` is appended.
        """
        rows = _rounded(len(ids), 1, len(self._host))
        span = _rounded(max(lengths) + 1, SPAN, self._cache.length)
        fields: list[tuple[float, ...]] = []
        kinds: set[int] = set()
        most = 0  # of the most likely tokens that are kept
        for id, length, sampling, generator in zip(ids, lengths, samplings, generators, strict=True):
            kind = sampling.kind(self._vocabulary)
            values = PADDING[4:] if kind == GREEDY else sampling.values(generator, self._vocabulary)
            most = max(most, int(values[0])) if kind == CUT else most
            kinds.add(kind)
            fields.append((id, length, 1.0, kind, *values))
        most = _rounded(most, MOST, self._vocabulary) if most else 0
        self._host[:rows] = torch.tensor(fields + [PADDING] * (rows - len(fields)), dtype=torch.float64)
        self._fields[:rows].copy_(self._host[:rows], non_blocking=True)  # the last step's copy is over: its tokens have come back
        self._run(("decode", rows, span), lambda: self._decode(rows, span))
        self._run(("choose", rows, WHOLE in kinds, most), lambda: self._choose(rows, WHOLE in kinds, most))
        return self._chosen[: len(ids)].tolist(), self._logits[: len(ids)]

    def _decode(self, rows: int, span: int) -> None:
        tokens, positions, live = self._fields[:rows, :3].long().unbind(1)
        self._logits[:rows] = self._decoder.logits(tokens, positions, span, self._cache.slots(0, rows), live.bool())

    def _choose(self, rows: int, whole: bool, most: int) -> None:
        logits, kinds, values = self._logits[:rows], self._fields[:rows, 3], self._fields[:rows, 4:]
        chosen = logits.argmax(-1)
        if whole:
            chosen = torch.where(kinds == WHOLE, draw(logits, values), chosen)
        if most:
            chosen = torch.where(kinds == CUT, draw(logits, values, most), chosen)
        self._chosen[:rows] = chosen

    def _run(self, key: Hashable, work: Work) -> None:
        """Do `work`, which is the same for the same key: launch its graph, capture it first if the key is not new."""
        if self._capture is None or key not in self._executed:
            self._executed.add(key)
            work()
            return
        if key not in self._graphs:
            try:
                self._graphs[key] = self._capture(work)
            except RuntimeError as error:  # of CUDA, or out of memory
                self._capture = None
                self._graphs.clear()
                say_once(f"skipped: CUDA graphs for decoding: {str(error).splitlines()[0]}")
                work()
                return
            if len(self._graphs) > GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        self._graphs[key]()


def _rounded(count: int, least: int, most: int) -> int:
    """The power of two, at least `least`, that is not below `count`; at most `most`."""
    return min(max(least, 1 << (count - 1).bit_length()), most)


@functools.cache
def say_once(text: str) -> None:
    """Log `text`, the first time."""
    log(text)


class CudaGraphs:
    """Captures graphs on a GPU that share one memory pool, which is freed with the last of them."""

    def __init__(self, device: torch.device):
        self._device = device

    @functools.cached_property
    def _pool(self) -> torch.cuda.MemPool:
        return torch.cuda.MemPool()

    def __call__(self, work: Work) -> Work:
        """A function that launches `work`. Raises RuntimeError if the GPU or its driver cannot hold it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(_capture_stream(self._device)):
            # Other threads may use the GPU meanwhile: a server loads a newer checkpoint.
            # The pool's id, because older torch does not take the pool itself.
            graph.capture_begin(pool=self._pool.id, capture_error_mode="thread_local")  # type: ignore[arg-type]
            try:
                work()
            finally:
                graph.capture_end()
        return graph.replay


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which this process captures: cuBLAS keeps a workspace for each stream."""
    return torch.cuda.Stream(device)


def cuda_graphs(device: torch.device) -> CudaGraphs | None:
    """Graphs on `device`; None if they cannot compute what is wanted."""
    if torch.are_deterministic_algorithms_enabled():
        say_once("skipped: CUDA graphs for decoding, because deterministic sampling is on the CPU")
        return None
    return CudaGraphs(device)
