"""A user's text, however it comes, becomes the same dataset; what cannot be read is said, with file and line."""

import gzip
import json
import os
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.conversation_files import read_conversations
from nanochat.data.shards import texts
from nanochat.data.text import documents
from nanochat.data.text.documents import import_texts
from nanochat.errors import DataError

ENGLISH = [
    f"Story {i}. A fox number {i * 7919 % 1000} met a bear in wood {i}, and they shared {i} apples by the river.\n" * 3 for i in range(400)
]
CHINESE = [f"第{i}章。臺灣的教育制度在過去{i * 31}年間經歷了許多變革,每一次都反映了社會的需求。今天天氣很好。\n" * 4 for i in range(400)]


def all_texts(dataset):
    return [[text for shard in side for batch in texts(shard) for text in batch] for side in (dataset.training, (dataset.validation,))]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["parquet", "jsonl", "jsonl.gz", "jsonl.zst", "folder", "folder.gz"])
def test_every_format_gives_the_same_documents(base, tmp_path, form):
    folder = tmp_path / "in"
    folder.mkdir()
    pack = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}.get(form.rpartition(".")[2], bytes)
    if form == "parquet":
        pq.write_table(pa.table({"id": range(400), "text": ENGLISH}), folder / "a.parquet")
    elif form.startswith("jsonl"):
        (folder / f"a.{form}").write_bytes(pack("".join(json.dumps({"text": text}) + "\n\n" for text in ENGLISH).encode()))
    else:
        for i, text in enumerate(ENGLISH):
            (folder / f"{i:04d}.txt{form[6:]}").write_bytes(pack(text.encode()))
        (folder / ".hidden.txt").write_text("not this")
        (folder / "picture.png").write_bytes(b"nor this")
        (folder / "empty.md").write_bytes(b"")
    training, validation = all_texts(import_texts(folder))
    assert sorted(training + validation) == sorted(text.strip() for text in ENGLISH)
    assert not set(training) & set(validation)
    size = sum(len(text) for text in ENGLISH)
    assert 0.08 * size < sum(map(len, validation)) < 0.12 * size  # a tenth of this small text


def test_one_per_cent_of_a_larger_text_and_64_kb_at_least(base, tmp_path):
    rows = [{"text": f"{i} " + "some words here and there " * 40} for i in range(9000)]
    dataset = import_texts(write_jsonl(tmp_path / "a.jsonl", rows))
    assert dataset.text_bytes > 9_000_000
    share = dataset.validation.text_bytes / (dataset.text_bytes + dataset.validation.text_bytes)
    assert dataset.validation.text_bytes >= 65_536 and 0.01 <= share < 0.0105


def test_duplicates_never_straddle(base, tmp_path):
    rows = [{"text": f"document {i % 300} " + "word " * 100} for i in range(3000)]
    training, validation = all_texts(import_texts(write_jsonl(tmp_path / "a.jsonl", rows)))
    assert len(training) + len(validation) == 3000 and validation and not set(training) & set(validation)


def test_opened_again_and_made_anew_when_changed(base, tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in ENGLISH])
    first = import_texts(path)
    stamp = first.validation.path.stat().st_mtime_ns
    assert import_texts(path) == first and first.validation.path.stat().st_mtime_ns == stamp
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 10**9))
    assert import_texts(path) == first  # touched
    moved = path.rename(tmp_path / "b.jsonl")
    assert import_texts(moved) == first == import_texts(path)  # moved, and still known by its old name
    assert "no longer exists" in capsys.readouterr().err
    write_jsonl(path, [{"text": text} for text in ENGLISH[1:]])
    assert import_texts(path).folder != first.folder


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "big5", "gb18030"])
def test_encodings_are_detected_and_said_once(base, tmp_path, capsys, encoding):
    book = CHINESE if encoding != "gb18030" else [text.replace("臺灣", "中国").replace("過去", "过去") for text in CHINESE]
    (tmp_path / "book.txt").write_bytes("\n".join(book).encode(encoding))
    training, validation = all_texts(import_texts(tmp_path / "book.txt"))
    assert len(training) > 10
    lines = {line for text in training + validation for line in text.splitlines() if line}
    whole = {line for text in book for line in text.splitlines()}
    assert len(lines & whole) > 0.9 * len(whole)
    said = [line for line in capsys.readouterr().err.splitlines() if "read as" in line]
    assert len(said) == (0 if encoding.startswith("utf-8") else 1)


def test_english_utf16_without_a_mark(base, tmp_path):
    (tmp_path / "a.txt").write_bytes("".join(ENGLISH).encode("utf-16-le"))
    assert any("A fox number" in text for text in all_texts(import_texts(tmp_path / "a.txt"))[0])


def test_a_long_file_is_cut_at_blank_lines(base, tmp_path):
    paragraphs = [f"Paragraph {i}. " + "Words follow words. " * 30 + "End." for i in range(3000)]
    (tmp_path / "a.txt").write_text("\r\n\r\n".join(paragraphs), newline="")
    training, validation = all_texts(import_texts(tmp_path / "a.txt"))
    assert all(4000 <= len(text) <= 8000 for text in training[:-1])
    assert {p for text in training + validation for p in text.split("\n\n")} == set(paragraphs)


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet="ab \n。.", max_size=300), st.integers(3, 40), st.integers(1, 50))
def test_cutting_loses_nothing_but_blanks(text, cut, block):
    pieces = list(documents._pieces(iter([text[i : i + block] for i in range(0, len(text), block)]), cut))
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < len(piece) <= cut for piece in pieces)


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)


BAD = {
    "missing": (lambda d: None, "does not exist", "--data"),
    "no text": (lambda d: (d / "a.png").write_bytes(b"x"), "holds no file that can be read", "jsonl"),
    "empty": (lambda d: (d / "a.txt").write_bytes(b""), "a.txt is empty", "text"),
    "blank": (lambda d: (d / "a.txt").write_text("  \n\n"), "0 bytes of text", "at least"),
    "too small": (lambda d: (d / "a.txt").write_text("hello\n"), "5 bytes of text", "at least"),
    "broken parquet": (lambda d: (d / "a.parquet").write_bytes(b"PAR1" + bytes(100)), "cannot be read as parquet", "copy it again"),
    "empty parquet": (lambda d: (d / "a.parquet").write_bytes(b""), "a.parquet is empty", "text"),
    "wrong column": (lambda d: write_parquet(d / "a.parquet", title=["a"], url=["b"]), "title, url", "PATH:COLUMN"),
    "not json": (lambda d: (d / "a.jsonl").write_text('{"text": "a"}\n{"text": \n'), "a.jsonl:2 is not JSON", "each line"),
    "no field": (
        lambda d: (d / "a.jsonl").write_text('{"text": "a"}\n\n{"body": "a", "id": 1}\n'),
        'a.jsonl:3 has no field "text"; its fields are: body, id',
        "PATH:COLUMN",
    ),
    "not a string": (lambda d: (d / "a.jsonl").write_text('{"text": 5}\n'), "a.jsonl:1", "string"),
    "not an object": (lambda d: (d / "a.jsonl").write_text("[1]\n"), "a.jsonl:1: a number", "object"),
    "binary": (lambda d: (d / "a.txt").write_bytes(bytes(range(256)) * 100), "binary", "text"),
    "binary without zeros": (lambda d: (d / "a.txt").write_bytes(bytes(range(1, 256)) * 100), "binary", "text"),
    "damaged utf-8": (lambda d: (d / "a.txt").write_bytes("臺灣的教育".encode() * 5000 + b"\xff\xfe" + b"abc"), "damaged", "iconv"),
    "cut gzip": (lambda d: (d / "a.txt.gz").write_bytes(gzip.compress(os.urandom(50_000).hex().encode())[:-3000]), "damaged", "again"),
    "one document": (lambda d: write_parquet(d / "a.parquet", text=["the same words again " * 10] * 2000), "none of which", "more text"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(base, tmp_path, case):
    make, message, hint = BAD[case]
    folder = tmp_path / "in"
    if case != "missing":
        folder.mkdir()
        make(folder)
    with pytest.raises(DataError) as caught:
        import_texts(folder)
    assert message in caught.value.message and hint in caught.value.hint, caught.value.message + " | " + caught.value.hint
    assert caught.value.exit_code == 4 and not list(base.rglob("*.parquet"))


def test_half_a_surrogate_pair_is_replaced(base, tmp_path):
    lines = ['{"text": "half \\ud83d of a pair, whole \\ud83d\\ude00"}\n'] + [json.dumps({"text": text}) + "\n" for text in ENGLISH]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    training, validation = all_texts(import_texts(tmp_path / "a.jsonl"))
    (found,) = [text for text in training + validation if "of a pair" in text]
    assert found.endswith("whole 😀")


GOOD = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def test_conversations_in_both_forms(tmp_path):
    system = [{"role": "system", "content": "be kind"}, *GOOD]
    path = write_jsonl(tmp_path / "c.jsonl", [GOOD, {"messages": system}])
    assert list(read_conversations(path)) == [GOOD, system]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "is not JSON"),
        ('{"text": "a"}', "no list"),
        ('[{"role": "user"}]', "message 1"),
        ('[{"role": "user", "content": 3}]', "not a string"),
        (json.dumps([*GOOD, {"role": "nobody", "content": "x"}]), "message 3 has the role 'nobody'"),
        (json.dumps([{"role": "user", "content": "half \ud83d"}, GOOD[1]]), "not valid text"),
    ],
)
def test_bad_conversations_are_named_by_line(tmp_path, line, message):
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(DataError, match=r"c\.jsonl:2") as caught:
        read_conversations(path)
    assert message in caught.value.message
