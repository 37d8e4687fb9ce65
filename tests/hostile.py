"""Hostile changes of files, drawn by a seed: what somebody would try who sends a folder, a mirror or an archive."""

import json
import math
import os
import random
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanochat.errors import NanochatError

SECONDS, BYTES = 5.0, 500 << 20
NESTED = "[" * 200_000
WORTHLESS: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 10**7, 2**31, 2**53, 2**63, 10**400, 0.5, 1e308, math.nan, math.inf, -math.inf),
    *(
        "",
        ".",
        "..",
        "../x",
        "../../../x",
        "/",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "a\0b",
        "\x1b[2J",
        "con\nfig",
        "é" * 300,
        "x" * 10**6,
        "\ud800",
    ),
    *([], {}, [[]], [1] * 1000, {"": ""}, ["/etc/passwd"], {"..": {"bytes": 1, "sha256": "0" * 64}}),
)


def change_json(value: Any, rng: random.Random, outside: Path) -> Any:
    """`value` with one of its parts replaced, removed, added, or given another's place."""
    path: list[Any] = []
    inner = value
    while isinstance(inner, (dict, list)) and inner and rng.random() < 0.9:
        key = rng.choice(sorted(inner, key=str)) if isinstance(inner, dict) else rng.randrange(len(inner))
        path.append((inner, key))
        inner = inner[key]
    new = rng.choice([*WORTHLESS, str(outside), f"../{outside.name}", f"{outside}/x"])
    if isinstance(inner, (int, float)) and not isinstance(inner, bool) and rng.random() < 0.5:
        new = rng.choice([inner + 1, inner - 1, inner * 1000, inner * 2**40, -inner, float(inner), str(inner)])
    if not path:
        return new
    owner, key = path[-1]
    if rng.random() < 0.15:
        del owner[key]
    elif rng.random() < 0.1 and isinstance(owner, dict):
        owner[str(new)[:200]] = owner.pop(key)
    else:
        owner[key] = new
    return value


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """`data` with some bits flipped, cut, doubled, or with another length at its beginning, as safetensors has it."""
    kind, place = rng.randrange(6), rng.randrange(len(data) + 1)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data + data[place:]
    if kind == 2:
        return struct.pack("<Q", rng.choice([0, 1, 2**20, 2**40, 2**63, len(data)])) + data[8:]
    if kind == 3:
        return data[:place] + rng.randbytes(8) + data[place + 8 :]
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def change_header(data: bytes, rng: random.Random, outside: Path) -> bytes:
    """A safetensors file whose header is another JSON."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.dumps(change_json(json.loads(data[8 : 8 + length]), rng, outside), ensure_ascii=True).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def change_file(path: Path, rng: random.Random, outside: Path) -> None:
    """Change one file: its content, or what it is."""
    data = path.read_bytes()
    kind = rng.randrange(14)
    if kind < 8 and path.suffix == ".json":
        path.write_text(json.dumps(change_json(json.loads(data), rng, outside)), encoding="ascii")
    elif kind < 8 and path.suffix == ".safetensors":
        path.write_bytes(change_header(data, rng, outside))
    elif kind < 10:
        path.write_bytes(change_bytes(data, rng))
    elif kind == 10:
        path.write_bytes(rng.choice([b"", NESTED.encode(), b'{"a":' * 100_000, b"1" * 100_000, b"\xff\xfe", b"null", b"9" * 10**6]))
    else:
        path.unlink()
        if kind == 11:
            path.symlink_to(rng.choice([Path("/dev/zero"), outside / "secret", outside, path]))
        elif kind == 12:
            os.mkfifo(path) if rng.random() < 0.5 else path.mkdir()
        elif rng.random() < 0.5:
            with path.open("wb") as file:  # takes no space, and seems to be a terabyte
                file.truncate(1 << 40)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder: relative path -> content, None for a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


class Attack:
    """A place where each change of a good folder is tried: beside it lies what nobody may touch."""

    def __init__(self, place: Path, good: Path):
        self.place, self.good, self.received, self.outside = place, good, place / "received", place / "outside"
        self.outside.mkdir(parents=True)
        (self.outside / "secret").write_text("four years of work")
        (place / ".bashrc").write_text("mine")
        self.refused = self.taken = 0

    def fresh(self) -> Path:
        """A new copy of the good folder."""
        shutil.rmtree(self.received, ignore_errors=True)
        shutil.copytree(self.good, self.received, symlinks=True)
        return self.received

    def run(self, use: Callable[[], object]) -> str:
        """Call `use`; "" where it did its work, else its one error. No more may be written, nothing removed, little time taken."""
        began, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        message, code = "", 0
        try:
            use()
            self.taken += 1
        except NanochatError as error:
            message, code = error.message, error.exit_code
            self.refused += 1
        if message:
            assert len(message) < 5000 and code in (2, 3, 4), (code, message[:500])
        assert time.monotonic() - began < SECONDS, message
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) << 10 < BYTES, message
        names = {path.name for path in self.place.iterdir()}
        assert names <= {"received", "outside", "base", ".bashrc"}, names
        assert snapshot(self.outside) == {"secret": b"four years of work"} and (self.place / ".bashrc").read_text() == "mine"
        return message
