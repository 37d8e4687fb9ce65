"""`python -m scripts.chat_web`, as in the guide: the chat in a browser."""

import sys

from entrypoint import chat_web, guarded

if __name__ == "__main__":
    guarded(chat_web, sys.argv[1:])
