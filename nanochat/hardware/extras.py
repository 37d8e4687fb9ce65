"""Optional packages: pyproject.toml's extras."""

import importlib
import shlex
import sys
from typing import Any

from nanochat.errors import UsageError


def needed(module: str, package: str, what: str) -> Any:
    """Import the module of an optional `package` that `what` needs. Raises UsageError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{what} needs the Python package {package}, which is not installed", install_hint(package)) from error


def install_hint(package: str) -> str:
    """A hint with the command that installs a package into the environment of this interpreter."""
    return f"install it: {shlex.quote(sys.executable)} -m pip install {package}"
