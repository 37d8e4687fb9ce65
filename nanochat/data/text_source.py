"""The text of a run, one object: how large it is, what of it is missing, its documents, conversations and problems."""

import functools
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from nanochat.config import Config
from nanochat.data.embedded import corpus
from nanochat.data.finetuning import ConversationSource, conversation_source
from nanochat.data.problem_files import problems_hash, read_problems
from nanochat.data.problems import Problem, grade_school_problems
from nanochat.data.shards import Dataset, verify
from nanochat.hub.download import FEWER, require_space
from nanochat.paths import base_dir, dataset_dir

SHARD_TOKENS = 31_000_000  # tokens per published shard: published runs take 5 shards for d4's tokens, 43 for d12's


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

    @property
    def shard_tokens(self) -> int:
        """Training tokens that a shard is counted as."""
        return SHARD_TOKENS

    def made_bytes(self) -> int:
        """About how many bytes of its files are made here from others that are downloaded. `config` must be resolved."""
        return 0

    def parts(self) -> list[dict[str, Any]]:
        """The datasets of a mixture and its sets of conversations, for a plan; [] if the text is one dataset. `config` must be resolved."""
        return []

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
