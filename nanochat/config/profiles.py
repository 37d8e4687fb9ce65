"""The profiles (profiles/*.toml): a configuration for each kind of machine, and a Config from a profile and a user's values."""

import tomllib
from pathlib import Path
from typing import Any

from nanochat.config.config import FIELDS, Config
from nanochat.config.flags import convert, unknown_key
from nanochat.errors import UsageError, did_you_mean

_PACKAGE = Path(__file__).resolve().parents[1]
# Inside the package where it is installed from a wheel, else at the top of the checkout.
PROFILES = _PACKAGE / "profiles" if (_PACKAGE / "profiles").is_dir() else _PACKAGE.parent / "profiles"
PROFILE_NAMES = ("cpu", "t4", "rtx4050", "rtx4090", "speedrun", "h100x8")
PROFILE_ALIASES = {"4050": "rtx4050", "4090": "rtx4090", "3090": "rtx4090", "rtx3090": "rtx4090", "h100": "h100x8"}

# The cpu profile's own numbers are for the embedded text; with another text these are chosen automatically from its size.
TEXT_RULES: dict[str, Any] = {"dataset": "climbmix", "vocab_size": -1, "num_iterations": -1, "sft_iterations": -1}


def profile_name(name: str) -> str:
    """The profile that `name` or an alias (4050, 4090, 3090) stands for. Raises UsageError, listing them."""
    known = PROFILE_ALIASES.get(name.lower(), name.lower())
    if known not in PROFILE_NAMES:
        listed = (*PROFILE_NAMES, "auto (aliases: 4050, 4090, 3090)")
        raise UsageError(f"unknown profile {name!r}", did_you_mean(name, [*PROFILE_NAMES, *PROFILE_ALIASES, "auto"], listed))
    return known


def load_profile(name: str, trial: bool = False) -> dict[str, Any]:
    """Field values of a profile's [full] or [trial] part. Raises UsageError."""
    known = profile_name(name)
    table = tomllib.loads((PROFILES / f"{known}.toml").read_text(encoding="utf-8"))
    values = {}
    for key, value in table["trial" if trial else "full"].items():
        if key not in FIELDS:
            raise unknown_key(key)
        values[key] = convert(key, value)
    return values | {"profile": known, "trial": trial}


def build_config(profile: str, trial: bool = False, overrides: dict[str, Any] | None = None) -> Config:
    """The profile's values with the user's on top, validated; the run is named after the profile unless given."""
    values = load_profile(profile, trial) | (overrides or {})
    if values.get("run", "auto") == "auto":
        values["run"] = values["profile"] + ("-trial" if trial else "")
    return Config(**values)
