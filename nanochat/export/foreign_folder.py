"""Tokenizer, chat template, ending tokens and licence of a Hugging Face directory, read and written."""

from pathlib import Path
from typing import Any

import yaml

from nanochat import paths, untrusted
from nanochat.runs.step_files import ORIGIN_TEXT
from nanochat.tokenizer.foreign import ForeignTokenizer, Manners
from nanochat.tokenizer.foreign_file import Vocabulary, read_vocabulary
from nanochat.tokenizer.template import TEMPLATE_CHARACTERS

TOKENIZER, SETTINGS, GENERATION, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"
TURN_END = "<|im_end|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PLAIN = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
CARD_BYTES = 1 << 20


def read_tokenizer(folder: Path, config: dict[str, Any]) -> tuple[ForeignTokenizer, bool]:
    """(the tokenizer of a directory with the content of its config.json, whether it has a chat template).

    A model without one, which only continues text, is given a plain one for a later fine-tuning. Raises DataError, ValueError, OSError.
    """
    settings, generation = (_optional(folder, name) for name in (SETTINGS, GENERATION))
    vocabulary = read_vocabulary(untrusted.inside(folder, TOKENIZER))
    size = untrusted.integer(config["vocab_size"], "vocab_size", 1, 2**22)
    names = {name: text for name in ("bos_token", "eos_token") if (text := _token(settings.get(name), name)) is not None}
    template = _template(folder, settings)
    ends = _ends(vocabulary, config, generation, names, template or CHATML)
    if not ends:
        raise ValueError("no file names a token that ends an answer (eos_token_id)")
    bos = config.get("bos_token_id")
    bos = bos if type(bos) is int and 0 <= bos < size else ends[0]
    known = {id: name for name, id in vocabulary.added.items()}
    names.setdefault("eos_token", known.get(ends[0], ""))
    fallback = CHATML if {"<|im_start|>", TURN_END} <= vocabulary.added.keys() else PLAIN
    return ForeignTokenizer(vocabulary, Manners(size, bos, tuple(ends), template or fallback, dict(sorted(names.items())))), bool(template)


def _optional(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the directory; {} if there is no such file."""
    path = untrusted.inside(folder, name)
    return untrusted.table(untrusted.read_json(path), name) if path.exists() else {}


def _token(value: Any, what: str) -> str | None:
    """A token that tokenizer_config.json names, as text or as an object with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    return None if value is None else untrusted.text(value, what)


def _template(folder: Path, settings: dict[str, Any]) -> str:
    """The chat template; "" if there is none. Of several the one for plain chats."""
    path = untrusted.inside(folder, TEMPLATE)
    if path.exists():
        return untrusted.read_bytes(path, 4 * TEMPLATE_CHARACTERS).decode("utf-8")
    found = settings.get("chat_template") or ""
    if isinstance(found, list):
        named = {untrusted.table(one, "a chat template").get("name"): one.get("template") for one in found}
        found = named.get("default") or ""
    return untrusted.text(found, "chat_template", TEMPLATE_CHARACTERS)


def _ends(vocabulary: Vocabulary, config: dict[str, Any], generation: dict[str, Any], names: dict[str, str], template: str) -> list[int]:
    """The ids that end an answer: those of generation_config.json, config.json and tokenizer_config.json, and the end of a ChatML turn."""
    found: list[int] = []
    for value in (generation.get("eos_token_id"), config.get("eos_token_id")):
        values = value if isinstance(value, list) else [] if value is None else [value]
        found += [untrusted.integer(id, "eos_token_id", 0, int(config["vocab_size"]) - 1) for id in values[:100]]
    texts = [names.get("eos_token"), TURN_END if TURN_END in template else None]
    found += [vocabulary.added[text] for text in texts if text in vocabulary.added]
    return list(dict.fromkeys(found))


def licence(folder: Path) -> str:
    """The licence that the directory's model card names; "unknown" if it names none."""
    try:
        text = untrusted.read_bytes(untrusted.inside(folder, "README.md"), CARD_BYTES).decode("utf-8")
        head = text.removeprefix("---\n").partition("\n---")[0] if text.startswith("---\n") else ""
        if len(head) > 1 << 16 or "&" in head:  # an anchor, with which a small text becomes a large value
            return "unknown"
        data = untrusted.table(yaml.safe_load(head), "the card")
        named = data.get("license_name") if data.get("license") == "other" else data.get("license")
        found = untrusted.text(named, "license", ORIGIN_TEXT)
        return found if found.isprintable() and found else "unknown"
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return "unknown"


def write_tokenizer(folder: Path, tokenizer: ForeignTokenizer, context: int) -> None:
    """Write the tokenizer's files into the directory of an export, from which `read_tokenizer` reads an equal one."""
    manners = tokenizer.manners
    paths.atomic_write_json(folder / TOKENIZER, tokenizer.vocabulary.tokenizer_json())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, "clean_up_tokenization_spaces": False}
    paths.atomic_write_json(folder / SETTINGS, settings | manners.names | {"padding_side": "left", "add_bos_token": False})
    paths.atomic_write(folder / TEMPLATE, manners.template)
