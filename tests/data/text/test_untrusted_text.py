"""A folder of text may hold what fills a memory, never ends, or leads elsewhere: it is refused with file and line, or followed."""

import gzip
import json
import os
from pathlib import Path

import pytest
import zstandard

from nanochat.data.conversation_files import read_conversations
from nanochat.data.text.documents import import_texts
from nanochat.errors import DataError
from nanochat.readers import records, textfile
from nanochat.readers.files import find
from tests import tiny

MB = 1 << 20
CHECK = """
import resource, sys, time
from pathlib import Path
from nanochat.data.conversation_files import read_conversations
from nanochat.data.text.documents import import_texts
from nanochat.errors import DataError
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
try:
    {how}(Path(sys.argv[1]))
except DataError as error:
    print(error.message)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10, time.monotonic() - began)
"""


def gz(path: Path, block: bytes, count: int) -> Path:
    path.write_bytes(gzip.compress(block) * count)
    return path


def zst(path: Path, block: bytes, count: int) -> Path:
    with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as file:
        for _ in range(count):
            file.write(block)
    return path


@pytest.mark.long
@pytest.mark.parametrize(("pack", "suffix"), [(gz, "gz"), (zst, "zst")])
@pytest.mark.parametrize(("how", "name"), [("import_texts", "x.txt"), ("import_texts", "x.jsonl"), ("read_conversations", "x.jsonl")])
def test_a_compressed_bomb_is_refused_in_little_memory(how: str, name: str, pack, suffix: str, tmp_path: Path) -> None:
    """2 GB of lines in some MB or less: read in blocks, so that only the conversations that are kept take memory."""
    line = (
        b'[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]\n'
        if how == "read_conversations"
        else b'{"text": "ha"}\n'
    )
    path = pack(tmp_path / f"{name}.{suffix}", line * (MB // len(line)), 2200)
    done = tiny.call(tmp_path, "-c", CHECK.format(how=how), str(path))
    assert done.returncode == 0 and "unpacks to more than" in done.stdout, done.stdout + done.stderr
    megabytes, seconds = map(float, done.stdout.splitlines()[-1].split())
    assert megabytes < (2000 if how == "read_conversations" else 300) and seconds < 30, done.stdout


def test_text_that_shrinks_as_text_does_is_read(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfile.Allowance, "free", 1000)
    text = tiny.sentences(tmp_path / "text.txt")
    packed = gz(tmp_path / "packed.txt.gz", text.read_bytes(), 1)
    assert (import_texts(packed).text_bytes or 0) > 150_000


def test_a_line_that_is_too_long_is_named(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "CELL_BYTES", 1000)
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": "a" * size}) + "\n" for size in (10, 20, 2000)))
    with pytest.raises(DataError, match=r"x\.jsonl:3 has more than"):
        import_texts(path)


@pytest.mark.parametrize("line", ["[" * 100_000, "{" + '"a":[' * 100_000, '{"text": ' + "9" * 10_000 + "}"])
def test_a_line_that_is_nested_or_a_number_without_end(line: str, base: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(line + "\n")
    for read in (import_texts, read_conversations):
        with pytest.raises(DataError, match=r"x\.jsonl:1"):
            read(path)


def test_each_link_is_read_once(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    for folder in (own / "a", own / "b", elsewhere):
        folder.mkdir(parents=True)
        tiny.sentences(folder / f"{folder.name}.txt", seed=len(folder.name))
    alone = import_texts(own)
    assert "link(s)" not in capsys.readouterr().err
    (own / "a" / "up").symlink_to(own)
    (own / "a" / "itself").symlink_to("itself")
    (own / "0").symlink_to(own / "b")
    (elsewhere / "back").symlink_to(own / "a")
    assert [file.path for file in find(own)] == sorted(own.rglob("*.txt"))
    said = capsys.readouterr().err
    assert "3 link(s) followed" in said and " -> " in said and alone.text_bytes == import_texts(own).text_bytes
    capsys.readouterr()
    (own / "out").symlink_to(elsewhere)
    assert [file.path.name for file in find(own)] == ["a.txt", "b.txt", "elsewhere.txt"]
    assert "5 link(s) followed" in capsys.readouterr().err


def test_pipes_devices_and_hidden_files_are_left_out(base: Path, tmp_path: Path) -> None:
    tiny.sentences(tmp_path / "text.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.txt").write_text("x")
    assert [file.path for file in find(tmp_path)] == [tmp_path / "text.txt"]
