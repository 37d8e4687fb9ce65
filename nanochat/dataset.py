"""`python -m nanochat.dataset -n 16`: fetch that many training shards, and the validation shard."""

import argparse
import os
import sys

from nanochat.console import fail, log
from nanochat.data.published.shards import KNOWN, ensure_shards, origin
from nanochat.data.shards import MANIFEST, Dataset, read_manifest, verify
from nanochat.errors import NanochatError, UsageError
from nanochat.hub.transfer import LIMIT, parse_rate
from nanochat.paths import dataset_dir

DEFAULT = 8  # training shards, where nobody has said how many


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(message, "python -m nanochat.dataset --help lists the options")


def shards_wanted(dataset: str, asked: int | None) -> int:
    """How many training shards to have: `asked` (-1: all of them), else as many as the manifest lists, else DEFAULT."""
    where = origin(dataset)
    if asked == -1:
        if where.last is None:
            raise UsageError(f"-n -1 (all shards) is only possible for {', '.join(KNOWN)}", "say how many, as in -n 16")
        return where.last
    if asked is not None:
        return asked
    folder = dataset_dir(where.folder)
    return max(len(read_manifest(folder).training), 1) if (folder / MANIFEST).exists() else DEFAULT


def download(dataset: str, asked: int | None, check: bool = False) -> Dataset:
    """Have `asked` training shards of `dataset` (see `shards_wanted`), fetched where they are missing; with `check`, hash every file."""
    found = ensure_shards(dataset, shards_wanted(dataset, asked))
    if check:
        verify(found)
    return found


def limit_rate(limit: str | None) -> None:
    """Let the downloads of this process take `limit` bytes a second together ("2M"). Raises UsageError."""
    if limit:
        parse_rate(limit)
        os.environ[LIMIT] = limit


def parser() -> argparse.ArgumentParser:
    """Of the command's options."""
    found = _Parser(prog="python -m nanochat.dataset", description=__doc__)
    found.add_argument(
        "-n", "--num-files", "--num_files", "--shards", type=int, metavar="N", help="training shards to have; -1: all of them"
    )
    known = ", ".join(KNOWN)
    found.add_argument("--dataset", default="climbmix", help=f"{known}, hf:OWNER/NAME or hf:OWNER/NAME:COLUMN (default: climbmix)")
    found.add_argument("--limit", metavar="RATE", help="bytes a second, as in 500K or 2M")
    found.add_argument("--verify", action="store_true", help="hash every file again afterwards")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code. Errors are an `error:` and a `hint:` line on stderr."""
    try:
        options = parser().parse_args(arguments)
        limit_rate(options.limit)
        dataset = download(options.dataset, options.num_files, options.verify)
    except NanochatError as error:
        return fail(error)
    except KeyboardInterrupt:
        log("stopped; run the same command again to go on")
        return 130
    print(f"{len(dataset.training)} training shards and {dataset.validation.path.name} for validation in {dataset.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
