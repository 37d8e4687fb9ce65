"""Text as people have it: every kind of file gives its documents, and what is no text is named as what it is, and counted."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nanochat.data.shards import texts
from nanochat.data.text.documents import import_texts
from nanochat.errors import DataError
from nanochat.readers.encodings import detect_encoding
from nanochat.readers.files import File
from nanochat.readers.json_values import json_values
from nanochat.readers.records import row_texts

STORIES = [
    f"Story {i}. A fox number {i * 7919 % 1000} met a bear in wood {i},\nand they shared {i} apples by the river." for i in range(400)
]


def found(path: Path, column: str = "") -> list[str]:
    """All documents of the dataset that is made of `path`, sorted."""
    dataset = import_texts(path, column)
    return sorted(text for shard in (*dataset.training, dataset.validation) for batch in texts(shard) for text in batch)


def csv_text(rows: list[list[str]], delimiter: str = ",") -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue()


def stream(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_stream(str(path), table.schema) as sink:
        sink.write_table(table, max_chunksize=37)


def feather(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(str(path), table.schema) as sink:
        sink.write_table(table, max_chunksize=37)


def rows(text: str = "text") -> list[dict[str, Any]]:
    return [{"id": i, text: story} for i, story in enumerate(STORIES)]


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8", newline="")


def parquet(**columns: Any) -> Callable[[Path], None]:
    return lambda folder: pq.write_table(pa.table({name: pa.array(*value) for name, value in columns.items()}), folder / "a.parquet")


NESTED = [{"doc": {"text": story, "score": 1.5}, "id": str(i)} for i, story in enumerate(STORIES)]
KINDS: dict[str, Callable[[Path], Any]] = {
    "json array": write("a.json", json.dumps(rows())),
    "pretty json": write("a.json", json.dumps(rows(), indent=2, ensure_ascii=False)),
    "concatenated json": write("a.json", "".join(json.dumps(row, indent=1) for row in rows())),
    "json array in jsonl": write("a.jsonl", json.dumps(rows())),
    "json lines in json": write("a.json", "\n".join(json.dumps(row) for row in rows())),
    "json strings": write("a.json", json.dumps(STORIES)),
    "json null rows": write("a.json", json.dumps([None, *rows(), {"id": 1, "text": None}])),
    "json in an object": write("a.json", json.dumps({"version": 1, "data": rows()}, indent=1)),
    "json rows of a service": write("a.json", json.dumps({"rows": [{"row_idx": row["id"], "row": row} for row in rows()]})),
    "json rows with lists": write("a.json", json.dumps([{**row, "items": [{"text": "no"}]} for row in rows()])),
    "json field": write("a.jsonl", "\n".join(json.dumps(row) for row in rows("story"))),
    "json nested": write("a.jsonl", "\n".join(json.dumps(row) for row in NESTED)),
    "csv": write("a.csv", csv_text([["id", "text"], *([str(i), story] for i, story in enumerate(STORIES))])),
    "csv semicolons": write("a.csv", csv_text([["id", "story"], *([str(i), story] for i, story in enumerate(STORIES))], ";")),
    "csv one column": write("a.csv", csv_text([["story"], *([story] for story in STORIES)])),
    "csv without header": write("a.csv", csv_text([[story] for story in STORIES])),
    "csv with a mark": write("a.csv", "\ufeff" + csv_text([["text", "id"], *([story, "1"] for story in STORIES)])),
    "tsv": write("a.tsv", csv_text([["id", "text"], *([str(i), story] for i, story in enumerate(STORIES))], "\t")),
    "large strings": parquet(text=(STORIES, pa.large_string())),
    "string views": parquet(text=(STORIES, pa.string_view())),
    "dictionary": lambda d: pq.write_table(pa.table({"text": pa.array(STORIES).dictionary_encode()}), d / "a.parquet"),
    "bytes": parquet(text=([story.encode() for story in STORIES], pa.binary())),
    "another name": parquet(story=(STORIES,), id=(list(range(400)),)),
    "nulls": parquet(text=([None, *STORIES, None],)),
    "nested": lambda d: pq.write_table(pa.Table.from_pylist(NESTED), d / "a.parquet"),
    "arrow stream": lambda d: stream(d / "data-00000-of-00001.arrow", pa.table({"text": STORIES})),
    "arrow file": lambda d: feather(d / "a.arrow", pa.table({"story": pa.array(STORIES, pa.large_string())})),
    "arrow views": lambda d: feather(d / "a.feather", pa.table({"text": pa.array(STORIES, pa.string_view())})),
    "save_to_disk": lambda d: (
        stream(d / "data-00000-of-00001.arrow", pa.table({"text": STORIES})),
        (d / "state.json").write_text('{"_fingerprint": "ab"}'),
        (d / "dataset_info.json").write_text('{"description": "text"}'),
    ),
    "bz2": lambda d: (d / "a.jsonl.bz2").write_bytes(bz2.compress("\n".join(map(json.dumps, rows())).encode())),
    "xz": lambda d: (d / "a.jsonl.xz").write_bytes(lzma.compress("\n".join(map(json.dumps, rows())).encode())),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_gives_the_same_documents(base: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    KINDS[kind](folder)
    assert found(folder) == sorted(STORIES)
    if len(list(folder.iterdir())) == 1:  # the file that is named itself
        assert found(next(folder.iterdir())) == sorted(STORIES)


def test_null_rows_are_counted(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    KINDS["nulls"](tmp_path)
    import_texts(tmp_path / "a.parquet")
    assert "left out of the text: 2 rows without text" in capsys.readouterr().err


def test_a_named_column(base: Path, tmp_path: Path) -> None:
    both = {"title": [f"Title {i}" for i in range(400)], "story": STORIES, "meta": [{"long": f"x {story}"} for story in STORIES]}
    pq.write_table(pa.table(both), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in pa.table(both).to_pylist()))
    (tmp_path / "a.csv").write_text(csv_text([["title", "story"], *map(list, zip(both["title"], STORIES, strict=True))]))
    for name in ("a.parquet", "a.jsonl", "a.csv"):
        assert found(tmp_path / name, "story") == sorted(STORIES)
        with pytest.raises(DataError, match="title, story") as caught:
            import_texts(tmp_path / name)
        assert "--data PATH:COLUMN" in caught.value.hint
        with pytest.raises(DataError, match="nothing"):
            import_texts(tmp_path / name, "nothing")
    for name in ("a.parquet", "a.jsonl"):
        assert found(tmp_path / name, "meta.long") == sorted(f"x {story}" for story in STORIES)


def test_two_columns_of_one_name_are_named(base: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table([STORIES, STORIES], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has two columns named 'text'"):
        import_texts(tmp_path / "a.parquet")
    pq.write_table(pa.table([STORIES, STORIES, STORIES], names=["text", "id", "id"]), tmp_path / "b.parquet")
    assert found(tmp_path / "b.parquet") == sorted(STORIES)


# --- pages, books, documents


PAGE = """<!DOCTYPE html><html><head><title>no</title><style>p {color: red}</style><meta charset="utf-8"></head>
<body><h1>A&amp;B</h1><p>One <b>bold</b>
word.</p><script>var x = "no";</script><p>Two<br>lines &lt;here&gt;.</p><ul><li>a<li>b</ul><pre>def f():
    return 1</pre></body></html>"""
PAGE_TEXT = "A&B\n\nOne bold word.\n\nTwo\nlines <here>.\n\na\nb\n\ndef f():\n    return 1"


def chapter(stories: list[str]) -> str:
    return f"<html><body>{''.join(f'<p>{story}</p>' for story in stories)}</body></html>"


def write_epub(path: Path, stories: list[str]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("mimetype", "application/epub+zip")
        container = '<rootfiles><rootfile full-path="OEBPS/a.opf" media-type="x"/></rootfiles>'
        book.writestr(
            "META-INF/container.xml", f'<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container">{container}</container>'
        )
        items = "".join(f'<item id="c{i}" href="text/c%20{i}.xhtml" media-type="x"/>' for i in (1, 0))
        spine = '<spine><itemref idref="c0"/><itemref idref="c1"/></spine>'
        book.writestr("OEBPS/a.opf", f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}</manifest>{spine}</package>')
        for i in (0, 1):
            book.writestr(f"OEBPS/text/c {i}.xhtml", chapter(stories[i * 200 : i * 200 + 200]))


def write_docx(path: Path, stories: list[str], head: str = "") -> None:
    space = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    inside = "".join(f"<w:p><w:r><w:t>{story[:9]}</w:t><w:tab/><w:t>{story[9:]}</w:t></w:r></w:p>" for story in stories)
    deleted = "<w:p><w:del><w:r><w:delText>deleted</w:delText></w:r></w:del></w:p>"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as document:
        document.writestr("word/document.xml", f"{head}<w:document {space}><w:body>{inside}{deleted}</w:body></w:document>")


def words(path: Path) -> list[str]:
    return " ".join(found(path)).split()


def test_html(base: Path, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE)
    (tmp_path / "b.html").write_bytes(chapter([f"caf\xe9 {story}" for story in STORIES]).encode("latin-1"))
    expected = f"{PAGE_TEXT} {' '.join(f'café {story}' for story in STORIES)}"
    assert sorted(words(tmp_path)) == sorted(expected.split())


def test_the_text_of_a_page() -> None:
    from nanochat.readers.markup import page_text

    assert page_text(PAGE) == PAGE_TEXT
    assert page_text("<p>never closed <b>at all") == "never closed at all"
    assert page_text("<div>" * 100_000 + "deep") == "deep"


def test_books_and_documents(base: Path, tmp_path: Path) -> None:
    write_epub(tmp_path / "a.epub", STORIES)
    assert sorted(words(tmp_path / "a.epub")) == sorted(" ".join(STORIES).split())
    write_docx(tmp_path / "a.docx", [story.replace("\n", " ") for story in STORIES])
    assert sorted("".join(words(tmp_path / "a.docx"))) == sorted("".join(" ".join(STORIES).split()))


BOMB = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize("damage", ["no zip", "no document", "entities", "no xml"])
def test_a_damaged_document_is_named(base: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.docx"
    write_docx(path, STORIES, {"entities": BOMB, "no xml": "<"}.get(damage, ""))
    if damage == "no zip":
        path.write_bytes(path.read_bytes()[:-40])
    if damage == "no document":
        with zipfile.ZipFile(path, "w") as empty:
            empty.writestr("a.txt", "a")
    with pytest.raises(DataError, match=r"a\.docx (is no docx file|cannot be used as a zip)"):
        import_texts(path)


def write_pdf(path: Path, stories: list[str]) -> None:
    """A PDF of one page with a line for each story."""
    lines = "".join(f"({story.replace(chr(10), ' ')}) ' " for story in stories)
    content = f"BT /F 10 Tf 12 TL 20 20000 Td {lines} ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /Contents 4 0 R /MediaBox [0 0 2000 20000] /Resources << /Font << /F 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    data, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    path.write_bytes(
        data + b"xref\n0 6\n0000000000 65535 f \n%strailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (table, len(data))
    )


def test_pdf(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    write_pdf(tmp_path / "a.pdf", STORIES)
    assert sorted(words(tmp_path / "a.pdf")) == sorted(" ".join(STORIES).split())
    (tmp_path / "a.pdf").write_bytes((tmp_path / "a.pdf").read_bytes()[:300])
    with pytest.raises(DataError, match="cannot be read as PDF"):
        import_texts(tmp_path / "a.pdf")


# --- archives


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    pack = {".gz": gzip.compress, ".tgz": gzip.compress, ".zst": zstandard.compress, ".xz": lzma.compress, ".bz2": bz2.compress}
    path.write_bytes(pack.get(path.suffix, bytes)(file.getvalue()))


MEMBERS = {
    "../../up.txt": STORIES[0].encode(),
    "/abs/one.txt": STORIES[1].encode(),
    "a b/\u7ae0.jsonl": "\n".join(map(json.dumps, rows()[2:])).encode(),
    "picture.png": b"\x89PNG",
    ".hidden.txt": b"not this",
    "__MACOSX/a.txt": b"nor this",
    "inner.zip": b"PK",
}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.zst", "a.tar.xz", "a.tar.bz2"])
def test_archives(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (write_zip if name == "a.zip" else write_tar)(folder / name, MEMBERS)
    assert found(folder / name) == sorted(STORIES)
    assert found(folder) == sorted(STORIES)
    assert "2 file(s) left out: 1 (.png), 1 (.zip)" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "in"]
    assert not list((base / "data").glob(".tmp-*"))


def test_a_mistake_in_an_archive_is_named(base: Path, tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {"in/b.jsonl": b'{"text": "a"}\n{"text": \n'})
    with pytest.raises(DataError, match=r"a\.zip/in/b\.jsonl:2 is not JSON"):
        import_texts(tmp_path / "a.zip")
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(DataError, match=r"a\.zip cannot be used as a zip archive") as caught:
        import_texts(tmp_path / "a.zip")
    assert "unpack it" in caught.value.hint


def test_an_archive_that_is_a_bomb(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nanochat.readers import archives
    from nanochat.readers.textfile import Allowance

    monkeypatch.setattr(archives.unpack, "__defaults__", (Allowance(1 << 20, 2),))
    for name, make in (("a.zip", write_zip), ("a.tar.gz", write_tar)):
        make(tmp_path / name, {"a.txt": bytes(5 << 20)})
        with pytest.raises(DataError, match="unpacks to more than"):
            import_texts(tmp_path / name)


# --- what stands for the data


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345678\n"


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("a.parquet", POINTER, "is a Git LFS pointer", "git lfs pull"),
        ("a.jsonl", POINTER, "is a Git LFS pointer", "git lfs pull"),
        ("a.parquet", "<!DOCTYPE html><html>404</html>", "is a web page, not a parquet file", "again"),
        ("a.jsonl", "\n <html><body>Log in</body></html>", "is a web page, not a jsonl file", "again"),
        ("a.url", "[InternetShortcut]\nURL=https://example.org/\n", "is an internet shortcut", "leads to"),
        ("a.lnk", "L\0\0\0\x01\x14\x02\0", "is a Windows shortcut", "leads to"),
    ],
)
def test_what_stands_for_the_data_is_named(base: Path, tmp_path: Path, name: str, content: str, message: str, hint: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        import_texts(tmp_path / name)
    assert hint in caught.value.hint


def test_odd_names(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i, name in enumerate((b"r\xe9sum\xe9.txt", b"two\nlines.txt", "章 1.txt".encode(), b"-rf.txt", b"100%.txt")):
        Path(os.fsdecode(bytes(folder) + b"/" + name)).write_text("\n\n".join(STORIES[i * 80 : i * 80 + 80]))
    (folder / "loop").symlink_to(folder)
    (folder / "around.txt").symlink_to("around.txt")
    assert words(folder) and sorted(words(folder)) == sorted(" ".join(STORIES).split())
    capsys.readouterr().err.encode()


def test_a_dataset_without_its_card_and_its_parts_for_tests(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train-00000.jsonl", "test-00000.jsonl", "validation.jsonl"):
        (tmp_path / name).write_text("\n".join(json.dumps({"text": f"{name[:2]} {story}"}) for story in STORIES))
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A dataset\n")
    assert found(tmp_path) == sorted(f"tr {story}" for story in STORIES)
    assert "3 file(s) left out: 2 (a part for tests), 1 (a dataset's card)" in capsys.readouterr().err


def test_a_folder_says_what_it_reads_and_what_not(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for make in ("csv", "pretty json", "nested", "arrow file"):
        KINDS[make](folder)
    write_epub(folder / "b.epub", STORIES)
    write_docx(folder / "b.docx", STORIES)
    write_zip(folder / "b.zip", MEMBERS)
    (folder / "b.html").write_text(chapter(STORIES))
    (folder / "b.txt.xz").write_bytes(lzma.compress("\n\n".join(STORIES).encode()))
    (folder / "settings.json").write_text('{"port": 80}')
    (folder / "empty.csv").write_bytes(b"")
    (folder / "a.exe").write_bytes(b"MZ")
    documents = found(folder)
    assert sorted("".join("".join(documents).split())) == sorted("".join("".join(STORIES * 9).split()))
    said = capsys.readouterr().err
    assert "1 file(s) left out: 1 (.exe)" in said and "empty.csv: empty, skipped" in said
    assert 'settings.json:1 has no field "text" of text; its fields are: port' in said
    assert "11 file(s) to read: 3 text, 1" in said and "a.csv begins: Story 0. A fox" in said


# --- encodings


SENTENCES = {
    ("cp1252", "french"): "Le château était près de la forêt où l'été dernier ils avaient déjà mangé des gâteaux à la crème.\n",
    ("cp1252", "portuguese"): "Não há solução para a situação da população, mas os irmãos são bons e as mães também. Amanhã haverá.\n",
    ("cp1252", "german"): "Die Bäume grünen schon, und große Vögel fliegen über die Häuser, „wie schön“ – sagt er.\n",
    ("cp1252", "spanish"): "Mañana el niño comerá una manzana en el jardín. ¿Dónde está la biblioteca? ¡Qué día más bonito!\n",
    ("cp1252", "swedish"): "Jag såg en älg på vägen till skolan. Någon hade öppnat dörren och släppt ut hästarna på ängen.\n",
    ("cp1252", "quotes"): "It’s a “fine” day – said the fox. Nothing else was said, and the river went on and on.\n",
    ("cp1250", "polish"): "Wczoraj byłem w sklepie i kupiłem chleb, masło oraz mleko. Właściwie nie wiem, dlaczego świat jest piękny.\n",
    ("cp1250", "czech"): "Příliš žluťoučký kůň úpěl ďábelské ódy. Včera jsem byl v obchodě a koupil jsem chléb, máslo a mléko.\n",
    ("cp1250", "hungarian"): "Árvíztűrő tükörfúrógép. Tegnap a boltban voltam és kenyeret, vajat meg tejet vettem, őrült idő volt.\n",
    ("cp1254", "turkish"): "Bugün hava çok güzel. Çocuklar bahçede oynuyor, annem mutfakta yemek yapıyor, ağaçlar yeşil.\n",
    ("cp1251", "russian"): "Съешь же ещё этих мягких французских булок, да выпей чаю. Вчера мы были в лесу и видели медведя.\n",
    ("cp950", "chinese"): "臺灣的教育制度在過去年間經歷了許多變革,每一次都反映了社會的需求。今天天氣很好。\n",
    ("cp932", "japanese"): "今日は天気がいいですね。子供たちは庭で遊んでいます。\n",
    ("cp850", "french"): "Le château était près de la forêt où l'été dernier ils avaient déjà mangé des gâteaux à la crème.\n",
    ("mac_roman", "french"): "Le château était près de la forêt où l'été dernier ils avaient déjà mangé des gâteaux à la crème.\n",
}


@pytest.mark.parametrize(("encoding", "language"), SENTENCES)
def test_encodings(tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: str, language: str) -> None:
    path = tmp_path / "a.txt"
    text = SENTENCES[encoding, language]
    path.write_bytes(b"Plain words first, and many of them.\n" * 100 + (text * 30).encode(encoding))
    assert (text * 30).encode(encoding).decode(detect_encoding(File(path, str(path), "text"))) == text * 30
    assert "for example " in capsys.readouterr().err


def test_a_guess_that_the_rest_of_the_file_refutes_is_not_used(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    french = SENTENCES["cp1252", "french"].encode("cp1252")
    path.write_bytes(french * 2000 + b"\x81\x8d")  # which cp1252 does not have
    assert detect_encoding(File(path, str(path), "text")) != "cp1252"
    path.write_bytes(b"".join(b"%d %s" % (number, french) for number in range(2000)))
    dataset = import_texts(path, encoding="mac_roman")
    assert all("é" not in text for batch in texts(dataset.validation) for text in batch)


# --- what was written is what is read


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=4), inside, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150)
@given(
    values=st.lists(VALUE, max_size=6),
    block=st.integers(1, 9),
    indent=st.sampled_from([None, 2]),
    array=st.booleans(),
    gap=st.text(" \n\t", max_size=3),
)
def test_json_in_pieces(values: list[Any], block: int, indent: int | None, array: bool, gap: str) -> None:
    import nanochat.readers.json_values as module

    text = json.dumps(values, indent=indent) if array else f"{gap}\n".join(json.dumps(value, indent=indent) for value in values)
    expected = values if array else [one for value in values for one in (value if isinstance(value, list) else [value])]
    reader = io.StringIO(gap + text + gap)
    before, module.BLOCK = module.BLOCK, block
    try:
        assert [value for _, value in json_values(reader.read, "a")] == expected
    finally:
        module.BLOCK = before


@pytest.mark.parametrize("text", ["[1, 2", "[1, ", '{"a": ', '["ab', "[1 2", '{"a" 1}', "nope", "[1]]", '[{"a": 1}, {"b": }]'])
def test_json_that_is_none_is_named_by_its_line(text: str) -> None:
    if text == "[1 2":
        pytest.skip("values after one another are read, with or without a comma")
    reader = io.StringIO("\n\n" + text)
    with pytest.raises(DataError, match=r"^a:3"):
        list(json_values(reader.read, "a"))


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"), min_size=1, max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(
    stories=st.lists(TEXT | st.none(), min_size=1, max_size=8), kind=st.sampled_from(["jsonl", "json", "csv", "tsv", "parquet", "arrow"])
)
@example(stories=["\x85 a\u2028 b\u2029", "\x0b\x1c\x1e"], kind="jsonl")
def test_rows(tmp_path: Path, stories: list[str | None], kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind in ("jsonl", "json"):
        path.write_text(
            "\n".join(json.dumps({"n": 1, "text": story}, ensure_ascii=False, indent=1 if kind == "json" else None) for story in stories)
        )
    elif kind in ("csv", "tsv"):
        stories = [story or "" for story in stories]
        path.write_text(csv_text([["text", "n"], *([story, "1"] for story in stories)], "\t" if kind == "tsv" else ","), newline="")
    else:
        table = pa.table({"text": pa.array(stories, pa.string())})
        pq.write_table(table, path) if kind == "parquet" else stream(path, table)
    encoding = "" if kind in ("parquet", "arrow") else "utf-8"
    assert list(row_texts(File(path, "a", kind, encoding))) == [story for story in stories if story is not None]
