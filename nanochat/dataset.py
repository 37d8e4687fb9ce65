"""`python -m nanochat.dataset -n 16`: fetch that many training shards, and the validation shard."""

import sys

from nanochat.cli.app import exit_code, invoke
from nanochat.cli.dataset import module


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code. Errors are an `error:` and a `hint:` line on stderr."""
    return exit_code(invoke, module, arguments, "python -m nanochat.dataset")


if __name__ == "__main__":
    sys.exit(main())
