"""`python -m scripts.chat_web`, as in the guide: the chat in a browser."""

import sys

from nanochat.cli.app import run_and_exit
from nanochat.cli.upstream import chat_web

if __name__ == "__main__":
    run_and_exit(chat_web, sys.argv[1:])
