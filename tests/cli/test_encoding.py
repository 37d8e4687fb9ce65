"""Arguments of a command that starts again in UTF-8 mode, as a terminal with another encoding sends them."""

import os
from pathlib import Path

import pytest

from nanochat.cli.encoding import argument_in_utf8


def test_arguments_in_big5_become_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text is converted; the name of a file keeps its bytes, whichever they are, and so does what is UTF-8 already."""
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("big5", "surrogateescape"))
    assert argument_in_utf8("--prompt=你是誰") == "--prompt=你是誰".encode()
    assert argument_in_utf8("--depth=1") == b"--depth=1"
    utf8 = "資料.txt".encode()
    assert argument_in_utf8(utf8.decode("big5", "surrogateescape")) == utf8
    monkeypatch.setattr(os.path, "exists", lambda path: path == "資料".encode("big5"))
    assert argument_in_utf8("資料") == "資料".encode("big5")
