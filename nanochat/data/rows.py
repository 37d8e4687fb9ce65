"""From shards to batches: rows of T + 1 ids, packed once in Rust, dealt in an order that only the seed decides.

    tokens/<tokenizer id>/T<T>-v<packer>/<shard hash>.bin    ids, memory-mapped, in a rolling cache of bounded size
                                         <shard hash>.json   its row count, which outlives the rows

Step k takes the next rows of one endless order: the seed permutes the shards, then the rows within each; an epoch
is a new permutation. So the cursor is the step itself, and what a step sees depends neither on the number of ranks
nor on the device batch.
"""

import bisect
import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import rustbpe
from nanochat import paths
from nanochat.console import Progress, log
from nanochat.data.shards import Dataset, Shard, columns
from nanochat.errors import DataError
from nanochat.tokenizer.conversation import Conversation
from nanochat.tokenizer.tokenizer import Tokenizer

PACKER_VERSION = 1
CACHE_BYTES = 20 << 30  # of packed rows kept on disk
CONVERSATION_BUFFER = 100
HEAD_START = 0.5  # seconds


class RowCache:
    """The packed rows of shards under one tokenizer and row length; packs what is missing, forgets what is too much.

    Each shard is packed by one process at a time; the others wait for it and find its file. Only a `packer`, one process
    a machine, packs `ahead` of need, and is given the start of a second elsewhere: its progress is the one that is shown.
    """

    def __init__(self, tokenizer: Tokenizer, seq_len: int, *, packer: bool = True, ahead: bool = True, limit_bytes: int = CACHE_BYTES):
        self.tokenizer, self.row, self.packer, self.ahead, self.limit = tokenizer, seq_len + 1, packer, packer and ahead, limit_bytes
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 65536 else "<u4")
        self.folder = paths.tokens_dir(tokenizer.id) / f"T{seq_len}-v{PACKER_VERSION}"
        self.background = ThreadPoolExecutor(1, thread_name_prefix="packer")
        self.packing: dict[str, Future[None]] = {}
        self.closed = False

    def count(self, shard: Shard) -> int:
        """Rows of a shard; packs it only if nobody ever counted them."""
        index = self._index(shard)
        if not index.exists():
            self._ensure(shard)
        return int(json.loads(index.read_text(encoding="utf-8"))["rows"])

    def rows(self, shard: Shard) -> np.ndarray:
        """All rows of a shard: (rows, T + 1), memory-mapped."""
        count = self.count(shard)
        while True:
            self._ensure(shard)
            try:
                if not count:  # an empty file cannot be mapped
                    return np.empty((0, self.row), self.dtype)
                mapped = np.memmap(self._bin(shard), self.dtype, "r", shape=(count, self.row))
                os.utime(self._bin(shard))  # recently used: evicted last
                return mapped
            except FileNotFoundError:  # another run's eviction was quicker
                continue
            except ValueError as error:
                raise DataError(f"{self._bin(shard)} is damaged", "remove that file and run the same command again") from error

    def prefetch(self, shard: Shard) -> None:
        """Begin to pack a shard in the background, so that it is there when its turn comes, where this cache packs ahead."""
        if self.ahead and shard.content not in self.packing and not self._packed(shard):
            self.packing[shard.content] = self.background.submit(self._pack, shard)

    def close(self) -> None:
        """Let go of the background thread; what it has not finished is dropped."""
        self.closed = True
        self.background.shutdown(wait=False, cancel_futures=True)

    def _bin(self, shard: Shard) -> Path:
        return self.folder / f"{shard.content[:16]}.bin"

    def _index(self, shard: Shard) -> Path:
        return self.folder / f"{shard.content[:16]}.json"

    def _packed(self, shard: Shard) -> bool:
        return self._bin(shard).exists() and self._index(shard).exists()

    def _ensure(self, shard: Shard) -> None:
        if shard.content in self.packing:
            self.packing.pop(shard.content).result()
        while not self._packed(shard):
            if not self.packer:
                time.sleep(HEAD_START)
            self._pack(shard)

    def _pack(self, shard: Shard) -> None:
        try:
            with paths.locked(self._index(shard).with_suffix(".lock")):
                if not self._packed(shard):  # nobody did while this process waited
                    self._write(shard)
        except OSError as error:
            raise paths.disk_error(error, f"packing {shard.path.name}") from error

    def _write(self, shard: Shard) -> None:
        temporary = self.folder / f"{paths.TEMPORARY}{uuid.uuid4().hex}"
        try:
            with Progress(f"packing {shard.path.name}", shard.documents, "documents") as progress:

                def batches() -> Iterator[Any]:
                    for batch in columns(shard):
                        if self.closed:
                            raise CancelledError
                        yield batch
                        progress.advance(len(batch))

                rows, tokens, size = self.tokenizer.encoding.pack_rows(batches(), self.row, str(temporary), self.tokenizer.bos)
            paths.fsync_file(temporary)
            temporary.replace(self._bin(shard))
            paths.atomic_write_json(self._index(shard), {"shard": shard.path.name, "rows": rows, "tokens": tokens, "text_bytes": size})
            self._evict(shard)
        finally:
            temporary.unlink(missing_ok=True)

    def _evict(self, newest: Shard) -> None:
        """Remove the rows used longest ago, of any tokenizer, until the rest fits; a process that has them mapped keeps them."""
        files = []
        for path in self.folder.parent.parent.glob("*/*/*.bin"):
            with contextlib.suppress(FileNotFoundError):  # another run's eviction was quicker
                files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit:
                return
            if path != self._bin(newest):
                total -= size
                path.unlink(missing_ok=True)


class RowOrder:
    """The endless order of rows: `segments` shards of `count(segment)` rows each, permuted anew in each epoch by the seed."""

    def __init__(self, segments: int, count: Callable[[int], int], seed: int):
        self.segments, self.count, self.seed = segments, count, seed
        self.begins = [0]  # the order's row at which its k-th visited segment begins

    def segment(self, visit: int) -> tuple[int, int]:
        """(epoch, segment) of the order's visit number `visit`."""
        epoch, place = divmod(visit, self.segments)
        return epoch, int(np.random.default_rng([self.seed, epoch]).permutation(self.segments)[place])

    def locate(self, first: int, last: int) -> Iterator[tuple[int, np.ndarray]]:
        """(visit, rows within its segment) of the order's rows first .. last - 1, in order."""
        while self.begins[-1] < last:
            count = self.count(self.segment(len(self.begins) - 1)[1])
            self.begins.append(self.begins[-1] + count)
            ended = (len(self.begins) - 1) % self.segments == 0  # an epoch
            if ended and self.begins[-1] == self.begins[-1 - self.segments]:
                raise DataError("the training text is shorter than one sequence", "add text, or lower --max_seq_len")
        visit = bisect.bisect_right(self.begins, first) - 1
        while first < last:
            begin, end = self.begins[visit], self.begins[visit + 1]
            if first < end:
                epoch, segment = self.segment(visit)
                permuted = np.random.default_rng([self.seed, epoch, segment]).permutation(end - begin)
                yield visit, permuted[first - begin : min(last, end) - begin]
                first = min(last, end)
            visit += 1


class TextRows:
    """Training rows of a dataset: `rows(first, last)` of the order, packing the next shard while this one is read."""

    def __init__(self, dataset: Dataset, cache: RowCache, seed: int):
        self.shards, self.cache = dataset.training, cache
        self.order = RowOrder(len(self.shards), lambda segment: cache.count(self.shards[segment]), seed)
        self.open: tuple[int, np.ndarray] | None = None  # the visit being read, and its rows
        self.epoch = 0

    def rows(self, first: int, last: int) -> np.ndarray:
        """Rows first .. last - 1 of the order: (last - first, T + 1)."""
        parts = []
        for visit, rows in self.order.locate(first, last):
            if self.open is None or self.open[0] != visit:
                epoch, segment = self.order.segment(visit)
                self.open = (visit, self.cache.rows(self.shards[segment]))
                self.cache.prefetch(self.shards[self.order.segment(visit + 1)[1]])
                if epoch > self.epoch and self.cache.packer:
                    log(f"epoch {epoch + 1}: reading the text again, in a new order")
                self.epoch = epoch
            parts.append(self.open[1][rows])
        return np.concatenate(parts)


class ConversationRows:
    """Training rows of conversations: whole conversations packed best-fit, padded with BOS, only the assistant's ids as targets."""

    def __init__(self, conversations: Sequence[Conversation], tokenizer: Tokenizer, seq_len: int, seed: int):
        row = seq_len + 1
        ids, masks = [], []
        with Progress("encoding conversations", len(conversations), "conversations") as progress:
            for conversation in conversations:
                one_ids, one_mask = tokenizer.render(conversation, row)
                ids.append(np.array(one_ids, dtype=np.int32))
                masks.append(np.array(one_mask, dtype=bool))
                progress.advance(1)
        lengths = np.array([len(one) for one in ids], dtype=np.int64)
        place, item, _, _ = rustbpe.plan_rows(lengths, row, buffer=CONVERSATION_BUFFER, crop=False)
        count = int(place.max()) + 1 if len(place) else 0
        self.ids = np.full((count, row), tokenizer.bos, dtype=np.int32)
        self.mask = np.zeros((count, row), dtype=bool)
        filled = np.zeros(count, dtype=np.int64)
        for target, source in zip(place.tolist(), item.tolist(), strict=True):
            begin, length = filled[target], len(ids[source])
            self.ids[target, begin : begin + length] = ids[source]
            self.mask[target, begin : begin + length] = masks[source]
            filled[target] += length
        self.seed = seed
        self._keep(np.flatnonzero(self.mask[:, 1:].any(axis=1)))  # a row without a target teaches nothing
        if not len(self):
            raise DataError(
                "no conversation has an answer within the sequence length", "use shorter conversations, or a larger --max_seq_len"
            )

    def _keep(self, rows: np.ndarray) -> None:
        self.ids, self.mask = self.ids[rows], self.mask[rows]
        self.order = RowOrder(1, lambda _: len(self.ids), self.seed)

    def hold_out(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Take `count` rows out of the training rows, evenly spread: ids and mask (count, T + 1). With 0, the first row, which stays."""
        chosen = np.zeros(len(self), dtype=bool)
        chosen[np.linspace(0, len(self) - 1, max(count, 1)).astype(np.int64)] = True
        held_out = self.ids[chosen], self.mask[chosen]
        if count:
            self._keep(np.flatnonzero(~chosen))
        return held_out

    def rows(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows first .. last - 1 of the order: ids and mask, each (last - first, T + 1)."""
        chosen = np.concatenate([rows for _, rows in self.order.locate(first, last)])
        return self.ids[chosen], self.mask[chosen]

    def __len__(self) -> int:
        return len(self.ids)
