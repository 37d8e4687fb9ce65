"""Who the model is: a small TOML becomes conversations about itself, in English and in Traditional Chinese.

    name = "Formosa"
    maker = "Mei-hua Lin"
    languages = ["en", "zh-TW"]
    traits = ["patient", "curious"]

name, maker and traits may also be tables by language: traits = {en = ["patient"], zh-TW = ["有耐心"]}.
"""

import dataclasses
import functools
import itertools
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from nanochat.errors import DataError
from nanochat.paths import atomic_write
from nanochat.tokenizer.conversation import Conversation

COUNT = 1000  # conversations in all languages together
TURNS = (1, 1, 2, 2, 3)  # questions in a conversation, one of these
KEYS = ("name", "maker", "languages", "traits")


@dataclasses.dataclass(frozen=True)
class Wordings:
    """All that can be said in one language: for each topic the questions, and the answers with {name}, {maker}, {languages}, {traits}."""

    speaks: dict[str, str]  # the languages' names in this one
    between: tuple[str, str]  # words of a list: between two, and before the last
    openers: Sequence[str]
    topics: dict[str, dict[str, Sequence[str]]]  # topic -> "questions" and "answers"


@functools.cache
def wordings() -> dict[str, Wordings]:
    """The wordings of each language, from identity.toml."""
    tables = tomllib.loads((Path(__file__).parent / "identity.toml").read_text(encoding="utf-8"))
    return {language: Wordings(**table) for language, table in tables.items()}


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who a model is, by language where it differs."""

    name: dict[str, str]
    maker: dict[str, str]
    traits: dict[str, tuple[str, ...]]
    languages: tuple[str, ...]


def read_identity(path: Path) -> Identity:
    """The identity that a TOML file describes. Raises DataError that names the key."""
    try:
        table = tomllib.loads(path.expanduser().read_text(encoding="utf-8-sig"))  # Windows editors begin a file with a byte order mark
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}", "give --identity a TOML file: name, maker, languages, traits"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8, which TOML files are", "save it as UTF-8 in the editor") from error
    except ValueError as error:
        raise DataError(f"{path} is not TOML: {error}", 'write lines such as name = "Formosa"') from error
    if unknown := [key for key in table if key not in KEYS]:
        raise DataError(f"{path}: unknown key {unknown[0]!r}", f"use only {', '.join(KEYS)}")
    languages = table.get("languages", list(wordings()))
    if not isinstance(languages, list) or not languages or not set(map(str, languages)) <= set(wordings()):
        raise DataError(f"{path}: languages = {languages!r} is not possible", f'give a list of: {", ".join(wordings())}, as in ["zh-TW"]')
    given = {key: {language: _value(path, table, key, language) for language in languages} for key in ("name", "maker", "traits")}
    return Identity(given["name"], given["maker"], given["traits"], tuple(languages))


def _value(path: Path, table: dict[str, Any], key: str, language: str) -> Any:
    """The value of `key` in `language`: texts for traits, one text otherwise."""
    value = table.get(key, [] if key == "traits" else None)
    if isinstance(value, dict):
        value = value.get(language, [] if key == "traits" else None)
    texts: Any = [value] if isinstance(value, str) else value
    good = isinstance(texts, list) and all(isinstance(text, str) and text.strip() and "\n" not in text for text in texts)
    if not good or (key != "traits" and len(texts) != 1):
        example = 'traits = ["patient", "curious"]' if key == "traits" else f'{key} = "Formosa"'
        raise DataError(f"{path}: {key} ({language}) is missing or not a text: {value!r}", f"write for example {example}")
    return tuple(text.strip() for text in texts) if key == "traits" else texts[0].strip()


def conversations(identity: Identity, count: int = COUNT, seed: int = 0) -> list[Conversation]:
    """`count` different conversations (fewer where there is not so much to say), the languages in equal parts, always the same ones."""
    streams = [_talks(identity, language, Random(f"identity {language} {seed}")) for language in identity.languages]
    found: dict[str, Conversation] = {}
    for talk in itertools.islice(itertools.chain.from_iterable(zip(*streams, strict=True)), 20 * count):
        found.setdefault(json.dumps(talk, ensure_ascii=False), talk)
        if len(found) == count:
            break
    return list(found.values())


def _talks(identity: Identity, language: str, random: Random) -> Iterator[Conversation]:
    """Endless conversations in one language, each about some topics."""
    words = wordings()[language]
    fill = {
        "name": identity.name[language],
        "maker": identity.maker[language],
        "languages": _listed([words.speaks[each] for each in identity.languages], words),
        "traits": _listed(list(identity.traits[language]), words),
    }
    topics = [topic for topic in words.topics if topic != "traits" or identity.traits[language]]
    while True:
        talk: Conversation = []
        for topic in random.sample(topics, random.choice(TURNS)):
            said = words.topics[topic]
            opener = random.choice(words.openers) if not talk else ""
            talk.append({"role": "user", "content": opener + random.choice(said["questions"]).format(**fill)})
            talk.append({"role": "assistant", "content": random.choice(said["answers"]).format(**fill)})
        yield talk


def _listed(items: list[str], words: Wordings) -> str:
    comma, last = words.between
    return comma.join(items[:-1]) + last + items[-1] if len(items) > 1 else "".join(items)


def write_conversations(path: Path, talks: list[Conversation]) -> None:
    """Write conversations as jsonl, one a line. Raises DataError if the file is there: it may be somebody's own."""
    if path.exists():
        raise DataError(f"{path} exists and is not overwritten", "give --out another name, or remove it")
    atomic_write(path, "".join(json.dumps(talk, ensure_ascii=False) + "\n" for talk in talks))
