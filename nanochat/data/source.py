"""Which text a config asks for: the user's files, the embedded corpus, or datasets of a hub. Nobody else decides it."""

import functools
from pathlib import Path

from nanochat.config import EMBEDDED, Config
from nanochat.data.embedded import corpus
from nanochat.data.finetuning import ConversationSource, EmbeddedConversations
from nanochat.data.problems import Problem, arithmetic_problems
from nanochat.data.published.origins import is_hub_name, is_mixture
from nanochat.data.published.source import Hub, Mixed
from nanochat.data.shards import Dataset
from nanochat.data.text.documents import import_texts, is_readable
from nanochat.data.text_source import TextSource
from nanochat.errors import UsageError
from nanochat.paths import base_dir

OWN_FILES = ("data", "chat_data", "identity", "problems")  # the fields of a config that may name a file of the user's


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
        path = f", or --data ./{config.data} for a file or directory of that name" if is_mixture(config.data) else ""
        raise UsageError(f"--data {config.data} is a dataset of a hub, not a path", f"use --dataset {config.data}{path}")
    return _text(config) if config.num_iterations else Untouched(config, _text(config))


def _text(config: Config) -> TextSource:
    if config.data:
        return Local(config)
    if is_mixture(config.dataset):
        return Mixed(config)
    return Embedded(config) if config.dataset == EMBEDDED else Hub(config)


def own_files(config: Config) -> dict[str, str]:
    """The user's files and folders among the fields' values: name -> path. A public set (hf:) is none of them."""
    named = {name: str(getattr(config, name)) for name in OWN_FILES}
    return {name: path for name, path in named.items() if path and not is_hub_name(path)}
