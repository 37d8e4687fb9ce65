"""An environment of its own for what a benchmark compares with: its packages may bear our names, or need other versions."""

import subprocess
import sys
from pathlib import Path


def environment(folder: Path, *packages: str) -> Path:
    """The interpreter of the environment in `folder`, made where it is missing, with `packages` in it."""
    python, uv = folder / "bin" / "python", Path(sys.executable).parent / "uv"
    if not python.exists():
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *packages], check=True)
    return python
