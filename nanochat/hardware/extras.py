"""Optional packages: pyproject.toml's extras."""

import importlib
import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from nanochat.errors import UsageError

IMAGE = "NANOCHAT_IMAGE_EXTRAS"  # set in the image: the packages that it was built with besides its own


def needed(module: str, package: str, what: str) -> Any:
    """Import the module of an optional `package` that `what` needs. Raises UsageError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{what} needs the Python package {package}, which is not installed", install_hint(package)) from error


def install_hint(package: str) -> str:
    """A hint with the command that installs a package into the environment of this interpreter, or into the image."""
    if IMAGE in os.environ:
        return f"build the image with it: NANOCHAT_EXTRAS={package} docker compose build"
    python, beside = shlex.quote(sys.executable), Path(sys.prefix, "bin", "uv")
    if uv := str(beside) if beside.exists() else "" if importlib.util.find_spec("pip") else shutil.which("uv"):
        return f"install it: {shlex.quote(uv)} pip install --python {python} {package}"
    return f"install it: {python} -m pip install {package}"
