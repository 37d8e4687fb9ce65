"""A hostile zip archive: nothing outside of the folder, nothing half there, no more bytes than were agreed."""

import io
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from nanochat.errors import DataError
from nanochat.hub import archive
from nanochat.hub.archive import extract_zip

MOST = 1_000_000


def zipped(path: Path, files: dict[str, bytes], kind: int = stat.S_IFREG, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (kind | 0o644) << 16
            entry.compress_type = compression
            file.writestr(entry, content)
    return path


def refused(path: Path) -> str:
    """Why `path` is refused; nothing is written beside it."""
    before = sorted(path.parent.parent.rglob("*"))
    with pytest.raises(DataError) as caught:
        extract_zip(path, path.parent / "out", "bundle", MOST)
    assert sorted(path.parent.parent.rglob("*")) == before
    return caught.value.message


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    return tmp_path / "inner" / "a.zip"


def test_what_is_under_the_prefix_comes_whole(place: Path) -> None:
    extract_zip(zipped(place, {"bundle/a": b"1", "bundle/b/c": b"22", "other/d": b"3"}), place.parent / "out", "bundle", MOST)
    found = {str(path.relative_to(place.parent / "out")): path.read_bytes() for path in (place.parent / "out").rglob("*") if path.is_file()}
    assert found == {"a": b"1", "b/c": b"22"}


@pytest.mark.parametrize(
    "name", ["bundle//TMP/evil", "bundle/../evil", "bundle/a/../../evil", "bundle/a//b", "bundle/./a", "bundle/a\\b", "bundle/a\nb"]
)
def test_names_that_lead_elsewhere(name: str, place: Path) -> None:
    name = name.replace("TMP", str(place.parent.parent).lstrip("/")) if "TMP" in name else name
    assert "has an unsafe name" in refused(zipped(place, {"bundle/good": b"1", name: b"2"})) or "\\" in name


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices(kind: int, place: Path) -> None:
    assert "link or a device" in refused(zipped(place, {"bundle/link": b"/etc"}, kind))


def test_one_name_twice_and_a_file_that_is_also_a_folder(place: Path) -> None:
    data = zipped(place, {"bundle/a": b"1", "bundle/b": b"2"}).read_bytes()
    place.write_bytes(data.replace(b"bundle/b", b"bundle/a"))
    refused(place)
    refused(zipped(place, {"bundle/a": b"1", "bundle/a/b": b"2"}))


def test_a_bomb_by_size_and_one_that_lies_about_it(place: Path) -> None:
    assert "unpacks to" in refused(zipped(place, {"bundle/zeros": bytes(MOST + 1)}))
    data = bytearray(zipped(place, {"bundle/zeros": bytes(50 * MOST)}).read_bytes())
    assert len(data) < MOST
    at = data.index(b"PK\x01\x02") + 24  # the size in the list
    data[at : at + 4] = struct.pack("<L", 1000)
    place.write_bytes(data)
    refused(place)  # its sum is another after 1000 bytes


def test_too_many_files_and_a_list_that_is_too_long(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipped(place, {f"bundle/{number}": b"" for number in range(50)})
    monkeypatch.setattr(archive, "FILES", 49)
    assert "at most 49" in refused(place)
    monkeypatch.setattr(archive, "DIRECTORY_BYTES", 1000)
    assert "list of files" in refused(place)


def test_every_truncation_and_damage_leaves_nothing(place: Path) -> None:
    sink = io.BytesIO(zipped(place, {"bundle/a": b"some text " * 20, "bundle/b": b"more"}).read_bytes())
    good = sink.getvalue()
    for cut in range(0, len(good), 7):
        place.write_bytes(good[:cut])
        refused(place)
    place.write_bytes(good.replace(b"PK\x03\x04", b"PK\x03\x05"))
    refused(place)


def test_a_disk_or_folder_that_is_no_archive(place: Path) -> None:
    place.write_bytes(b"")
    refused(place)
    place.unlink()
    place.symlink_to("/dev/zero")
    assert "not a regular file" in refused(place)
