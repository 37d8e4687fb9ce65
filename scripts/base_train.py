"""`python -m scripts.base_train --depth=4 ...`, as in the guide: pretraining alone."""

import sys

from entrypoint import base_train, guarded

if __name__ == "__main__":
    guarded(base_train, sys.argv[1:])
