"""Rows hold every document, their order depends on the seed alone, and the cache forgets rows but never their number."""

import itertools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.finetuning import require_learnable
from nanochat.data.rows import ConversationRows, RowCache, RowOrder, TextRows
from nanochat.data.shards import Dataset, Shard, texts, write_dataset
from nanochat.distributed.ranks import Ranks, single
from nanochat.errors import DataError
from nanochat.paths import dataset_dir
from nanochat.tokenizer.conversation import Conversation
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.finetune import ConversationBatches
from nanochat.train.pretrain import TextBatches

T = 24
ROW = T + 1
TOKENIZER = Tokenizer([bytes([i]) for i in range(256)])  # an id is a byte
BOS = TOKENIZER.bos


def number(i: int) -> str:
    """A text of its own, of 3 to 60 bytes."""
    return f"{i:03}" + "abcdefgh"[i % 8] * (i * 7 % 58)


def written(training: list[str], validation: str = "V" * 40, name: str = "small") -> Dataset:
    """`training` in shards of a thousand documents."""
    options = {"name": name, "source": "a test", "licence": "none", "shard_bytes": 100}
    return write_dataset(dataset_dir(name), training=training, validation=[validation], **options)


@pytest.fixture
def dataset(base: Path) -> Dataset:
    """Three shards."""
    return written([number(i) for i in range(2100)])


def documents(shard: Shard) -> list[str]:
    return [text for batch in texts(shard) for text in batch]


# ---- packing ----------------------------------------------------------------------------------------------------


def pieces(ids: np.ndarray) -> list[bytes]:
    """What lies between the BOS of some rows, as bytes."""
    flat = ids.reshape(-1).tolist()
    starts = [place for place, one in enumerate(flat) if one == BOS] + [len(flat)]
    return [bytes(flat[begin + 1 : end]) for begin, end in itertools.pairwise(starts)]


def test_rows_hold_every_document_once(dataset: Dataset) -> None:
    assert len(dataset.training) == 3
    cache = RowCache(TOKENIZER, T)
    for shard in dataset.training:
        rows, stored = cache.rows(shard), documents(shard)
        assert rows.shape == (cache.count(shard), ROW)
        index = json.loads(next(cache.folder.glob(f"{shard.sha256[:16]}.json")).read_text())
        assert index["text_bytes"] == sum(len(text.encode()) for text in stored)
        found = rows.reshape(-1)[: index["tokens"]]  # without what completes the last row
        assert Counter(found[found != BOS].tolist()) == Counter(byte for text in stored for byte in text.encode())
        assert len(rows) * ROW - index["tokens"] < ROW
        assert (found == BOS).sum() >= len(stored) and (rows[:, 0] == BOS).all()


def test_a_document_that_fits_is_not_cut(base: Path) -> None:
    dataset = written([number(i)[: 1 + i % 12] for i in range(1000)])
    whole = Counter(text.encode() for text in documents(dataset.training[0]))
    found = Counter(pieces(RowCache(TOKENIZER, T).rows(dataset.training[0])))
    kept = sum((whole & found).values())
    assert kept > 0.9 * sum(whole.values())  # best fit crops few


def test_validation_is_never_trained_on(dataset: Dataset) -> None:
    cache = RowCache(TOKENIZER, T)
    assert (cache.rows(dataset.validation) == ord("V")).any()
    assert not any((cache.rows(shard) == ord("V")).any() for shard in dataset.training)
    count = sum(cache.count(shard) for shard in dataset.training)
    assert not (TextRows(dataset, cache, 1).rows(0, 2 * count) == ord("V")).any()


@pytest.mark.parametrize("text", ["x", "ab" * T, "long " * 500, "", "é"])
def test_a_tiny_text_gives_rows_for_ever(text: str, base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset = written([text])
    rows = TextRows(dataset, RowCache(TOKENIZER, T), 1)
    got = rows.rows(0, 500)
    assert got.shape == (500, ROW) and (got[:, 0] == BOS).all()
    assert Counter(got[got != BOS].tolist()).keys() == set(text.encode())
    assert "epoch 2: reading" in capfd.readouterr().err


def test_a_shard_without_documents_is_no_row(base: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = base / "nothing.parquet"
    base.mkdir()
    pq.write_table(pa.table({"text": pa.array([None, None], pa.string())}), path)
    empty = Shard(path, path.stat().st_size, "0" * 64, 2)
    cache = RowCache(TOKENIZER, T)
    assert cache.rows(empty).shape == (0, ROW)
    full = written(["some text"])
    with pytest.raises(DataError, match="shorter than one sequence"):
        TextRows(Dataset("", base, "", "", (empty, empty), full.validation), cache, 1).rows(0, 1)
    mixed = Dataset("", base, "", "", (empty, full.training[0], empty), full.validation)
    assert TextRows(mixed, cache, 1).rows(0, 9).shape == (9, ROW)


# ---- order ------------------------------------------------------------------------------------------------------


def slow_order(counts: list[int], seed: int, rows: int) -> list[tuple[int, int]]:
    """(segment, row) of the order's first `rows` rows, an epoch at a time."""
    order: list[tuple[int, int]] = []
    epoch = 0
    while len(order) < rows:
        for segment in np.random.default_rng([seed, epoch]).permutation(len(counts)).tolist():
            order += [(segment, row) for row in np.random.default_rng([seed, epoch, segment]).permutation(counts[segment]).tolist()]
        epoch += 1
    return order[:rows]


def located(order: RowOrder, first: int, last: int) -> list[tuple[int, int]]:
    return [(order.segment(visit)[1], row) for visit, rows in order.locate(first, last) for row in rows.tolist()]


some_counts = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any)


@given(some_counts, st.integers(0, 2**31), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 25)), max_size=5))
def test_the_order_is_a_function_of_seed_and_place(counts: list[int], seed: int, asked: list[tuple[int, int]]) -> None:
    order = RowOrder(len(counts), counts.__getitem__, seed)
    expected = slow_order(counts, seed, 100)
    for first, size in asked:  # in any sequence: resume begins anywhere
        assert located(order, first, first + size) == expected[first : first + size]


@given(some_counts, st.integers(0, 2**31))
def test_an_epoch_is_a_permutation(counts: list[int], seed: int) -> None:
    total = sum(counts)
    order = RowOrder(len(counts), counts.__getitem__, seed)
    every = sorted((segment, row) for segment, count in enumerate(counts) for row in range(count))
    for epoch in range(3):
        assert sorted(located(order, epoch * total, (epoch + 1) * total)) == every


def test_epochs_and_seeds_differ() -> None:
    order = RowOrder(3, lambda _: 50, 1)
    first, second = located(order, 0, 150), located(order, 150, 300)
    assert first != second and first != sorted(first) and first != located(RowOrder(3, lambda _: 50, 2), 0, 150)


# ---- batches ----------------------------------------------------------------------------------------------------


def over_ranks(source: TextBatches | ConversationBatches, step: int, world: int) -> tuple[np.ndarray, np.ndarray]:
    """The ranks' parts of a step, put together; `counted` is the same on all of them."""
    parts = [source.batch(step, Ranks(rank, rank, world, single().device)) for rank in range(world)]
    assert len({(part.counted, part.tokens) for part in parts}) == 1
    return np.concatenate([part.inputs for part in parts]), np.concatenate([part.targets for part in parts])


def text_batches(dataset: Dataset, rows_per_step: int = 12) -> TextBatches:
    return TextBatches(TextRows(dataset, RowCache(TOKENIZER, T), 5), rows_per_step)


def test_ranks_share_the_same_batches(dataset: Dataset) -> None:
    alone = text_batches(dataset)
    sources = {world: text_batches(dataset) for world in (2, 3, 4, 12)}
    for step in range(80):
        whole = alone.batch(step, single())
        assert whole.inputs.shape == whole.targets.shape == (12, T) and whole.counted == whole.tokens == 12 * T
        assert (whole.inputs[:, 1:] == whole.targets[:, :-1]).all()
        for world, source in sources.items():
            inputs, targets = over_ranks(source, step, world)
            assert (inputs == whole.inputs).all() and (targets == whole.targets).all()


def test_a_resumed_source_gives_the_same_batches(dataset: Dataset) -> None:
    source = text_batches(dataset)
    batches = [source.batch(step, single()).inputs for step in range(400)]
    assert source.rows.epoch > 0  # over the end of an epoch too

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 399), st.integers(1, 5))
    def check(start: int, more: int) -> None:
        resumed = text_batches(dataset)
        for step in range(start, min(start + more, 400)):
            assert (resumed.batch(step, single()).inputs == batches[step]).all()

    check()


# ---- the cache --------------------------------------------------------------------------------------------------


def test_eviction_keeps_the_count_and_packs_again(dataset: Dataset) -> None:
    cache = RowCache(TOKENIZER, T, limit_bytes=1)
    first, second, _ = dataset.training
    rows = cache.rows(first)
    before = rows.copy()
    cache.rows(second)
    assert [path.stem for path in cache.folder.glob("*.bin")] == [second.sha256[:16]]
    assert (rows == before).all()  # who has them mapped keeps them
    assert RowCache(TOKENIZER, T).count(first) == len(before)
    assert len(list(cache.folder.glob("*.bin"))) == 1  # counting packs nothing
    assert (cache.rows(first) == before).all()


def test_the_oldest_rows_go_first(dataset: Dataset) -> None:
    def left(cache: RowCache) -> set[str]:
        return {path.stem for path in cache.folder.glob("*.bin")}

    a, b, c = dataset.training
    size = len(RowCache(TOKENIZER, T).rows(a)) * ROW * 2
    cache = RowCache(TOKENIZER, T, limit_bytes=int(1.7 * size))  # the third shard is a tenth of the first two
    cache.rows(c)
    assert left(cache) == {a.sha256[:16], c.sha256[:16]}
    for age, shard in ((200, a), (100, c)):
        os.utime(cache.folder / f"{shard.sha256[:16]}.bin", (time.time() - age,) * 2)
    cache.rows(a)  # used again: younger than c
    RowCache(TOKENIZER, 2 * T, limit_bytes=int(1.7 * size)).rows(c)  # rows of any length count
    assert left(cache) == {a.sha256[:16], c.sha256[:16]}
    RowCache(TOKENIZER, 2 * T, limit_bytes=int(1.1 * size)).rows(b)
    assert left(cache) == set()


def test_rows_are_what_tokenizer_and_length_make_them(dataset: Dataset) -> None:
    shard = dataset.training[0]
    other = Tokenizer([*TOKENIZER.tokens, b"aa"])
    shapes = {RowCache(TOKENIZER, T).rows(shard).shape, RowCache(TOKENIZER, 2 * T).rows(shard).shape, RowCache(other, T).rows(shard).shape}
    assert len(shapes) == 3
    assert RowCache(TOKENIZER, T).rows(shard).dtype == np.dtype("<u2")


def test_damaged_rows_are_an_error_that_names_the_file(dataset: Dataset) -> None:
    cache = RowCache(TOKENIZER, T)
    cache.rows(dataset.training[0])
    path = next(cache.folder.glob("*.bin"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=path.name):
        cache.rows(dataset.training[0])
    path.unlink()
    assert len(cache.rows(dataset.training[0]))


def test_rows_without_their_count_are_packed_again(dataset: Dataset) -> None:
    cache = RowCache(TOKENIZER, T)
    before = cache.rows(dataset.training[0]).copy()
    next(cache.folder.glob("*.json")).unlink()  # killed between the two files
    assert (RowCache(TOKENIZER, T).rows(dataset.training[0]) == before).all()


def test_a_failure_in_the_background_is_raised_where_the_rows_are_read(dataset: Dataset) -> None:
    cache = RowCache(TOKENIZER, T)
    shard = dataset.training[1]
    shard.path.write_bytes(b"no parquet")
    cache.prefetch(shard)
    with pytest.raises(DataError, match=shard.path.name):
        cache.rows(shard)
    assert [path for path in cache.folder.iterdir() if path.suffix != ".lock"] == []


def test_only_one_packs_and_all_find_the_rows(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that need rows the packer has not come to do not wait for ever, nor do they pack the same rows twice."""
    packed: list[str] = []
    write = RowCache._write

    def counted(self: RowCache, shard: Shard) -> None:
        packed.append(shard.sha256)
        write(self, shard)

    monkeypatch.setattr(RowCache, "_write", counted)
    monkeypatch.setattr("nanochat.data.rows.HEAD_START", 0.01)
    shapes: list[tuple[int, ...]] = []
    work: Callable[[], None] = lambda: shapes.append(TextRows(dataset, RowCache(TOKENIZER, T, packer=False), 5).rows(0, 3000).shape)  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert shapes == [(3000, ROW)] * 4
    assert sorted(packed) == sorted(shard.sha256 for shard in dataset.training)


def test_rows_are_packed_ahead_only_where_that_is_asked_for(dataset: Dataset) -> None:
    """The same rows either way; without, no shard is packed before its turn."""
    order = TextRows(dataset, RowCache(TOKENIZER, T, ahead=False), 5)
    first = order.rows(0, 1).copy()
    assert not order.cache.packing and len(list(order.cache.folder.glob("*.bin"))) == 1
    for path in order.cache.folder.glob("*"):
        path.unlink()
    ahead = TextRows(dataset, RowCache(TOKENIZER, T), 5)
    assert (ahead.rows(0, 1) == first).all()
    assert len(ahead.cache.packing) == 1
    ahead.cache.background.shutdown(wait=True)
    assert len(list(ahead.cache.folder.glob("*.bin"))) == 2
    assert (order.rows(0, 3000) == ahead.rows(0, 3000)).all()


def test_closing_stops_what_is_packed_in_the_background(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def endless(shard: Shard):
        while True:
            reading.set()
            yield ["some text"]
            go_on.wait(20)

    monkeypatch.setattr("nanochat.data.rows.columns", endless)
    cache = RowCache(TOKENIZER, T)
    cache.prefetch(dataset.training[0])
    assert reading.wait(20)
    cache.close()
    go_on.set()
    cache.background.shutdown(wait=True)
    assert [path for path in cache.folder.iterdir() if path.suffix != ".lock"] == []


# ---- conversations ----------------------------------------------------------------------------------------------


def conversation(question: str, answer: str) -> Conversation:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def rendered(one: Conversation) -> tuple[list[int], list[int]]:
    return TOKENIZER.render(one, ROW)


def split(rows: ConversationRows) -> Counter[tuple[tuple[int, ...], tuple[bool, ...]]]:
    """The (ids, mask) of each conversation in the rows, padding dropped."""
    found: Counter[tuple[tuple[int, ...], tuple[bool, ...]]] = Counter()
    for ids, mask in zip(rows.ids, rows.mask, strict=True):
        assert ids[0] == BOS
        starts = [*np.flatnonzero(ids == BOS).tolist(), len(ids)]
        for begin, end in itertools.pairwise(starts):
            if end - begin > 1:
                found[tuple(ids[begin:end].tolist()), tuple(mask[begin:end].tolist())] += 1
            else:
                assert not mask[begin:end].any()
    return found


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text("qr", max_size=30), st.text("xy", min_size=1, max_size=30)), min_size=1, max_size=40))
def test_every_conversation_is_whole_in_one_row(pairs: list[tuple[str, str]]) -> None:
    given_ones = [conversation(*pair) for pair in pairs] + [conversation("q", "x")]
    rows = ConversationRows(given_ones, TOKENIZER, T, 1)
    expected = Counter((tuple(ids), tuple(map(bool, mask))) for ids, mask in map(rendered, given_ones))
    found = split(rows)
    assert not found - expected
    assert not any(any(mask) for _, mask in expected - found)  # rows without any target are left out
    learnt = {TOKENIZER.special("<|assistant_end|>"), ord("x"), ord("y")}
    assert set(rows.ids[rows.mask].tolist()) <= learnt  # only the assistant's own tokens
    assert len(rows) <= len(given_ones)


def test_long_conversations_are_cut_and_clog_nothing() -> None:
    """However many do not fit, each takes one row and the others are packed as if they were not there."""
    short = [conversation("q", "x") for _ in range(300)]  # 7 ids each: three a row
    long = [conversation("q" * 5, "y" * 1000) for _ in range(300)]
    alone = ConversationRows(short, TOKENIZER, T, 1)
    assert len(alone) == 100
    both = ConversationRows([one for pair in zip(long, short, strict=True) for one in pair], TOKENIZER, T, 1)
    assert len(both) == 400
    assert (both.ids == ord("y")).sum() == 300 * (ROW - 9)
    assert split(both)[tuple(rendered(short[0])[0]), tuple(map(bool, rendered(short[0])[1]))] == 300


def test_nothing_to_learn_is_an_error() -> None:
    for hopeless in ([conversation("q" * 100, "x")] * 3, []):
        with pytest.raises(DataError, match="no conversation has an answer") as raised:
            ConversationRows(hopeless, TOKENIZER, T, 1)
        with pytest.raises(DataError, match="has an answer within" if hopeless else "no conversations") as caught:
            require_learnable(hopeless, TOKENIZER, T)
        if hopeless:  # the hint's length is the least that is enough
            needed = int(caught.value.hint.split()[-3])
            assert len(ConversationRows(hopeless, TOKENIZER, needed, 1)) > 0
            with pytest.raises(DataError):
                ConversationRows(hopeless, TOKENIZER, needed - 1, 1)
        assert "max_seq_len" in raised.value.hint


def test_conversation_batches_are_shared_and_masked() -> None:
    rows = ConversationRows([conversation("q" * (i % 9), "xy"[i % 2] * (1 + i % 7)) for i in range(100)], TOKENIZER, T, 3)
    source = ConversationBatches(rows, 8)
    for step in range(12):
        whole = source.batch(step, single())
        assert ((whole.targets == -1) | (whole.targets == np.concatenate([whole.inputs[:, 1:], whole.targets[:, -1:]], 1))).all()
        assert whole.counted == (whole.targets != -1).sum()
        for world in (2, 4):
            inputs, targets = over_ranks(ConversationBatches(rows, 8), step, world)
            assert (inputs == whole.inputs).all() and (targets == whole.targets).all()
