"""The command line's flags, `--key=value` with dashes or underscores, as values of the config's fields."""

import difflib
from typing import Any

from nanochat.config.config import FIELDS
from nanochat.errors import UsageError

# Wrong names that people try, and what to say to them.
_HINTS = {
    "model_dim": "the width follows from the depth: use --depth (width = depth x aspect_ratio)",
    "n_embd": "the width follows from the depth: use --depth (width = depth x aspect_ratio)",
    "n_layer": "use --depth",
    "batch_size": "use --device_batch_size (rows a device takes at once) or --total_batch_size (tokens a step)",
    "max_steps": "use --num_iterations",
    "epochs": "use --num_iterations (steps) or --target_param_data_ratio (tokens for each parameter)",
    "lr": "use --matrix_lr, --embedding_lr, --unembedding_lr",
}
FLAG_NAMES = {"from_run": "from"}  # of fields whose own name Python keeps for itself
_FIELD_OF = {flag: name for name, flag in FLAG_NAMES.items()}
_BOOLS = {"true": True, "1": True, "on": True, "yes": True, "false": False, "0": False, "off": False, "no": False}


def parse_flags(arguments: list[str]) -> dict[str, Any]:
    """`--key=value`, `--key value`, `--flag` (dashes or underscores) -> field values. Raises UsageError."""
    values: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or flag == "--":
            raise UsageError(f"unexpected argument {flag!r}", "options begin with --, as in --depth=12")
        key, equals, text = flag[2:].partition("=")
        name = _FIELD_OF.get(key, key.replace("-", "_"))
        if name not in FIELDS:
            raise unknown_key(name)
        if not equals:
            if FIELDS[name].type is bool:
                text = "true"
            elif rest and not rest[0].startswith("--"):
                text = rest.pop(0)
            else:
                raise UsageError(f"--{key} needs a value", f"for example --{name}={FIELDS[name].default}")
        values[name] = convert(name, text)
    return values


def convert(name: str, text: Any) -> Any:
    """The value of field `name` as its type, from a flag's text or a TOML value. Raises UsageError."""
    kind = FIELDS[name].type
    try:
        if kind is bool:
            if isinstance(text, bool):
                return text
            return _BOOLS[str(text).lower()]
        if kind is int:
            number = float(text)
            if number != int(number):
                raise ValueError
            return int(number)
        return float(text) if kind is float else str(text)
    except (KeyError, ValueError, OverflowError):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}[kind]  # type: ignore[index]
        raise UsageError(f"{name} = {text!r} is not {expected}", f"for example --{name}={FIELDS[name].default}") from None


def unknown_key(name: str) -> UsageError:
    """The error for a key that no field bears, with the likeliest right name."""
    close = difflib.get_close_matches(name, FIELDS, n=1)
    hint = _HINTS.get(name) or (f"did you mean --{close[0]}?" if close else "train --help lists the keys")
    return UsageError(f"unknown config key {name}", hint)
