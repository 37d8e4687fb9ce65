"""The command line's flags, `--key=value` with dashes or underscores, as values of the config's fields."""

from typing import Any

from nanochat.config.config import FIELDS
from nanochat.errors import UsageError, closest

# Names that other programs use, with this one's.
_HINTS = {
    "model_dim": "the width follows from the depth: use --depth (width = depth x aspect_ratio)",
    "n_embd": "the width follows from the depth: use --depth (width = depth x aspect_ratio)",
    "n_layer": "use --depth",
    "batch_size": "use --device_batch_size (sequences per micro-batch) or --total_batch_size (tokens per step)",
    "max_steps": "use --num_iterations",
    "epochs": "use --num_iterations (steps) or --target_param_data_ratio (tokens per parameter)",
    "lr": "use --matrix_lr, --embedding_lr, --unembedding_lr",
}
_FLAGS = {"from_run": "from"}  # fields whose flag has a name that Python keeps for itself
_BOOLS = {"true": True, "1": True, "on": True, "yes": True, "false": False, "0": False, "off": False, "no": False}


class UnknownOption(UsageError):
    """An option that no field of the config bears. `name` is without dashes."""

    def __init__(self, name: str, hint: str):
        self.name = name
        super().__init__(f"unknown config key {name}: there is no option --{name}", hint)


def parse_flags(arguments: list[str]) -> dict[str, Any]:
    """`--key=value`, `--key value`, `--flag` (dashes or underscores) -> field values. Raises UsageError."""
    values: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or flag == "--":
            raise UsageError(f"unexpected argument {flag!r}", "begin an option with --, as in --depth=12")
        key, equals, text = flag[2:].partition("=")
        name = {flag: field for field, flag in _FLAGS.items()}.get(key, key.replace("-", "_"))
        if name not in FIELDS:
            raise unknown_key(name)
        if not equals:
            if FIELDS[name].type is bool:
                text = "true"
            elif rest and not rest[0].startswith("--"):
                text = rest.pop(0)
            else:
                raise UsageError(f"--{key} needs a value", _example(name))
        values[name] = convert(name, text)
    return values


def convert(name: str, text: Any) -> Any:
    """The value of field `name` as its type, from a flag's text or a TOML value; "auto" is -1 in a number. Raises UsageError."""
    kind = FIELDS[name].type
    if kind in (int, float) and text == "auto" and FIELDS[name].metadata["auto"]:
        text = -1
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
        raise UsageError(f"--{name}={text} is not {expected}", _example(name)) from None


def unknown_key(name: str) -> UnknownOption:
    """The error for a key that no field bears, with the likeliest right name."""
    close = closest(name, FIELDS)
    return UnknownOption(name, _HINTS.get(name) or (f"did you mean --{close}?" if close else "`nanochat train --help` lists the options"))


def flag_name(name: str) -> str:
    """The flag of a field, without dashes: the field's name, but for one."""
    return _FLAGS.get(name, name)


def shown(name: str, value: Any) -> str:
    """A field's value as the help shows it and the command line takes it; "" where there is nothing to show."""
    if FIELDS[name].metadata["auto"] and value in (-1, "auto"):
        return "auto"
    if isinstance(value, bool):
        return "true" if value else ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def metavar(name: str) -> str:
    """The placeholder of a field's value in the help; "" for a field that is on or off."""
    about, kind = FIELDS[name].metadata, FIELDS[name].type
    return about["metavar"] or "|".join(about["choices"]) or ("N" if kind is int else "")


def _example(name: str) -> str:
    value = shown(name, FIELDS[name].default) or ("true" if FIELDS[name].type is bool else metavar(name))
    return f"for example --{flag_name(name)}={value}"
