"""The tokenizer of an imported model: a byte-level BPE of Hugging Face's tokenizers, behind the interface of `Tokenizer`.

The package tokenizers encodes, because rustbpe cannot express each such file exactly: other ids, one merge per token, a normalizer. It is
given only what was checked here, without the special tokens: text never yields one, the chat template alone inserts them.
"""

import bisect
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import rustbpe
from nanochat import untrusted
from nanochat.errors import DataError, UsageError
from nanochat.hardware.extras import needed
from nanochat.paths import atomic_write_json
from nanochat.tokenizer.conversation import Conversation, validate_conversation
from nanochat.tokenizer.foreign_file import Vocabulary
from nanochat.tokenizer.formats import VOCABULARY_BYTES, byte_values
from nanochat.tokenizer.template import TEMPLATE_CHARACTERS, ChatTemplate
from nanochat.tokenizer.tokenizer import NEWEST_FORMAT, Tokenizer

KIND = "huggingface"
VOCABULARY = "vocabulary.json"  # in the tokenizer's directory, beside tokenizer.json
PRIVATE = range(0xE000, 0xF900)  # code points without a meaning, which stand for other characters while a template is rendered
PACKED_DOCUMENTS = 1000  # documents whose best-fit packing is planned together


@dataclass(frozen=True)
class Manners:
    """Properties of a tokenizer from a model's other files: number of ids, ids that separate documents and end answers, template."""

    vocab_size: int
    bos: int  # before each document
    ends: tuple[int, ...]
    template: str
    names: dict[str, str]  # bos_token and eos_token, which the template may use

    @staticmethod
    def parse(value: dict[str, Any]) -> "Manners":
        """From the tokenizer.json that `save` wrote. Raises ValueError, KeyError."""
        size = untrusted.integer(value["vocab_size"], "vocab_size", 1, 2**22)
        ends = value["ends"]
        if not isinstance(ends, list) or not 0 < len(ends) <= 100:
            raise ValueError(f"ends is {untrusted.shown(ends)}, not a list of ids")
        names = untrusted.table(value["names"], "names")
        return Manners(
            size,
            untrusted.integer(value["bos"], "bos", 0, size - 1),
            tuple(untrusted.integer(id, "an end", 0, size - 1) for id in ends),
            untrusted.text(value["template"], "template", TEMPLATE_CHARACTERS),
            {name: untrusted.text(names[name], name) for name in sorted(names) if name in ("bos_token", "eos_token")},
        )


class ForeignTokenizer(Tokenizer):
    """Text <-> ids of an imported model; special tokens may have any ids, and ids without a token yield nothing."""

    def __init__(self, vocabulary: Vocabulary, manners: Manners):
        """Raises DataError if the template cannot be used, UsageError if the package tokenizers is missing, ValueError."""
        library = needed("tokenizers", "tokenizers", "an imported model's tokenizer")
        self.vocabulary, self.manners = vocabulary, manners
        self.pattern = vocabulary.pattern
        self.specials = vocabulary.added
        if max((*vocabulary.vocab.values(), *vocabulary.added.values())) >= manners.vocab_size:
            raise ValueError(f"the tokenizer has ids beyond the model's {manners.vocab_size}")
        try:
            self._core = library.Tokenizer.from_str(json.dumps(vocabulary.library_json()))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"tokenizers cannot read it: {untrusted.reason(error)}") from error
        values = byte_values()
        self._bytes: dict[int, bytes] = {id: bytes(values[mark] for mark in word) for word, id in vocabulary.vocab.items()}
        self._bytes |= {id: name.encode() for name, id in vocabulary.added.items() if name not in vocabulary.special}
        self._added = re.compile("|".join(map(re.escape, sorted(vocabulary.added, key=len, reverse=True))) or r"(?!)")
        self._special = re.compile("|".join(map(re.escape, sorted(vocabulary.special, key=len, reverse=True))) or r"(?!)")
        self._firsts = sorted({name[0] for name in vocabulary.added})
        self.template = ChatTemplate(manners.template)
        self.encoding: Any = self  # which packs rows, as rustbpe's does

    @property
    def id(self) -> str:
        """Hash of the vocabulary and of what belongs to it, as 12 hex digits."""
        content = [self.vocabulary.to_dict(), asdict(self.manners)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def vocab_size(self) -> int:
        """Number of the model's ids, some of which may have no token."""
        return self.manners.vocab_size

    @property
    def bos(self) -> int:
        """The id before each document."""
        return self.manners.bos

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end an answer."""
        return self.manners.ends

    def bytes_of(self, id: int) -> bytes | None:
        """The bytes of a token, None for a special token and an id without a token."""
        return self._bytes.get(id)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without special tokens. Raises ValueError for text that UTF-8 cannot encode (a lone surrogate)."""
        text.encode()
        return list(self._core.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: list[str], *, threads: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Encode `texts` as ids (uint16 if all fit, else uint32) and offsets (len+1,) int64. `threads` is the library's own choice."""
        for text in texts:
            text.encode()
        found = [one.ids for one in self._core.encode_batch(texts, add_special_tokens=False)]
        offsets = np.cumsum([0, *map(len, found)], dtype=np.int64)
        return np.array([id for ids in found for id in ids], dtype=self._dtype), offsets

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype("<u2" if self.vocab_size <= 65536 else "<u4")

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`: specials as their names, invalid UTF-8 as U+FFFD."""
        names = {id: name.encode() for name, id in self.specials.items()}
        return b"".join(self._bytes.get(int(id)) or names.get(int(id), b"") for id in ids).decode("utf-8", "replace")

    def pack_rows(self, batches: Iterable[Any], row: int, path: str, bos: int) -> tuple[int, int, int]:
        """Encode batches of documents and write them to `path` as rows of `row` ids, as rustbpe's `Encoding.pack_rows`.

        The packing is planned for so many documents at a time; what does not fill a row waits for the next ones.
        Returns (rows, tokens, bytes of text).
        """
        rows = tokens = size = 0
        waiting: list[np.ndarray] = []
        last: np.ndarray = np.empty(0, dtype=self._dtype)
        with open(path, "wb") as file:
            for batch in batches:
                texts = [str(text) for text in (batch.to_pylist() if hasattr(batch, "to_pylist") else batch)]
                size += sum(len(text.encode()) for text in texts)
                for first in range(0, len(texts), PACKED_DOCUMENTS):
                    ids, offsets = self.encode_batch(texts[first : first + PACKED_DOCUMENTS])
                    marked = [np.append(np.array([bos], self._dtype), part) for part in np.split(ids, offsets[1:-1])]
                    tokens += sum(map(len, marked))
                    waiting += marked
                    *full, waiting = self._packed(waiting, row)
                    rows += self._write_rows(file, full)
            last = np.concatenate(waiting) if waiting else last
            if len(last):
                rows += self._write_rows(file, [np.resize(last, row)])
        return rows, tokens, size

    def _packed(self, documents: list[np.ndarray], row: int) -> list[Any]:
        """Full rows of `documents`, and last the list of what is left over, which fills no row."""
        if not documents:
            return [[]]
        place, item, start, length = rustbpe.plan_rows([len(one) for one in documents], row, buffer=PACKED_DOCUMENTS, crop=True)
        found: list[list[np.ndarray]] = [[] for _ in range(int(place.max()) + 1)]
        for target, source, first, count in zip(place.tolist(), item.tolist(), start.tolist(), length.tolist(), strict=True):
            found[target].append(documents[source][first : first + count])
        rest = found.pop() if sum(map(len, found[-1])) < row else []
        return [*(np.concatenate(parts) for parts in found), rest]

    @staticmethod
    def _write_rows(file: Any, rows: list[np.ndarray]) -> int:
        for row in rows:
            file.write(row.tobytes())
        return len(rows)

    # Conversations

    def render(self, conversation: Conversation, max_tokens: int | None = None) -> tuple[list[int], list[int]]:
        """A conversation as (ids, mask), both cut at `max_tokens`; the mask is 1 for tokens to learn: answers and the token that ends them.

        Raises DataError for an invalid conversation, and one whose answers the template changes.
        """
        validate_conversation(conversation)
        messages, hidden = self._hidden(conversation)
        text = self.template.render(messages, False, self.manners.names)
        spans = self._answers(messages, text, hidden)
        ids: list[int] = []
        mask: list[int] = []
        for start, new in self._pieces(text, hidden, [cut for first, last in spans for cut in (first, last)]):
            ids += new
            mask += [int(any(first <= start < last for first, last in spans))] * len(new)
        return ids[:max_tokens], mask[:max_tokens]

    def render_prompt(self, conversation: Conversation, max_tokens: int) -> tuple[list[int], int]:
        """A conversation that ends with a user message, as (ids up to the assistant's answer, number of turns left out).

        Turns are left out as in `Tokenizer.render_prompt`. Raises DataError for any other conversation, UsageError if the last message
        alone is too long.
        """
        validate_conversation(conversation)
        if conversation[-1]["role"] != "user":
            raise DataError("the conversation does not end with a user message", "end it with a message of the role user")
        system = conversation[:1] if conversation[0]["role"] == "system" else []
        turns = conversation[len(system) :]
        rendered: dict[int, list[int]] = {}

        def fits(dropped: int) -> bool:
            messages, hidden = self._hidden([*system, *turns[2 * dropped :]])
            text = self.template.render(messages, True, self.manners.names)
            rendered[dropped] = [id for _, ids in self._pieces(text, hidden) for id in ids]
            return len(rendered[dropped]) <= max_tokens

        possible = len(turns) // 2 + 1
        dropped = 0 if fits(0) else bisect.bisect_left(range(possible), True, lo=1, key=fits)
        if dropped == possible:
            raise UsageError(
                f"the message has {len(rendered[possible - 1]) if possible - 1 in rendered else len(rendered[0]):,} tokens; "
                f"at most {max_tokens:,} fit",
                "send a shorter message, or ask for a shorter answer",
            )
        return rendered[dropped], dropped

    def _hidden(self, conversation: Conversation) -> tuple[list[dict[str, str]], dict[str, str]]:
        """(messages for the template in which no text is a special token, meanings of the replacement characters in them).

        In user and system messages the first character of every special token is replaced, so that not even two joined texts can
        spell one. In answers, which may contain tokens such as <think>, only those are replaced that are special to the library.
        """
        plain = [{"role": str(message["role"]), "content": _text(message["content"])} for message in conversation]
        used = set().union(*(message["content"] for message in plain), self.template.source)
        free = (chr(code) for code in PRIVATE if chr(code) not in used)
        try:
            stand_ins = {first: next(free) for first in (*self._firsts, _BEGIN, _END)}
        except StopIteration:
            raise DataError("the conversation uses all private code points of Unicode", "remove them from the messages") from None
        table = str.maketrans({first: stand_ins[first] for first in self._firsts})
        for message in plain:
            if message["role"] == "assistant":
                message["content"] = self._special.sub(lambda found: found[0][0].translate(table) + found[0][1:], message["content"])
            else:
                message["content"] = message["content"].translate(table)
        return plain, {mark: first for first, mark in stand_ins.items()}

    def _answers(self, messages: list[dict[str, str]], text: str, hidden: dict[str, str]) -> list[tuple[int, int]]:
        """(begin, end) in `text` of each answer to learn: from where the template's beginning of an answer ends, to the token behind it."""
        begin, end = (next(mark for mark, meant in hidden.items() if meant == name) for name in (_BEGIN, _END))
        opening = self._opening(messages)
        for trim in _TRIMS:
            marked = self.template.render([_marked(message, begin, end, trim) for message in messages], False, self.manners.names)
            if marked.replace(begin, "").replace(end, "") == text:
                break
        else:
            raise DataError("the model's chat template changes the assistant's text, so that it cannot be learned")
        spans = []
        for number, found in enumerate(re.finditer(f"{begin}([^{begin}{end}]*){end}", marked)):
            first, last = found.start() - 2 * number, found.end() - 2 * number - 2
            opened = text.rfind(opening, 0, first) if opening else -1
            after = self._added.match(text, last)
            spans.append((opened + len(opening) if opened >= 0 else first, after.end() if after else last))
        if len(spans) != sum(message["role"] == "assistant" for message in messages):
            raise DataError("the model's chat template leaves out answers, so that they cannot be learned")
        return spans

    def _opening(self, messages: list[dict[str, str]]) -> str:
        """The text with which the template begins an answer."""
        asked = messages[: next((place for place, one in enumerate(messages) if one["role"] == "assistant"), len(messages))]
        without, opened = (self.template.render(asked, answer, self.manners.names) for answer in (False, True))
        return opened.removeprefix(without) if opened.startswith(without) else ""

    def _pieces(self, text: str, hidden: dict[str, str], cuts: Iterable[int] = ()) -> Iterable[tuple[int, list[int]]]:
        """(place in `text`, ids) of each special token, and of the text between them and between `cuts`."""
        table = str.maketrans(hidden)
        found = {match.start(): match.end() for match in self._added.finditer(text)}
        places = sorted({0, len(text), *cuts, *found, *found.values()})
        for first, last in itertools.pairwise(places):
            part = text[first:last]
            yield first, [self.specials[part]] if first in found else self.encode(part.translate(table))

    # Files

    @classmethod
    def _read(cls, folder: Path, about: dict[str, Any]) -> "ForeignTokenizer":
        if about["kind"] != KIND:
            raise ValueError(f"its kind is {untrusted.shown(about['kind'])}, which this version does not read")
        return cls(Vocabulary.from_dict(untrusted.read_json(folder / VOCABULARY, VOCABULARY_BYTES)), Manners.parse(about))

    def _write(self, folder: Path) -> None:
        atomic_write_json(folder / VOCABULARY, self.vocabulary.to_dict())

    def _about(self) -> dict[str, Any]:
        manners = asdict(self.manners) | {"ends": list(self.ends)}
        return {"format": NEWEST_FORMAT, "kind": KIND, "id": self.id, **manners}


# Whitespace that templates remove around an answer.
_TRIMS: tuple[Callable[[str], str], ...] = (str, lambda text: text.lstrip("\n"), lambda text: text.strip("\n"), str.strip)
_BEGIN, _END = "begin", "end"  # of an answer: longer than a character, so that they are no token's first one


def _text(content: str | list[dict[str, str]]) -> str:
    """The text of a message, without the calculator's calls, which other models do not know."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


def _marked(message: dict[str, str], begin: str, end: str, trim: Callable[[str], str]) -> dict[str, str]:
    """The message with marks around an answer, trimmed as a template may trim it."""
    if message["role"] != "assistant":
        return message
    return message | {"content": f"{begin}{trim(message['content'])}{end}"}
