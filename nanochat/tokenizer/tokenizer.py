"""The tokenizer: training, encoding, decoding, and conversations as ids with a loss mask.

Byte-level BPE (rustbpe) over a GPT-4-style split, with nine special tokens at the end of the vocabulary. Text never
yields a special token, even if it spells one: only `render` and `render_prompt` insert them.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import rustbpe
from nanochat import untrusted
from nanochat.console import log
from nanochat.errors import DataError, NewerFormat, UsageError
from nanochat.paths import atomic_folder, atomic_write, atomic_write_json
from nanochat.tokenizer.conversation import PARTS, SPECIAL_TOKENS, Conversation, merge_system, validate_conversation
from nanochat.tokenizer.formats import VOCABULARY_BYTES, parse_ranks, ranks_text
from nanochat.tokenizer.stream import StreamDecoder

# As GPT-4's split, but digits in groups of one or two: measured best for small vocabularies.
SPLIT_PATTERN = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"

# Qwen2's split, digits one by one, for portable models: llama.cpp supports only a fixed list of splits.
QWEN2_PATTERN = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
ABOUT = "tokenizer.json"
FORMAT = 1  # version of the files that `save` writes; an imported model's tokenizer has the next one
NEWEST_FORMAT = 2


class Tokenizer:
    """Text <-> ids: the BPE tokens first, in rank order, then the nine specials.

    tokens: the bytes of each token in rank order, the 256 single bytes first. Raises ValueError for other tokens.
    """

    def __init__(self, tokens: Sequence[bytes], pattern: str = SPLIT_PATTERN):
        self.tokens = list(tokens)
        self.pattern = pattern
        self.specials = {name: len(self.tokens) + i for i, name in enumerate(SPECIAL_TOKENS)}
        self.encoding = rustbpe.Encoding(self.tokens, pattern, self.specials)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        pattern: str = SPLIT_PATTERN,
        document_characters: int = 10_000,
        max_characters: int = 2_000_000_000,
    ) -> "Tokenizer":
        """Learn `vocab_size` tokens, the nine specials included, from the first 10K characters of each of `texts`.

        Stops reading after `max_characters`. Too little text yields a smaller vocabulary, with a message.
        Raises UsageError if vocab_size cannot hold the bytes and the specials.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise UsageError(
                f"vocab_size = {vocab_size} is too small",
                f"set it to at least {SMALLEST_VOCABULARY}, for 256 bytes and {len(SPECIAL_TOKENS)} special tokens",
            )

        def cut() -> Iterator[str]:
            left = max_characters
            for text in texts:
                yield text[: min(document_characters, left)]
                left -= min(document_characters, len(text))
                if left <= 0:
                    return

        tokenizer = cls(rustbpe.train(cut(), vocab_size - len(SPECIAL_TOKENS), pattern), pattern)
        if tokenizer.vocab_size < vocab_size:
            log(f"tokenizer: the text yields a vocabulary of {tokenizer.vocab_size:,} tokens instead of {vocab_size:,}")
        return tokenizer

    @property
    def id(self) -> str:
        """Hash of tokens, pattern and special tokens, as 12 hex digits."""
        digest = hashlib.sha256(json.dumps([self.pattern, SPECIAL_TOKENS]).encode())
        for token in self.tokens:
            digest.update(len(token).to_bytes(8, "little") + token)
        return digest.hexdigest()[:12]

    @property
    def vocab_size(self) -> int:
        """Number of ids, the nine specials included."""
        return len(self.tokens) + len(SPECIAL_TOKENS)

    @property
    def bos(self) -> int:
        """The id of <|bos|>."""
        return self.specials["<|bos|>"]

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end an answer."""
        return self.specials["<|assistant_end|>"], self.bos

    def special(self, name: str) -> int:
        """The id of a special token. Raises KeyError for other names."""
        return self.specials[name]

    def bytes_of(self, id: int) -> bytes | None:
        """The bytes of a token, None for a special token."""
        return self.tokens[id] if id < len(self.tokens) else None

    def token_bytes(self) -> np.ndarray:
        """Length in bytes of each token, 0 for specials: int64 (V,); used for bits per byte."""
        return np.array([len(self.bytes_of(id) or b"") for id in range(self.vocab_size)], dtype=np.int64)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without special tokens. Raises ValueError for text that UTF-8 cannot encode (a lone surrogate)."""
        return self.encoding.encode(text)

    def encode_batch(self, texts: list[str], *, threads: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Encode `texts` on `threads` cores (0: all) as ids (uint16 if all fit, else uint32) and offsets (len+1,) int64."""
        return self.encoding.encode_batch(texts, threads=threads)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`: specials as their names, invalid UTF-8 as U+FFFD. Raises ValueError for an id out of range."""
        return self.encoding.decode_bytes(ids).decode("utf-8", "replace")

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for a stream of ids."""
        return StreamDecoder(self.bytes_of)

    # Conversations

    def render(self, conversation: Conversation, max_tokens: int | None = None) -> tuple[list[int], list[int]]:
        """A conversation as (ids, mask), both cut at `max_tokens`; the mask is 1 for tokens to learn.

        One BOS; a system message is put before the first user message's text. Learned: the assistant's text, its calculator calls
        with their delimiters, and assistant_end. Not learned: everything else, also messages of weight 0, assistant_start and the
        calculator's results. Raises DataError for an invalid conversation.
        """
        validate_conversation(conversation)
        ids, mask = self._render_messages(merge_system(conversation))
        return [self.bos, *ids][:max_tokens], [0, *mask][:max_tokens]

    def _render_messages(self, messages: Conversation) -> tuple[list[int], list[int]]:
        """(ids, mask) of user and assistant messages, without BOS."""
        ids: list[int] = []
        mask: list[int] = []

        def add(new: list[int], trained: int) -> None:
            ids.extend(new)
            mask.extend([trained] * len(new))

        for message in messages:
            role, content = message["role"], message["content"]
            learned = role == "assistant" and message.get("weight") != 0
            add([self.specials[f"<|{role}_start|>"]], 0)
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                start, end, trained = PARTS[part["type"]]
                between = self.encode(part["text"])
                whole = [self.specials[start], *between, self.specials[end]] if start else between
                add(whole, trained if learned else 0)
            add([self.specials[f"<|{role}_end|>"]], 1 if learned else 0)
        return ids, mask

    def render_prompt(self, conversation: Conversation, max_tokens: int) -> tuple[list[int], int]:
        """A conversation that ends with a user message, as (ids that end with assistant_start, number of turns left out).

        If it is longer than `max_tokens`, its oldest turns (a user message and its answer) are left out until it fits; the system
        message stays. Raises DataError for any other conversation, UsageError if the last message alone is too long.
        """
        validate_conversation(conversation)
        if conversation[-1]["role"] != "user":
            raise DataError("the conversation does not end with a user message", "end it with a message of the role user")
        system = conversation[:1] if conversation[0]["role"] == "system" else []
        turns = conversation[len(system) :]
        fitting: tuple[list[int], int] | None = None
        later: list[int] = []  # ids of the turns after the current one; from the newest back, so that turns left out are never encoded
        for first in range(len(turns) - 1, -1, -2):
            turn = turns[first : first + 2]
            ids = [self.bos, *self._render_messages(merge_system([*system, *turn]))[0], *later, self.special("<|assistant_start|>")]
            if len(ids) > max_tokens:
                break
            fitting = ids, first // 2
            later = self._render_messages(turn)[0] + later
        if fitting is None:
            raise UsageError(
                f"the message has {len(ids):,} tokens; at most {max_tokens:,} fit",
                "send a shorter message, or ask for a shorter answer",
            )
        return fitting

    # Files

    def save(self, folder: Path) -> None:
        """Write `folder` atomically: ranks.txt (lines of a base64 token and its rank) and tokenizer.json.

        A directory that already has this tokenizer is not changed; a damaged one is replaced.
        """
        if folder.exists():
            try:
                if self.load(folder).id == self.id:
                    return
            except NewerFormat:
                raise
            except DataError:
                pass
            shutil.rmtree(folder)
        with atomic_folder(folder) as temporary:
            self._write(temporary)
            atomic_write_json(temporary / ABOUT, self._about())

    def _write(self, folder: Path) -> None:
        """Write the files beside tokenizer.json."""
        atomic_write(folder / "ranks.txt", ranks_text(self.tokens))

    def _about(self) -> dict[str, Any]:
        return {"format": FORMAT, "id": self.id, "vocab_size": self.vocab_size, "pattern": self.pattern, "special_tokens": self.specials}

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer that `save` wrote. Raises DataError if it is missing, damaged or of another format."""
        again = "run the `train` command of its run again, which trains it again; a model that was imported is imported again"
        try:
            about = untrusted.table(untrusted.read_json(folder / ABOUT), ABOUT)
            untrusted.require_format(about["format"], NEWEST_FORMAT, f"the tokenizer in {folder}")
            tokenizer = cls._read(folder, about)
            if tokenizer._about() != about:
                raise ValueError("its hash differs")
        except FileNotFoundError as error:
            raise DataError(f"there is no tokenizer in {folder}", again) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"the tokenizer in {folder} is damaged: {untrusted.reason(error)}", f"remove {folder}; then {again}") from error
        return tokenizer

    @classmethod
    def _read(cls, folder: Path, about: dict[str, Any]) -> "Tokenizer":
        """The tokenizer of `folder`, whose tokenizer.json is `about`. Raises OSError, ValueError, KeyError, TypeError."""
        return cls(parse_ranks(untrusted.read_bytes(folder / "ranks.txt", VOCABULARY_BYTES).decode("ascii")), about["pattern"])
