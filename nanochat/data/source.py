"""What a run takes from the network, before it begins: what is still missing, and all of it at once (`download --for`)."""

from pathlib import Path

from nanochat.config import EMBEDDED, Config
from nanochat.data.conversations import MIXTURE
from nanochat.data.embedded import corpus
from nanochat.data.hub import sets
from nanochat.data.hub.download import ensure_shards, have_shards
from nanochat.data.hub.transfer import require_space
from nanochat.data.shards import verify
from nanochat.paths import base_dir, dataset_dir

SHARD_BYTES = 100_000_000  # of a published shard's file, about
# Of each set's files, about.
SET_BYTES = {"smol-smoltalk": 900_000_000, "mmlu": 50_000_000, "gsm8k": 3_000_000, "identity": 2_500_000}
OTHER_SET_BYTES = 500_000_000
TEST_BYTES = {"arc-easy-test": 350_000, "arc-challenge-test": 210_000, "mmlu-test": 3_500_000, "gsm8k-test": 420_000}
BUNDLE_BYTES = 170_000_000


def published(config: Config) -> bool:
    """Whether the run's text has to be downloaded."""
    return not config.data and config.dataset != EMBEDDED


def sets_of(config: Config) -> list[str]:
    """The published sets that the run is fine-tuned on; a trial needs some conversations, not a gigabyte of them."""
    if config.chat_data.startswith("hf:"):
        return [config.chat_data]
    if not published(config) or config.chat_data or not config.sft_iterations:
        return []
    names = ["identity"] if config.trial else list(MIXTURE)
    return [name for name in names if name != "identity"] if config.identity else names  # its own instead of the published one


def missing(config: Config) -> dict[str, int]:
    """What the run of a resolved config still lacks of published data, for people to read -> about how many bytes. No network."""
    lacking: dict[str, int] = {}
    if published(config):
        have = len(have_shards(config.dataset))
        if (shards := config.shards + 1 - have) > 0:
            lacking[f"{shards} of {config.shards + 1} shards of {config.dataset}"] = shards * SHARD_BYTES
    for name in sets_of(config):
        if not (sets.has_identity() if name == "identity" else sets.task_files(name)):
            lacking[f"the conversations of {name}"] = SET_BYTES.get(name, OTHER_SET_BYTES)
    return lacking


def fetch_for(config: Config, check: bool = False) -> Path:
    """Bring everything that the run of a resolved config needs, its evaluation too; afterwards it needs no network.

    With `check` every file is hashed again. Returns the dataset's folder. Raises DataError, PreflightError.
    """
    tasks = published(config) and not config.trial and config.core_metric_max_per_task != 0
    require_space("this download", sum(missing(config).values()) + (sum(missing_tasks().values()) if tasks else 0), base_dir())
    for name in sets_of(config):
        if name == "identity":
            sets.ensure_identity()
        else:
            sets.ensure_task(name)
            if check:
                sets.verify_task(name)
    if config.data:
        return Path(config.data)
    dataset = ensure_shards(config.dataset, config.shards) if published(config) else corpus.build()
    if check:
        verify(dataset)
    if tasks:  # last: training can do without
        fetch_tasks(check)
    return dataset_dir(dataset.folder.name)


def missing_tasks() -> dict[str, int]:
    """What is still lacking of CORE and the chat tasks -> about how many bytes. No network."""
    bundle = {} if sets.has_bundle() else {sets.BUNDLE: BUNDLE_BYTES}
    return bundle | {name: size for name, size in TEST_BYTES.items() if not sets.task_files(name)}


def fetch_tasks(check: bool = False) -> list[Path]:
    """Bring the evaluation bundle and the chat tasks' questions; with `check` hashed again. Their folders. Raises DataError."""
    require_space("this download", sum(missing_tasks().values()), base_dir())
    for name in TEST_BYTES:
        sets.ensure_task(name)
        if check:
            sets.verify_task(name)
    return [sets.ensure_bundle(), *map(sets.task_folder, TEST_BYTES)]
