"""Optional packages: pyproject.toml's extras."""

import importlib
from typing import Any

from nanochat.errors import UsageError


def needed(module: str, package: str, what: str) -> Any:
    """Import the module of an optional `package` that `what` needs. Raises UsageError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{what} needs the package {package}", f"install it: .venv/bin/python -m pip install {package}") from error
