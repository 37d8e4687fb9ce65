"""A mixture of published datasets by share, written as a dataset of its own.

    data/mixture-<name>-<hash>/    documents of all parts, interleaved, so that each stretch of the text has each part's share

The hash is that of the parts, their shares and the size: the same mixture is made once, and found again without a network. The rows, their
order and the tokenizer follow from its shards as from any other dataset's.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator

from nanochat.console import Progress, log, quantity
from nanochat.data.published.origins import Mixture, Part, catalogue, origin
from nanochat.data.published.shards import ensure_shards, have_shards
from nanochat.data.shards import MANIFEST, SHARD_BYTES, SHARD_TEXT_BYTES, Dataset, Shard, open_dataset, texts, write_dataset
from nanochat.data.text.chinese import is_simplified
from nanochat.errors import DataError
from nanochat.hub.download import FEWER, require_space
from nanochat.paths import dataset_dir, locked

FORMAT = 1  # raise it when the same parts would give other documents
REPEATS = (
    4  # times that a part is read at most: so often, repeated text is nearly as good as new (Muennighoff et al., 2023, arXiv 2305.16264)
)


def mixture_folder(mixture: Mixture, shards: int) -> str:
    """The name of the directory of `shards` shards of a mixture."""
    content = [FORMAT, [[part.name, part.share] for part in mixture.texts], mixture.traditional, shards, SHARD_TEXT_BYTES]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
    return f"mixture-{mixture.name}-{digest}" if mixture.name in catalogue()["mixtures"] else f"mixture-{digest}"


def has_mixture(mixture: Mixture, shards: int) -> bool:
    """Whether the mixture was made already. No network."""
    return (dataset_dir(mixture_folder(mixture, shards)) / MANIFEST).exists()


def wanted_shards(part: Part, shards: int) -> int:
    """About how many files of a part's dataset `shards` shards of the mixture need, with one for validation."""
    where = origin(part.name)
    files = math.ceil(part.share * shards * SHARD_TEXT_BYTES / where.text_bytes)
    return (min(files, where.last) if where.last else files) + 1


def missing_bytes(part: Part, shards: int) -> int:
    """About how many bytes of a part's dataset are still to download. No network."""
    return max(wanted_shards(part, shards) - len(have_shards(part.name)), 0) * origin(part.name).file_bytes


def made_bytes(size: int) -> int:
    """About how many bytes the files of a mixture of `size` bytes of text have."""
    return size * SHARD_BYTES // SHARD_TEXT_BYTES


def licence(mixture: Mixture) -> str:
    """The licence of each part, for people to read."""
    return "; ".join(f"{part.share:.0%} {part.name}: {origin(part.name).licence}" for part in mixture.texts)


def ensure_mixture(mixture: Mixture, shards: int) -> Dataset:
    """About `shards` shards of a mixture, written if it does not exist; missing shards of its parts are downloaded.

    Validation has the same shares, from the parts' own validation shards. Raises UsageError for a part that is no dataset, DataError,
    PreflightError.
    """
    folder = dataset_dir(mixture_folder(mixture, shards))
    if not (folder / MANIFEST).exists():
        with locked(folder.parent / f".{folder.name}.lock", f"another command that mixes {mixture.name}"):
            if not (folder / MANIFEST).exists():
                _make(mixture, folder.name, shards * SHARD_TEXT_BYTES)
    return open_dataset(folder)


def _make(mixture: Mixture, name: str, size: int) -> None:
    """Write a mixture of `size` bytes of training text."""
    require_space(f"the mixture {mixture.name}", made_bytes(size), dataset_dir(name), FEWER)
    readers = [_Reader(part, mixture, size * part.share) for part in mixture.texts]  # fetches what is needed at least
    shares = [part.share for part in mixture.texts]
    found = [reader.dataset for reader in readers]
    validation = [_filtered([dataset.validation], mixture.traditional, Counter()) for dataset in found]
    with Progress(f"mixing {mixture.name}", size, "bytes") as progress:

        def training() -> Iterator[str]:
            for text in interleave([reader.documents() for reader in readers], shares, size):
                progress.advance(len(text.encode()))
                yield text

        dataset = write_dataset(
            dataset_dir(name),
            name=name,
            source=", ".join(f"{part.share:.0%} of {dataset.source}" for part, dataset in zip(mixture.texts, found, strict=True)),
            licence="; ".join(f"{dataset.name}: {dataset.licence}" for dataset in found),
            training=training(),
            validation=interleave(validation, shares, min(size, SHARD_TEXT_BYTES)),
        )
    for reader in readers:
        reader.report()
    written = dataset.text_bytes or 0
    log(f"{mixture.name}: {quantity(written)}B of training text in {len(dataset.training)} shard(s), {dataset.folder}")
    if written < 0.9 * size:
        log(f"warning: {mixture.name} has {quantity(written)}B instead of {quantity(size)}B, because a part has no more; it is read again")


def interleave(parts: list[Iterator[str]], shares: list[float], size: float) -> Iterator[str]:
    """Documents of all parts, so that after each the UTF-8 bytes are divided by `shares` as well as whole documents can be.

    Ends after `size` bytes, or where a part that is due has no more: the shares hold in any case.
    """
    taken = [0] * len(parts)
    while sum(taken) < size:
        due = min(range(len(parts)), key=lambda index: taken[index] / shares[index])
        text = next(parts[due], None)
        if text is None:
            return
        taken[due] += len(text.encode())
        yield text


def _filtered(shards: list[Shard], traditional: bool, left: Counter[str]) -> Iterator[str]:
    """Documents of shards that are not empty, and not in Simplified Chinese if the text is to be `traditional`; others are counted."""
    for shard in shards:
        for batch in texts(shard):
            for text in batch:
                if traditional and is_simplified(text):
                    left["in Simplified Chinese"] += 1
                elif text.strip():
                    yield text


class _Reader:
    """The documents of one part: its dataset is fetched shard by shard as they are needed, and read again if it has too few."""

    def __init__(self, part: Part, mixture: Mixture, size: float):
        self.part, self.mixture, self.left = part, mixture, Counter[str]()
        self.passes = 0
        self.dataset = ensure_shards(part.name, 1)
        if (count := math.ceil(size / max(_stored_bytes(self.dataset.training[0]), 1))) > 1:  # the rest, several at once
            self.dataset = ensure_shards(part.name, count, or_all=True)

    def documents(self) -> Iterator[str]:
        """All documents, REPEATS times at most."""
        while self.passes < REPEATS:
            read, found = 0, 0
            while read < len(self.dataset.training):
                for text in _filtered([self.dataset.training[read]], self.mixture.traditional, self.left if not self.passes else Counter()):
                    found += 1
                    yield text
                read += 1
                if read == len(self.dataset.training) and not self.passes:
                    self.dataset = ensure_shards(self.part.name, read + 1, or_all=True)
            if not found:
                raise DataError(f"{self.part.name} has no document that {self.mixture.name} takes", "use another dataset")
            self.passes += 1

    def report(self) -> None:
        """Log what was left out, and how often the part was read."""
        for reason, count in (+self.left).items():
            log(f"{self.part.name}: {count:,} documents left out, which are {reason}")
        if self.passes:
            again = "" if self.passes == REPEATS else " and a part again"
            log(f"{self.part.name}: read {self.passes} time(s){again}, because it has no more")


def _stored_bytes(shard: Shard) -> int:
    """The bytes of a shard's text as its parquet file states them, before compression."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(shard.path) as file:
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == shard.column)
