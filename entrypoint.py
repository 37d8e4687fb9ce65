"""`python entrypoint.py COMMAND` in a checkout: `nanochat COMMAND`, by the .venv beside it where this Python lacks the packages."""

import importlib.util
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(HERE, ".venv")
PACKAGES = ("rustbpe", "torch", "typer")

if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")]))  # for workers: -m nanochat
    python = os.path.join(VENV, "bin", "python")
    if not all(map(importlib.util.find_spec, PACKAGES)) and sys.prefix != VENV and os.path.exists(python):
        os.execv(python, [python, *sys.argv])
    from nanochat.cli.app import main

    main()
