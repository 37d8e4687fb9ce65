"""`python -m nanochat.dataset -n 16`: fetch that many training shards, and the validation shard."""

import argparse
import sys

from nanochat.console import fail, log
from nanochat.data.download import KNOWN, ensure_shards, origin
from nanochat.data.shards import MANIFEST, read_manifest, verify
from nanochat.errors import NanochatError, UsageError
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


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code. Errors are an `error:` and a `hint:` line on stderr."""
    parser = _Parser(prog="python -m nanochat.dataset", description=__doc__)
    parser.add_argument(
        "-n", "--num-files", "--num_files", "--shards", type=int, metavar="N", help="training shards to have; -1: all of them"
    )
    parser.add_argument("--dataset", default="climbmix", help=f"{', '.join(KNOWN)} or hf:OWNER/NAME (default: climbmix)")
    parser.add_argument("--verify", action="store_true", help="hash every file again afterwards")
    try:
        options = parser.parse_args(arguments)
        dataset = ensure_shards(options.dataset, shards_wanted(options.dataset, options.num_files))
        if options.verify:
            verify(dataset)
    except NanochatError as error:
        return fail(error)
    except KeyboardInterrupt:
        log("stopped; run the same command again to go on")
        return 130
    print(f"{len(dataset.training)} training shards and {dataset.validation.path.name} for validation in {dataset.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
