"""Names of published datasets and what they stand for: a dataset of a hub, one of its subsets, or a mixture of datasets by share.

climbmix                            a dataset that catalogue.toml or this module knows
hf:OWNER/NAME[/SUBSET][:COLUMN]     a dataset of the hub, its subset (a "config" in the hub's words), the column of its text
hf:OWNER/NAME@0.6,climbmix@0.4      a mixture: datasets with their shares
zh-tw                               a mixture of catalogue.toml
"""

import dataclasses
import fnmatch
import functools
import math
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.data.shards import SHARD_BYTES, SHARD_TEXT_BYTES
from nanochat.errors import UsageError
from nanochat.hub import addresses as hub
from nanochat.hub.addresses import Remote

NON_COMMERCIAL = "CC BY-NC 4.0 (not for commercial use)"
PATTERN = "hf:OWNER/NAME[/SUBSET][:COLUMN], or shares of several, as in climbmix@0.4,hf:OWNER/NAME@0.6"
_WORD = r"[A-Za-z0-9][\w.-]*"
_HUB = re.compile(rf"hf:({_WORD}/{_WORD})(?:/({_WORD}))?(?::([\w.-]+))?")
_MIXTURE = re.compile(r"[^@,\s]+@[\d.]+(,[^@,\s]+@[\d.]+)+")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a dataset comes from. `last` is the index of its validation shard where its files are shard_00000.parquet and so on."""

    name: str
    repo: str
    folder: str  # under data/
    licence: str
    last: int | None = None
    upstream: str = ""  # the folder of the data directory where karpathy/nanochat keeps the same shards
    column: str = ""  # that holds the text; "": found
    subset: str = ""  # of the repository; "": all of it
    file_bytes: int = SHARD_BYTES  # of a file, about ...
    text_bytes: int = SHARD_TEXT_BYTES  # ... and of the text in it

    @property
    def title(self) -> str:
        """The repository, and the subset of it."""
        return f"{self.repo}/{self.subset}" if self.subset else self.repo


@dataclasses.dataclass(frozen=True)
class Part:
    """A dataset in a mixture, and its share of the whole, from 0 to 1."""

    name: str
    share: float


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Datasets of text by share of their UTF-8 bytes, and sets of conversations by share of their number; () where none are named."""

    name: str
    texts: tuple[Part, ...]
    conversations: tuple[Part, ...] = ()
    languages: tuple[str, ...] = ()
    traditional: bool = False  # without what is in Simplified Chinese


KNOWN = {
    "climbmix": Origin("climbmix", "karpathy/climbmix-400b-shuffle", "climbmix", NON_COMMERCIAL, 6542, "base_data_climbmix"),
    "fineweb-edu": Origin("fineweb-edu", "karpathy/fineweb-edu-100b-shuffle", "fineweb-edu", "ODC-By 1.0", 1822, "base_data"),
}


@functools.cache
def catalogue() -> dict[str, Any]:
    """The tables of catalogue.toml."""
    return tomllib.loads((Path(__file__).parent / "catalogue.toml").read_text(encoding="utf-8"))


def is_hub_name(name: str) -> bool:
    """Whether `name` is one of the hub's or of the catalogue's: hf:OWNER/NAME or a mixture. A path that looks like one is ./NAME."""
    return name.startswith("hf:") or is_mixture(name)


def is_mixture(name: str) -> bool:
    """Whether `name` is a mixture, by its form or in the catalogue."""
    return name in catalogue()["mixtures"] or _MIXTURE.fullmatch(name) is not None


def origin(dataset: str) -> Origin:
    """The origin of climbmix, fineweb-edu or hf:OWNER/NAME[/SUBSET][:COLUMN]. Raises UsageError for another name."""
    if dataset in KNOWN:
        return KNOWN[dataset]
    if found := _HUB.fullmatch(dataset):
        repo, subset, column = found[1], found[2] or "", found[3] or ""
        folder = f"hf:{repo}{'+' * bool(subset)}{subset}{':' * bool(column)}{column}".replace(":", "--").replace("/", "--")
        known = catalogue()["sets"].get(dataset.removesuffix(f":{column}"), {})
        sizes = {key: known[key] for key in ("file_bytes", "text_bytes") if key in known}
        return Origin(dataset, repo, folder, known.get("licence", hub.UNKNOWN_LICENCE), column=column, subset=subset, **sizes)
    raise UsageError(f"cannot download a dataset {dataset!r}", f"use one of: {', '.join([*KNOWN, *catalogue()['mixtures']])}, {PATTERN}")


def mixture(name: str) -> Mixture:
    """The mixture that `name` stands for. Raises UsageError for a part that is no dataset, or a share that is no number."""
    if known := catalogue()["mixtures"].get(name):
        texts, talks = parts(known["texts"]), parts(known["conversations"])
        return Mixture(name, texts, talks, tuple(known["languages"]), known["traditional"])
    return Mixture(name, parts(name))


def parts(text: str) -> tuple[Part, ...]:
    """The parts of NAME@SHARE,NAME@SHARE; shares are relative to their sum. Raises UsageError."""
    weights: dict[str, float] = {}
    for each in text.split(","):
        name, _, share = each.rpartition("@")
        try:
            weight = float(share)
        except ValueError:
            weight = 0.0
        if not name or not 0 < weight < math.inf:
            raise UsageError(
                f"{share!r} is not a share, in {each!r} of the mixture {text!r}",
                "give each dataset a positive number, as in climbmix@0.4,hf:OWNER/NAME@0.6",
            )
        if name in weights:
            raise UsageError(f"the mixture {text!r} names {name} twice", "name it once, with the sum of its shares")
        weights[name] = weight
    return tuple(Part(name, weight / sum(weights.values())) for name, weight in weights.items())


def training_files(where: Origin, files: Sequence[Remote]) -> list[Remote]:
    """The parquet files of a dataset or of its subset that are to be learned. Raises UsageError if there is no such subset.

    A set that marks its parts is not to be learned with its test part.
    """
    found = [remote for remote in files if remote.name.endswith(".parquet")]
    if where.subset:
        found = _of_subset(where, found)
    return [remote for remote in found if "train" in remote.name] or found


def _of_subset(where: Origin, files: list[Remote]) -> list[Remote]:
    """The files that the dataset's card lists for the subset; where it has no list, those in a directory of the subset's name."""
    listed = hub.subsets(where.repo)
    if where.subset in listed:
        patterns = [pattern.replace("/", "__") for pattern in listed[where.subset]]  # as the files' names are here
        found = [remote for remote in files if any(fnmatch.fnmatchcase(remote.name, pattern) for pattern in patterns)]
    else:
        found = [remote for remote in files if where.subset in remote.name.split("__")[:-1]]
    if not found:
        names = sorted(listed) or sorted({part for remote in files for part in remote.name.split("__")[:-1]})
        some = f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}" if names else "none"
        raise UsageError(f"{where.repo} has no subset {where.subset!r} with parquet files", f"use one of its subsets: {some}")
    return found
