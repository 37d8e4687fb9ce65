"""Packages that only some commands need: pyproject.toml's extras."""

import importlib
from typing import Any

from nanochat.errors import UsageError


def needed(module: str, package: str, what: str) -> Any:
    """The module of an optional `package`, for `what`. Raises UsageError, with how to install it, where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{what} needs the package {package}", f"install it: .venv/bin/python -m pip install {package}") from error
