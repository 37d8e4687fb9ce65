"""The conversations of a run's fine-tuning: the user's, those of public sets, or the embedded ones; and the user's identity."""

import functools
import hashlib
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nanochat.config import Config
from nanochat.console import log
from nanochat.data import conversations
from nanochat.data.conversation_files import Conversations, read_conversations
from nanochat.data.embedded import corpus, identity
from nanochat.data.published import sets
from nanochat.data.published.origins import Part, is_hub_name, is_mixture, mixture
from nanochat.data.shards import sha256
from nanochat.data.text.summary import conversations_line
from nanochat.errors import DataError
from nanochat.tokenizer.conversation import Conversation
from nanochat.tokenizer.tokenizer import Tokenizer

CHECKED = 2000  # conversations that are encoded before a run begins
DOWNLOAD = "the conversations of {}"  # description of a set's download
LISTED = 8  # files whose hashes a run's record has one by one


class ConversationSource:
    """Where the conversations come from; this one has none but those about the user's identity, where there is one."""

    sets: Sequence[str] = ()  # the published sets that it needs

    def __init__(self, config: Config):
        self.seed = config.seed
        self.identity = Path(config.identity) if config.identity else None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to fine-tune on."""
        return self.identity is None

    def missing(self) -> dict[str, int]:
        """Missing downloads as description -> approximate bytes. No network."""
        return {DOWNLOAD.format(name): sets.set_bytes(name) for name in self.sets if not sets.has_set(name)}

    def parts(self) -> list[tuple[Part, str, str, str]]:
        """The published sets by share: (name and share, kind, licence, description of its download); [] if they have no shares."""
        return []

    def fetch(self, check: bool = False) -> None:
        """Download what is missing; with `check` every file of a set is hashed again. Raises DataError."""
        for name in self.sets:
            sets.ensure_set(name, check)

    def inspect(self) -> str:
        """Read what the user has chosen and say what it is; returns its hash, "" if all is by default. Raises DataError."""
        if self.identity:
            who = identity.read_identity(self.identity)
            log(f"identity: {' / '.join(dict.fromkeys(who.name.values()))}, in {', '.join(who.languages)}")
        hashes = [sha256(path) for path in (*self._chosen(), *filter(None, [self.identity]))]
        if len(hashes) <= LISTED:
            return " ".join(hashes)
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()  # a directory may have thousands of files

    def load(self) -> Sequence[Conversation]:
        """All conversations; what is missing is downloaded. Raises DataError."""
        found = self._read()
        return conversations.with_identity(found, self.identity, self.seed) if self.identity else found

    def _chosen(self) -> list[Path]:
        """The files of conversations that the user has chosen, looked through."""
        return []

    def _read(self) -> Sequence[Conversation]:
        """All but the user's identity."""
        return []


class UserFile(ConversationSource):
    """--chat-data PATH, a file or a folder of them."""

    empty = False

    def __init__(self, config: Config):
        super().__init__(config)
        self.path = Path(config.chat_data)

    def _chosen(self) -> list[Path]:
        found = self._read()
        for line in (*found.lines(), conversations_line(found)):
            log(line)
        return found.files

    def _read(self) -> Conversations:
        return self._found

    @functools.cached_property
    def _found(self) -> Conversations:
        return read_conversations(self.path)


class PublicSet(ConversationSource):
    """--chat-data hf:OWNER/NAME"""

    empty = False

    def __init__(self, config: Config):
        super().__init__(config)
        self.sets = [config.chat_data]

    def _chosen(self) -> list[Path]:
        for line in self._found.lines():
            log(line)
        return self._found.files

    def _read(self) -> Conversations:
        return self._found

    @functools.cached_property
    def _found(self) -> Conversations:
        return conversations.public_set(self.sets[0])


class PublicMixture(ConversationSource):
    """karpathy/nanochat's mixture; a trial needs some conversations, not a gigabyte of them."""

    empty = False

    def __init__(self, config: Config):
        super().__init__(config)
        names = ["identity"] if config.trial else list(conversations.MIXTURE)
        names = [name for name in names if not (name == "identity" and self.identity)]  # the user's instead of the published one
        self.sets = names if config.sft_iterations else []

    def _read(self) -> Sequence[Conversation]:
        try:
            return conversations.mixture(self.sets, self.seed)
        except DataError as error:
            raise DataError(error.message, f"{error.hint}; or pretrain alone: --stage=base") from error


class PublicBlend(ConversationSource):
    """Published sets by share: --chat-data zh-tw, --chat-data hf:A@0.6,hf:B@0.4, or those of --dataset zh-tw."""

    empty = False

    def __init__(self, config: Config):
        super().__init__(config)
        self.chosen = bool(config.chat_data)
        self.mixture = mixture(config.chat_data or config.dataset)
        self.shares = self.mixture.conversations or self.mixture.texts  # a mixture without a name is what its option says
        self.sets = [part.name for part in self.shares] if config.sft_iterations else []
        self.said: set[str] = set()  # the sets that the log describes already

    def parts(self) -> list[tuple[Part, str, str, str]]:
        shares = self.shares if self.sets else ()
        return [(part, "conversations", sets.task_of(part.name).licence, DOWNLOAD.format(part.name)) for part in shares]

    def _chosen(self) -> list[Path]:
        """The files of the user's choice; those that belong to a text are not."""
        if not self.chosen:
            return []
        self._read()
        return [path for name in self.sets for path in sets.task_files(name)]

    def _read(self) -> Sequence[Conversation]:
        """Read each time: a gigabyte is not kept while the run pretrains."""
        found = conversations.blend(self.shares, self.seed, self.mixture.traditional)
        for part, (rows, count) in zip(self.shares, found.parts, strict=True):
            if part.name not in self.said:
                repeated = ", some of them more than once" if count > len(rows) else ""
                log(f"conversations: {part.share:.0%} from {part.name}, {count:,} of its {len(rows):,}{repeated}")
                for line in rows.lines() if isinstance(rows, Conversations) else ():
                    log(line)
                self.said.add(part.name)
        return found


class EmbeddedConversations(ConversationSource):
    """The embedded corpus's, without those about its own identity where the user has another."""

    empty = False

    def _read(self) -> Sequence[Conversation]:
        return corpus.conversations(identity=self.identity is None)


def require_learnable(conversations: Sequence[Conversation], tokenizer: Tokenizer, seq_len: int) -> None:
    """Say how many of the conversations (of CHECKED of them, evenly spread) are cut at the sequence length, or have no answer before it.

    Raises DataError if none has one, so that a run that could not be fine-tuned does not begin.
    """
    if not len(conversations):
        raise DataError("there are no conversations to fine-tune on", "give --chat-data a file with some")
    places = np.unique(np.linspace(0, len(conversations) - 1, CHECKED).astype(np.int64)).tolist()
    cut = unanswered = 0
    needed = sys.maxsize  # tokens up to the first answer, of the conversation that needs the fewest
    for place in itertools.chain(places, range(len(conversations))):  # all of them only while none is good
        ids, mask = tokenizer.render(conversations[place])
        cut += len(ids) > seq_len + 1
        first = mask.index(1) if 1 in mask else sys.maxsize
        unanswered += first > seq_len
        needed = min(needed, first)
        if needed <= seq_len and place == places[-1]:
            break
    if needed > seq_len:
        hint = f"use shorter conversations, or --max_seq_len {needed} or more" if needed < sys.maxsize else "give some with answers"
        message = f"none of the {len(conversations):,} conversations has an answer within the sequence length of {seq_len:,} tokens"
        raise DataError(message, hint)
    if cut:
        looked = f"{len(places):,}" if len(places) == len(conversations) else f"{len(places):,} looked at"
        log(f"conversations: {cut:,} of {looked} are cut at {seq_len:,} tokens; {unanswered:,} of them have no answer before that")


def conversation_source(config: Config, default: type[ConversationSource]) -> ConversationSource:
    """The conversations that `config` asks for, `default` (the text's own) where the user has named none."""
    if not config.chat_data:
        return default(config)
    if is_mixture(config.chat_data):
        return PublicBlend(config)
    return PublicSet(config) if is_hub_name(config.chat_data) else UserFile(config)
