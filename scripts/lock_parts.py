"""requirements.lock by purpose, one file for each: what runs, what develops, and the layers of the image.

    python scripts/lock_parts.py FOLDER    writes run.txt, dev.txt, and uv.txt, build.txt, cuda.txt, torch.txt, others.txt into FOLDER

run.txt is what `make install` installs, and the sum of the image's layers. dev.txt is the rest. Which package is which follows from the
lock's "via" comments: what runs is all that the project's dependencies and the group `run` need. Lines keep their versions and hashes.
"""

import re
import sys
from pathlib import Path

PROJECT = {"nanochat-appliance (pyproject.toml)", "nanochat-appliance (pyproject.toml:run)"}
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


def parts(lock: str) -> dict[str, str]:
    """Name of a part -> its lines of `lock`."""
    locked = requirements(lock)
    runs, build = closure(PROJECT, locked), closure(BUILDERS, locked)
    cuda = {name for name in runs if name.startswith(("nvidia-", "cuda-"))}
    torch = runs & {"torch", "triton"}
    installed = runs | build | {"uv"}
    found = {"run": installed, "dev": set(locked) - installed}
    found |= {"uv": {"uv"}, "build": build, "cuda": cuda, "torch": torch, "others": runs - cuda - torch}
    return {part: "".join(locked[name][0] for name in sorted(names)) for part, names in found.items()}


if __name__ == "__main__":
    for part, text in parts(Path("requirements.lock").read_text(encoding="utf-8")).items():
        Path(sys.argv[1], f"{part}.txt").write_text(text, encoding="utf-8")
