"""A saved tokenizer of either kind: trained here, or an imported model's."""

import contextlib
from pathlib import Path

from nanochat import untrusted
from nanochat.tokenizer.foreign import ForeignTokenizer
from nanochat.tokenizer.tokenizer import ABOUT, Tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that `save` wrote into `folder`. Raises DataError if it is missing, damaged or of a newer format."""
    kind: type[Tokenizer] = Tokenizer
    with contextlib.suppress(OSError, ValueError):  # `load` reports these
        if "kind" in untrusted.table(untrusted.read_json(folder / ABOUT), ABOUT):
            kind = ForeignTokenizer
    return kind.load(folder)
