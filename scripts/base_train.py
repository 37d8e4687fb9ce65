"""`python -m scripts.base_train --depth=4 ...`, as in the guide: pretraining alone."""

import sys

from nanochat.cli.app import run_and_exit
from nanochat.cli.upstream import base_train

if __name__ == "__main__":
    run_and_exit(base_train, sys.argv[1:], trains=True)
