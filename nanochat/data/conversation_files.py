"""Conversations of a user's files or a public set: parsed, checked, and kept on disk if they are large."""

import json
import tempfile
from abc import abstractmethod
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from nanochat.console import log, printable
from nanochat.data.conversation_formats import is_message, understand
from nanochat.errors import DataError
from nanochat.paths import base_dir
from nanochat.readers.encodings import row_file
from nanochat.readers.files import ROWS, File, find
from nanochat.readers.records import records
from nanochat.readers.textfile import CHATS
from nanochat.tokenizer.conversation import Conversation

IN_MEMORY = 64 << 20  # bytes of conversations; more of them are kept in a file
EXAMPLE = 60  # characters of a message in the example of a form
_HINT = (
    'correct it or leave it out; a record is {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
)


class ConversationSequence(Sequence[Conversation]):
    """Conversations by index or slice. A subclass has `__len__` and `at`."""

    @abstractmethod
    def at(self, index: int) -> Conversation:
        """The conversation at `index`, from 0 to the length."""

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        if isinstance(index, slice):
            return [self.at(i) for i in range(*index.indices(len(self)))]
        return self.at(range(len(self))[index])


class Conversations(ConversationSequence):
    """Conversations in the order in which they were read, in a temporary file; one is a Python object while it is used."""

    def __init__(self) -> None:
        folder = str(base_dir()) if base_dir().is_dir() else None
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY, dir=folder)  # noqa: SIM115 (open as long as this object is)
        self._ends = array("q", [0])
        self.forms: Counter[str] = Counter()
        self.examples: dict[str, Conversation] = {}  # the first of each form
        self.files: list[Path] = []  # that were read
        self.left: Counter[str] = Counter()  # what was left out, by reason, ...
        self.left_at: dict[str, str] = {}  # ... and where first

    def add(self, form: str, conversation: Conversation) -> None:
        """Put one at the end."""
        self.forms[form] += 1
        self.examples.setdefault(form, conversation)
        size = self._file.write(json.dumps(conversation, ensure_ascii=False).encode())
        self._ends.append(self._ends[-1] + size)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def at(self, index: int) -> Conversation:
        """The conversation at `index`."""
        self._file.seek(self._ends[index])
        found: Conversation = json.loads(self._file.read(self._ends[index + 1] - self._ends[index]))
        return found

    def lines(self) -> Iterator[str]:
        """A line for each form with its count and first example, then a line for each reason of omission."""
        for form, count in self.forms.most_common():
            yield f"conversations: {count:,} understood as {form}, such as {_example(self.examples[form])}"
        for reason, count in (+self.left).most_common():
            yield f"left out of the conversations: {count:,} {reason}, first in {self.left_at[reason]}"


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _example(conversation: Conversation) -> str:
    """A conversation for people to read, on one line."""
    said = []
    for message in conversation[:3]:
        text = " ".join(_text(message).split())
        said.append(f"{message['role']}: {text[:EXAMPLE]}{'...' if len(text) > EXAMPLE else ''}")
    return printable(" | ".join(said))


def read_conversations(
    path: Path, files: Sequence[Path] = (), strict: bool = True, unwanted: Callable[[str], bool] | None = None
) -> Conversations:
    """The conversations of a file or folder of jsonl, JSON, CSV, parquet or Arrow (or of `files` alone), in every known form.

    A row that is no conversation raises DataError with file and line; where not `strict` (a set of others) it is left out and counted,
    as is a conversation whose text is `unwanted` (in Simplified Chinese).
    Raises DataError if none is left.
    """
    path = path.expanduser()
    found = Conversations()
    for file in [File(one, str(one), "parquet") for one in files] or _files(path):
        found.files.append(file.path)
        for where, row in records(file, is_message, CHATS):
            before = found.left.copy()
            try:
                form, conversation = understand(row, found.left)
            except ValueError as error:
                if strict:
                    raise DataError(f"{where}: {error}", _HINT) from error
                found.left[f"rows that are no conversation ({error})" if len(found.left) < 20 else "other rows that are none"] += 1
                conversation = []
            if conversation and unwanted and unwanted("\n".join(map(_text, conversation))):
                found.left["conversations in Simplified Chinese"] += 1
                conversation = []
            for reason in found.left.keys() - before.keys():
                found.left_at[reason] = where
            if conversation:
                found.add(form, conversation)
    if not len(found):
        reasons = "; ".join(f"{count} {reason}" for reason, count in (+found.left).most_common(3))
        raise DataError(f"{path} has no conversations{f': left out are {reasons}' if reasons else ''}", _HINT)
    return found


def _files(path: Path) -> list[File]:
    """The files of conversations at `path`, with their encodings."""
    files: list[File] = []
    for file in find(path, "--chat-data", ROWS):
        if file.path.stat().st_size or path.is_file():
            files.append(row_file(file, CHATS))
        else:
            log(f"{file}: empty, skipped")
    return files
