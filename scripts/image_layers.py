"""Requirements of the image: requirements.lock split into one file for each layer of Dockerfile.cuda.

    python scripts/image_layers.py FOLDER    writes uv.txt, build.txt, cuda.txt, torch.txt and others.txt into FOLDER

The lock also has development packages. Run-time packages are the closure of the project's dependencies, by the lock's "via" comments.
Each line keeps its version and its hashes.
"""

import re
import sys
from pathlib import Path

PROJECT = "nanochat-appliance (pyproject.toml)"
BUILDERS = {"hatchling", "maturin"}  # build tools, installed with their dependencies


def requirements(lock: str) -> dict[str, tuple[str, set[str]]]:
    """Name -> (its lines in `lock`, the packages that need it)."""
    blocks = re.split(r"^(?=[a-z0-9])", lock, flags=re.M)[1:]
    found = {}
    for block in blocks:
        via = re.search(r"# via(.*)", block, re.S)
        assert via, block
        found[block.partition("==")[0]] = (block, set(re.findall(r"[^\s#].*", via[1])))
    return found


def closure(wanted: set[str], locked: dict[str, tuple[str, set[str]]]) -> set[str]:
    """All packages that `wanted` (names, or a reason) needs, directly or not."""
    while more := {name for name, (_, via) in locked.items() if name not in wanted and via & wanted}:
        wanted = wanted | more
    return wanted & set(locked)


def layers(lock: str) -> dict[str, str]:
    """Name of a layer -> its part of `lock`."""
    locked = requirements(lock)
    runs = closure({PROJECT}, locked)
    cuda = {name for name in runs if name.startswith(("nvidia-", "cuda-"))}
    torch = runs & {"torch", "triton"}
    parts = {"uv": {"uv"}, "build": closure(BUILDERS, locked), "cuda": cuda, "torch": torch, "others": runs - cuda - torch}
    return {layer: "".join(locked[name][0] for name in sorted(names)) for layer, names in parts.items()}


if __name__ == "__main__":
    for layer, text in layers(Path("requirements.lock").read_text(encoding="utf-8")).items():
        Path(sys.argv[1], f"{layer}.txt").write_text(text, encoding="utf-8")
