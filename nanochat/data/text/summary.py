"""A summary of a user's text before training: size, scripts, duplicates, near-duplicates, and the model size that it is enough for."""

import bisect
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable

from nanochat.config import Config
from nanochat.console import quantity
from nanochat.data.text.chinese import SIMPLIFIED, TRADITIONAL
from nanochat.model.scaling import BEST_RATIO, MAXIMUM_EPOCHS, bytes_per_token, gpt_config
from nanochat.tokenizer.conversation import Conversation

SAMPLE = 400  # characters of a document whose script is looked at, ...
FIRST, EVERY = 2000, 50  # ... of the first documents, and of each so-manieth after that
REMEMBERED = 5_000_000  # documents whose duplicates are looked for
REPEATS = 0.1  # share of duplicates that gets no warning
SAMPLED, LOOKED_AT = 10_000, 2000  # documents that near-duplicates are looked for among, and characters of each
SKETCH, SIMILAR, MOST_ALIKE = 24, 0.6, 8  # hashes in a sketch, shared part of similar ones, sketches per hash
DEPTHS = range(1, 33)
# Bytes of a token, about, at a vocabulary that the rules choose; a character of the wide scripts has three bytes.
LATIN_BYTES, WIDE_BYTES = round(bytes_per_token(4096), 1), 3.0

# First code point of each block that is told apart, and its script ("" is none: digits, marks, blanks).
_BLOCKS = (
    *((0x00, ""), (0x41, "Latin"), (0x5B, ""), (0x61, "Latin"), (0x7B, ""), (0xC0, "Latin"), (0x250, ""), (0x370, "Greek")),
    *((0x400, "Cyrillic"), (0x530, ""), (0x590, "Hebrew"), (0x600, "Arabic"), (0x700, ""), (0x900, "Devanagari"), (0x980, "")),
    *((0xE00, "Thai"), (0xE80, ""), (0x1100, "Hangul"), (0x1200, ""), (0x1E00, "Latin"), (0x2000, ""), (0x3040, "Kana")),
    *((0x3100, "Bopomofo"), (0x3130, "Hangul"), (0x3190, ""), (0x3400, "Han"), (0xA000, ""), (0xAC00, "Hangul"), (0xD7B0, "")),
    *((0xF900, "Han"), (0xFB00, ""), (0x20000, "Han"), (0x32000, "")),
)
_STARTS = [start for start, _ in _BLOCKS]
WIDE = ("Han", "Kana", "Hangul", "Bopomofo", "Thai")


def script_of(character: str) -> str:
    """The script of a character, "" for digits, marks and blanks."""
    return _BLOCKS[bisect.bisect_right(_STARTS, ord(character)) - 1][1]


class NearDuplicates:
    """Counts near-duplicates in a sample of documents by bottom-k MinHash sketches of their word triples."""

    def __init__(self) -> None:
        self.documents = self.found = 0
        self.by_hash: dict[int, list[frozenset[int]]] = {}  # sketches by each of their two smallest hashes

    def add(self, text: str) -> None:
        """Look at one document that is no exact duplicate."""
        words = text[:LOOKED_AT].lower().split()
        if len(words) < SKETCH:
            return
        hashes = sorted({zlib.crc32(" ".join(words[place : place + 3]).encode()) for place in range(len(words) - 2)})[:SKETCH]
        sketch = frozenset(hashes)
        self.documents += 1
        self.found += any(len(sketch & other) / len(sketch | other) >= SIMILAR for key in hashes[:2] for other in self.by_hash.get(key, ()))
        for key in hashes[:2]:
            if len(kept := self.by_hash.setdefault(key, [])) < MOST_ALIKE:
                kept.append(sketch)


class Summary:
    """Counts that grow with each document; `lines` puts them into words."""

    def __init__(self) -> None:
        self.documents = self.bytes = self.duplicates = 0
        self.scripts: Counter[str] = Counter()
        self.seen: set[int] = set()
        self.near = NearDuplicates()
        self.traditional = self.simplified = 0

    def add(self, text: str, size: int, key: int) -> None:
        """Count one document of `size` UTF-8 bytes whose content hashes to `key`."""
        self.documents += 1
        self.bytes += size
        before = self.duplicates
        if key in self.seen:
            self.duplicates += 1
        elif len(self.seen) < REMEMBERED:
            self.seen.add(key)
        if self.documents > FIRST and self.documents % EVERY:
            return
        if self.duplicates == before and self.near.documents < SAMPLED:
            self.near.add(text)
        sample = text[:SAMPLE]
        self.scripts.update(map(script_of, sample))
        self.traditional += sum(character in TRADITIONAL for character in sample)
        self.simplified += sum(character in SIMPLIFIED for character in sample)

    @property
    def tokens(self) -> int:
        """Tokens of all the text, about."""
        counted = self.scripts.total() - self.scripts[""]
        wide = sum(self.scripts[script] for script in WIDE) / max(counted, 1)
        return int(self.bytes / (wide * WIDE_BYTES + (1 - wide) * LATIN_BYTES))

    def lines(self) -> list[str]:
        """The summary, and warnings where there are reasons for some."""
        counted = self.scripts.total() - self.scripts[""]
        shares = [(name, count / max(counted, 1)) for name, count in self.scripts.most_common() if name]
        named = ", ".join(f"{self._name(script)} {share:.0%}" for script, share in shares if share >= 0.01)
        amount = f"{self.documents} documents, {quantity(self.bytes)}B, about {quantity(self.tokens)} tokens"
        found = [f"text: {amount}; {named or 'no letters'}; {self.duplicates} duplicates"]
        if self.near.found > REPEATS * self.near.documents:
            share = self.near.found / self.near.documents
            found.append(f"warning: {share:.0%} of {self.near.documents:,} documents looked at are nearly the same as others")
        if self.duplicates > REPEATS * self.documents:
            found.append(
                f"warning: {self.duplicates / self.documents:.0%} of the documents are duplicates: the model learns less from them"
            )
        depth = suits(self.tokens)
        if not depth:
            found.append(
                "warning: this is little text: a model of any depth will memorize it; "
                f"depth 1 needs about {quantity(wanted(1) / MAXIMUM_EPOCHS)} tokens of it"
            )
        else:
            found.append(f"text: enough for a depth of {depth} (read {MAXIMUM_EPOCHS} times); a deeper model would memorize it")
        return found

    def _name(self, script: str) -> str:
        if script != "Han" or not self.traditional + self.simplified:
            return script
        return "Han (traditional)" if self.traditional >= self.simplified else "Han (simplified)"


def wanted(depth: int) -> float:
    """Tokens that a model of `depth` wants to read."""
    shape = gpt_config(Config(depth=depth, vocab_size=4096))
    return BEST_RATIO * 12 * depth * shape.dim**2


def suits(tokens: int) -> int:
    """The deepest model that `tokens`, read MAXIMUM_EPOCHS times, are enough for; 0 where they are too few for any."""
    return max((depth for depth in DEPTHS if wanted(depth) <= MAXIMUM_EPOCHS * tokens), default=0)


def conversations_line(conversations: Iterable[Conversation]) -> str:
    """One line about a user's conversations: count, messages, size, system messages, exact duplicates (by hash)."""
    count = turns = size = system = 0
    seen: set[bytes] = set()
    for messages in conversations:
        text = str(messages).encode(errors="replace")
        count, turns, system = count + 1, turns + len(messages), system + (messages[0]["role"] == "system")
        size += sum(len(str(message["content"]).encode(errors="replace")) for message in messages)
        seen.add(hashlib.blake2b(text, digest_size=16).digest())
    return (
        f"conversations: {count:,}, {turns / max(count, 1):.1f} messages each, {quantity(size)}B; "
        f"{system} with a system message, {count - len(seen)} duplicates"
    )
