"""A dataset is written whole, read back equal, and every damage to it is named."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data.shards import link_shards, open_dataset, shard_name, texts, verify, write_dataset
from nanochat.errors import DataError
from nanochat.paths import dataset_dir


def written(folder: Path, documents: int = 2500, **more):
    options = {"name": "embedded", "source": "a test", "licence": "MIT"} | more
    return write_dataset(folder, training=(f"文件 number {i}" for i in range(documents)), validation=["held out"], **options)


def put(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pq.write_table(pa.table({"text": [f"shard {index} document {i}" for i in range(20)]}), folder / shard_name(index))


def test_what_is_written_is_read(base):
    dataset = written(dataset_dir("embedded"), shard_bytes=500)
    assert len(dataset.training) > 1
    batches = [batch for shard in dataset.training for batch in texts(shard)]
    assert [text for batch in batches for text in batch] == [f"文件 number {i}" for i in range(2500)]
    assert max(map(len, batches)) <= 1000
    assert list(texts(dataset.validation)) == [["held out"]]
    assert dataset.text_bytes == sum(len(f"文件 number {i}".encode()) for i in range(2500))
    assert open_dataset(dataset.folder) == dataset
    verify(dataset)
    assert dataset.validation not in dataset.training
    assert dataset.first(1).training == dataset.training[:1]


def test_nothing_is_left_of_a_failed_writing(base):
    def broken():
        yield "one"
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        write_dataset(dataset_dir("x"), name="x", source="", licence="", training=broken(), validation=["v"])
    assert list((base / "data").iterdir()) == []
    with pytest.raises(DataError, match="no text for training"):
        written(dataset_dir("x"), documents=0)
    assert list((base / "data").iterdir()) == []


@pytest.mark.parametrize("harm", ["missing", "short", "changed"])
def test_damage_is_found_and_named(base, harm):
    dataset = written(dataset_dir("embedded"))
    path = dataset.training[0].path
    data = bytearray(path.read_bytes())
    if harm == "missing":
        path.unlink()
    elif harm == "short":
        path.write_bytes(data[:-1])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        verify(open_dataset(dataset.folder))
    assert path.name in caught.value.message and "embedded" in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m | {"format": 99},
        lambda m: m | {"training": []},
        lambda m: m | {"training": [m["validation"]]},
        lambda m: m | {"validation": None},
        lambda m: m | {"validation": m["validation"] | {"file": "../../x.parquet"}},
        lambda m: m | {"validation": m["validation"] | {"bytes": "many"}},
        lambda m: m | {"validation": m["validation"] | {"sha256": "../../../x"}},
        lambda m: m | {"validation": m["validation"] | {"text_bytes": float("inf")}},
        lambda m: m | {"training": [m["training"][0] | {"sha256": "A" * 64}]},
        lambda m: m | {"name": 3},
        lambda m: [],
        lambda m: {key: value for key, value in m.items() if key != "licence"},
    ],
)
def test_a_broken_manifest_is_refused(base, change):
    manifest = written(dataset_dir("x")).folder / "manifest.json"
    manifest.write_text(json.dumps(change(json.loads(manifest.read_text()))))
    with pytest.raises(DataError):
        open_dataset(manifest.parent)


def test_no_manifest_names_the_command(base):
    with pytest.raises(DataError, match="no dataset") as caught:
        open_dataset(dataset_dir("climbmix"))
    assert "nanochat download --dataset climbmix" in caught.value.hint


def test_shards_are_linked_without_copying(tmp_path):
    put(tmp_path / "old", 2)
    put(tmp_path / "new", 1)
    assert link_shards(tmp_path / "new", tmp_path / "old") == 1
    assert (tmp_path / "new" / shard_name(1)).samefile(tmp_path / "old" / shard_name(1))
    assert link_shards(tmp_path / "new", tmp_path / "nowhere") == 0


def test_wrong_columns_are_listed(tmp_path):
    pq.write_table(pa.table({"content": ["a"], "url": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="content, url"):
        list(texts(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"text": [1]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="int64"):
        list(texts(tmp_path / "b.parquet"))


def test_nulls_are_left_out(tmp_path):
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    assert list(texts(tmp_path / "a.parquet")) == [["a", "b"]]
