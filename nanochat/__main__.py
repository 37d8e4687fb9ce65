"""`python -m nanochat COMMAND`: the same as `nanochat COMMAND`; worker processes start by it."""

from nanochat.cli.app import main

if __name__ == "__main__":
    main()
