"""The text of a run, one object: how large it is, what of it is missing, its documents, conversations and problems.

`text_source` decides which one a config asks for: the user's files, the embedded corpus, or a dataset of a hub.
"""

import functools
import sys
from abc import ABC, abstractmethod
from pathlib import Path

from nanochat.config import EMBEDDED, Config
from nanochat.data.embedded import corpus
from nanochat.data.finetuning import ConversationSource, EmbeddedConversations, PublicMixture, conversation_source
from nanochat.data.problem_files import problems_hash, read_problems
from nanochat.data.problems import Problem, arithmetic_problems, grade_school_problems
from nanochat.data.published import sets
from nanochat.data.published.shards import Origin, ensure_shards, have_shards, is_hub_name, origin
from nanochat.data.shards import SHARD_BYTES, SHARD_TEXT_BYTES, Dataset, verify
from nanochat.data.text.documents import import_texts, is_readable
from nanochat.errors import UsageError
from nanochat.hub.download import FEWER, require_space
from nanochat.paths import base_dir, dataset_dir

OWN_FILES = ("data", "chat_data", "identity", "problems")  # the fields of a config that may name a file of the user's


class TextSource(ABC):
    """The text of the run of `config`, and what belongs to it. Making one looks at nothing."""

    @property
    def default_conversations(self) -> type[ConversationSource]:
        """The text's own conversations; none unless a kind of text has some."""
        return ConversationSource

    def __init__(self, config: Config):
        self.config = config

    @property
    def name(self) -> str:
        """The dataset's name, or the path of the user's text."""
        return self.config.dataset

    @property
    def title(self) -> str:
        """The name for readers elsewhere: without a path of this machine."""
        return self.name

    @property
    @abstractmethod
    def licence(self) -> str:
        """The text's licence, for people to read."""

    @property
    def fault(self) -> str | None:
        """The reason why the text cannot be read, or None."""
        return None

    @property
    def most_shards(self) -> int | None:
        """Training shards that there are to download; None if the text is not downloaded."""
        return None

    @abstractmethod
    def text_bytes(self) -> int | None:
        """UTF-8 bytes of the training text; None if they are known only when it is downloaded. Raises DataError."""

    def estimated_bytes(self, shards: int) -> int | None:
        """About how many bytes of text so many shards hold; None if the text is not downloaded."""
        return None

    @abstractmethod
    def open(self, shards: int = -1) -> Dataset:
        """The text as a dataset of `shards` training shards (-1: all of them), generated, imported or downloaded if missing.

        Raises DataError, UsageError, PreflightError.
        """

    @functools.cached_property
    def conversations(self) -> ConversationSource:
        """The fine-tuning conversations: the user's choice, else those of the text."""
        return conversation_source(self.config, self.default_conversations)

    @property
    def downloads(self) -> bool:
        """Whether a machine that has nothing yet needs the network for it."""
        return self.most_shards is not None or bool(self.conversations.sets)

    def missing(self) -> dict[str, int]:
        """Missing downloads as description -> approximate bytes. No network. `config` must be resolved."""
        return self.conversations.missing()

    def fetch(self, check: bool = False) -> Path:
        """Bring all that the run of a resolved config needs, its evaluation too; afterwards it needs no network.

        With `check` every file is hashed again. Returns the text's path. Raises DataError, PreflightError.
        """
        require_space("this download", sum((self.missing() | self._missing_tasks()).values()), base_dir(), FEWER)
        self.conversations.fetch(check)
        return self._fetch_text(check)

    def _fetch_text(self, check: bool) -> Path:
        dataset = self.open(self.config.shards)
        if check:
            verify(dataset)
        return dataset_dir(dataset.folder.name)

    def _missing_tasks(self) -> dict[str, int]:
        """Missing files of the run's evaluation."""
        return {}

    def problems(self, held_out: int) -> tuple[list[Problem], list[Problem]]:
        """Problems to learn from in reinforcement learning, and at most `held_out` problems for its evaluation. Raises DataError."""
        if self.config.problems:
            return read_problems(Path(self.config.problems), held_out)
        return self.default_problems(held_out)

    def default_problems(self, held_out: int) -> tuple[list[Problem], list[Problem]]:
        """The problems that belong to the text."""
        return grade_school_problems(held_out)

    def problems_hash(self) -> str:
        """The hash of the user's problems, "" if there are none. Raises DataError."""
        return problems_hash(Path(self.config.problems)) if self.config.problems else ""

    @property
    def has_heldout(self) -> bool:
        """Whether there are held-out questions."""
        return False

    def heldout(self) -> list[corpus.Item]:
        """Questions with one right answer each, of the kinds that the text teaches but not in it."""
        return []


class Local(TextSource):
    """The user's files (--data)."""

    licence = "your own text"
    title = "the user's own text"

    @property
    def default_conversations(self) -> type[ConversationSource]:
        """None; where the run continues another one (`--from`), those that the other one was fine-tuned on."""
        inherits = self.config.from_run and self.config.dataset
        return text_source(self.config.replace(data="")).default_conversations if inherits else ConversationSource

    @property
    def name(self) -> str:
        return self.config.data

    @property
    def fault(self) -> str | None:
        return None if is_readable(*self._place, self.config.encoding) else f"{self.config.data} does not exist"

    @property
    def _place(self) -> tuple[Path, str]:
        """PATH or PATH:COLUMN: the path, and the column, "" if none is named."""
        path, _, column = self.config.data.rpartition(":")
        whole = Path(self.config.data).expanduser()
        named = path and "/" not in column and not whole.exists() and not is_readable(whole, "", self.config.encoding)
        return (Path(path).expanduser(), column) if named else (whole, "")

    @functools.cached_property
    def _dataset(self) -> Dataset:
        return import_texts(*self._place, self.config.encoding)

    def text_bytes(self) -> int | None:
        return self._dataset.text_bytes

    def open(self, shards: int = -1) -> Dataset:
        return self._dataset.first(shards) if shards != -1 else self._dataset

    def _fetch_text(self, check: bool) -> Path:
        return self._place[0]


class Embedded(TextSource):
    """The corpus that the package itself makes."""

    licence = "MIT (made by this project)"

    @property
    def default_conversations(self) -> type[ConversationSource]:
        return EmbeddedConversations

    def text_bytes(self) -> int | None:
        return corpus.TEXT_BYTES

    def open(self, shards: int = -1) -> Dataset:
        dataset = corpus.build()
        return dataset.first(shards) if shards != -1 else dataset

    def default_problems(self, held_out: int) -> tuple[list[Problem], list[Problem]]:
        return arithmetic_problems(held_out)

    @property
    def has_heldout(self) -> bool:
        """A model that was taught other conversations does not answer in this corpus's words."""
        return not self.config.chat_data

    def heldout(self) -> list[corpus.Item]:
        if not self.has_heldout:
            return []
        return [item for item in corpus.heldout() if not self.config.identity or item.skill != corpus.IDENTITY]


class Hub(TextSource):
    """A dataset of a hub, in shards that are downloaded."""

    @property
    def default_conversations(self) -> type[ConversationSource]:
        return PublicMixture

    @functools.cached_property
    def _origin(self) -> Origin:
        return origin(self.config.dataset)

    @property
    def licence(self) -> str:
        return self._origin.licence

    @property
    def most_shards(self) -> int:
        return self._origin.last or sys.maxsize

    def text_bytes(self) -> int | None:
        return None

    def estimated_bytes(self, shards: int) -> int | None:
        return shards * SHARD_TEXT_BYTES

    def open(self, shards: int = -1) -> Dataset:
        return ensure_shards(self.config.dataset, shards)

    def missing(self) -> dict[str, int]:
        wanted = self.config.shards + 1  # one for validation
        lacking = wanted - len(have_shards(self.config.dataset))
        shards = {f"{lacking} of {wanted} shards of {self.config.dataset}": lacking * SHARD_BYTES} if lacking > 0 else {}
        return shards | super().missing()

    def _fetch_text(self, check: bool) -> Path:
        folder = super()._fetch_text(check)
        if self._evaluates:  # last: training can do without
            sets.fetch_tasks(check)
        return folder

    @property
    def _evaluates(self) -> bool:
        """Whether the run ends with CORE and the chat tasks."""
        return not self.config.trial and self.config.core_metric_max_per_task != 0

    def _missing_tasks(self) -> dict[str, int]:
        return sets.missing_tasks() if self._evaluates else {}


class Untouched(TextSource):
    """The text of a run that is not pretrained on it: the model's source was (`--from`). It has the text's conversations and problems."""

    def __init__(self, config: Config, text: TextSource):
        super().__init__(config)
        self.text, self.licence = text, text.licence

    licence = ""

    @property
    def default_conversations(self) -> type[ConversationSource]:
        return self.text.default_conversations

    @property
    def name(self) -> str:
        return self.text.name

    @property
    def title(self) -> str:
        return self.text.title

    def text_bytes(self) -> int | None:
        return None

    def open(self, shards: int = -1) -> Dataset:
        raise UsageError(
            "this run reads no text: it begins with a pretrained model (--from)", "give it some: --data PATH or --dataset NAME"
        )

    def _fetch_text(self, check: bool) -> Path:
        return base_dir()

    def default_problems(self, held_out: int) -> tuple[list[Problem], list[Problem]]:
        return self.text.default_problems(held_out)

    @property
    def has_heldout(self) -> bool:
        return self.text.has_heldout

    def heldout(self) -> list[corpus.Item]:
        return self.text.heldout()


def text_source(config: Config) -> TextSource:
    """The text that `config` asks for."""
    if is_hub_name(config.data):
        raise UsageError(f"--data {config.data} is a dataset of a hub, not a path", f"use --dataset {config.data}")
    return _text(config) if config.num_iterations else Untouched(config, _text(config))


def _text(config: Config) -> TextSource:
    if config.data:
        return Local(config)
    return Embedded(config) if config.dataset == EMBEDDED else Hub(config)


def own_files(config: Config) -> dict[str, str]:
    """The user's files and folders among the fields' values: name -> path. A public set (hf:) is none of them."""
    named = {name: str(getattr(config, name)) for name in OWN_FILES}
    return {name: path for name, path in named.items() if path and not is_hub_name(path)}
