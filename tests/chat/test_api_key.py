"""The server's API key: what is too weak, what others may read, and that the hints say how to make one."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from nanochat.chat.api_key import read_key
from nanochat.errors import UsageError

KEY = "correct horse battery staple"


def written(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    file = folder / "my key"
    file.write_bytes(content)
    file.chmod(mode)
    return file


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o640])
def test_a_key_file(tmp_path: Path, mode: int) -> None:
    assert read_key(written(tmp_path, KEY.encode() + b"\n", mode)) == KEY


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o620, 0o660, 0o666, 0o777])
def test_a_file_that_others_may_read_or_change(tmp_path: Path, mode: int) -> None:
    file = written(tmp_path, KEY.encode(), mode)
    with pytest.raises(UsageError, match=f"mode 0{mode:o}") as raised:
        read_key(file)
    assert KEY not in raised.value.message
    subprocess.run(raised.value.hint.split("`")[1], shell=True, check=True)
    assert read_key(file) == KEY


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"k", b"short", b"fifteen letters"[:15], b"a" * 40, b"abab" * 10, b"\xff" * 40, b"x" * 9999]
)
def test_weak_keys(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match="my key") as raised:
        read_key(written(tmp_path, content))
    if "make one" in raised.value.hint:
        subprocess.run(raised.value.hint.removeprefix("make one: "), shell=True, check=True)
        assert re.fullmatch("[0-9a-f]{48}", read_key(tmp_path / "my key"))


def test_two_lines_and_a_device_are_no_key(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not one line"):
        read_key(written(tmp_path, KEY.encode() + b"\n" + KEY.encode()))
    with pytest.raises(UsageError):
        read_key(Path("/dev/zero"))
    with pytest.raises(UsageError, match="cannot be read"):
        read_key(tmp_path)


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NANOCHAT_API_KEY", raising=False)
    assert read_key(None) == ""
    monkeypatch.setenv("NANOCHAT_API_KEY", f" {KEY}\n")
    assert read_key(None) == KEY
    for weak in ("k", "password", "a" * 20, "two\nlines of a key that is long"):
        monkeypatch.setenv("NANOCHAT_API_KEY", weak)
        with pytest.raises(UsageError, match="NANOCHAT_API_KEY") as raised:
            read_key(None)
        assert len(weak) == 1 or weak not in raised.value.message
        script = f'{raised.value.hint.removeprefix("make one: ")}; echo "$NANOCHAT_API_KEY"'
        made = subprocess.run(script, shell=True, check=True, capture_output=True, text=True, env=dict(os.environ)).stdout.strip()
        monkeypatch.setenv("NANOCHAT_API_KEY", made)
        assert read_key(None) == made
