"""Claim: over a failing network, only this project's downloader gets the right file, and it downloads little twice.

A local web server serves a 64 MB file with faults by five seeded schedules. Each downloader is called again after failures for half a
minute. Peers are curl and wget, if installed, and huggingface_hub, if HF_PEER names a Python that has it. Prints a table of results
(right, wrong or gave up), bytes sent and peak disk space as multiples of the file, and seconds.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nanochat.errors import DataError
from nanochat.hub import addresses as hub
from nanochat.hub.addresses import Remote
from nanochat.hub.transfer import fetch
from tests.faulty import MB, FaultyServer

SIZE = 64 * MB
SECONDS = 30  # for which a peer is called again after errors
# Seed, faults, and the fraction of responses with a fault (all connections drop after a few MB).
SCHEDULES: dict[str, tuple[int, tuple[str, ...], float]] = {
    "drops": (0, ("drop",), 0.0),
    "drops, resets, 429, 503": (1, ("drop", "reset", "too many", "unavailable"), 0.3),
    "drops, replaced midway": (2, ("drop", "replace"), 0.2),
    "drops, a flipped bit": (12, ("drop", "flip"), 0.05),  # of the fifth response
    "drops, stalls, wrong lengths": (4, ("drop", "stall", "longer", "truncate"), 0.3),
}

HF = """
import sys
from huggingface_hub.file_download import http_get
with open(sys.argv[2], "ab") as file:
    http_get(sys.argv[1], file, resume_size=file.tell(), expected_size=64 << 20, displayed_filename="file")
"""


def ours(server: FaultyServer, folder: Path) -> bool:
    """This project's downloader in this process, called once, because it retries itself."""
    try:
        fetch(Remote(server.url, "file", SIZE, server.sha256), folder, relist=lambda _: Remote(server.url, "file", SIZE, server.sha256))
        return True
    except DataError as error:
        print("   ", error.message)
        return False


def command(*words: str) -> Callable[[FaultyServer, Path], bool]:
    """A peer's command line, with URL and FILE replaced."""

    def run(server: FaultyServer, folder: Path) -> bool:
        filled = [word.replace("URL", server.url).replace("FILE", str(folder / "file")) for word in words]
        over = time.monotonic() + SECONDS
        while (left := over - time.monotonic()) > 0:
            try:
                if subprocess.run(filled, capture_output=True, timeout=left, check=False).returncode == 0:
                    return True
            except subprocess.TimeoutExpired:
                break
        return False

    return run


def peers() -> dict[str, Callable[[FaultyServer, Path], bool]]:
    """All installed downloaders."""
    found: dict[str, Callable[[FaultyServer, Path], bool]] = {"ours": ours}
    if shutil.which("curl"):
        found["curl -C -"] = command("curl", "-sSfL", "-C", "-", "--speed-time", "2", "--speed-limit", "1000", "-o", "FILE", "URL")
    if shutil.which("wget"):
        found["wget -c"] = command("wget", "-q", "-c", "--tries=20", "--waitretry=1", "--read-timeout=2", "-O", "FILE", "URL")
    if os.environ.get("HF_PEER"):
        found["huggingface_hub"] = command(os.environ["HF_PEER"], "-c", HF, "URL", "FILE")
    return found


def measure(kinds: tuple[str, ...], rate: float, seed: int, download: Callable[[FaultyServer, Path], bool]) -> str:
    """One download under one schedule."""
    server = FaultyServer(seed, kinds, SIZE, rate, stalls=3.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        done = download(server, folder)
        seconds = time.monotonic() - began
        path = folder / "file"
        data = path.read_bytes() if path.exists() else b""
        right = hashlib.sha256(data).hexdigest() in {hashlib.sha256(body).hexdigest() for body in server.bodies}
        used = sum(each.stat().st_blocks * 512 for each in folder.iterdir())
    server.close()
    outcome = ("right" if right else "WRONG FILE") if done else "gave up"
    return f"{outcome}, {server.sent / SIZE:.2f}x sent, {used / SIZE:.2f}x disk, {seconds:.1f} s"


def main() -> None:
    """Run all downloaders with all schedules."""
    hub.TIMEOUT = (5.0, 2.0)  # the same timeouts as the peers'
    hub.FIRST_WAIT = 0.5
    for label, (seed, kinds, rate) in SCHEDULES.items():
        for name, download in peers().items():
            print(f"{label} | {name} | {measure(kinds, rate, seed, download)}", flush=True)


if __name__ == "__main__":
    main()
