"""The text of a run from a hub: a dataset in shards that are downloaded, or a mixture of datasets."""

import functools
import sys
from pathlib import Path
from typing import Any

from nanochat.data.finetuning import ConversationSource, EmbeddedConversations, PublicBlend, PublicMixture
from nanochat.data.published import mixtures, sets
from nanochat.data.published.origins import Mixture, Origin, mixture, origin
from nanochat.data.published.shards import ensure_shards, have_shards
from nanochat.data.shards import SHARD_TEXT_BYTES, Dataset
from nanochat.data.text_source import TextSource

MIXED_SHARD_TOKENS = 50_000_000  # per shard of a mixture, which is written for the run: a token has some five bytes


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
        shards = {f"{lacking} of {wanted} shards of {self.config.dataset}": lacking * self._origin.file_bytes} if lacking > 0 else {}
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


class Mixed(Hub):
    """Datasets of a hub by share."""

    @functools.cached_property
    def mixture(self) -> Mixture:
        """The datasets and their shares."""
        return mixture(self.config.dataset)

    @property
    def default_conversations(self) -> type[ConversationSource]:
        """Those of the mixture; a trial has the embedded ones, which are not a gigabyte."""
        if not self.mixture.conversations:
            return PublicMixture
        return EmbeddedConversations if self.config.trial else PublicBlend

    @property
    def licence(self) -> str:
        return mixtures.licence(self.mixture)

    @property
    def most_shards(self) -> int:
        return sys.maxsize

    @property
    def shard_tokens(self) -> int:
        return MIXED_SHARD_TOKENS

    def open(self, shards: int = -1) -> Dataset:
        return mixtures.ensure_mixture(self.mixture, shards)

    @property
    def _made(self) -> bool:
        return mixtures.has_mixture(self.mixture, self.config.shards)

    def made_bytes(self) -> int:
        return 0 if self._made else mixtures.made_bytes(self.config.shards * SHARD_TEXT_BYTES)

    def missing(self) -> dict[str, int]:
        texts = {} if self._made else {part.name: mixtures.missing_bytes(part, self.config.shards) for part in self.mixture.texts}
        return {f"shards of {name}": size for name, size in texts.items() if size} | self.conversations.missing()

    def parts(self) -> list[dict[str, Any]]:
        lacking = self.missing()
        texts = [(part, "text", origin(part.name).licence, f"shards of {part.name}") for part in self.mixture.texts]
        return [
            {"kind": kind, "name": part.name, "share": part.share, "licence": licence, "download_bytes": lacking.get(what, 0)}
            for part, kind, licence, what in [*texts, *self.conversations.parts()]
        ]
