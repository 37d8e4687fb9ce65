"""Commands under the names that karpathy/nanochat's guide gives them: scripts.base_train, scripts.chat_web, torchrun."""

import os
import sys

from nanochat.cli.app import dispatch
from nanochat.config import FIELDS, Config, parse_flags


def base_train(arguments: list[str]) -> int:
    """`python -m scripts.base_train`: pretraining alone, with karpathy/nanochat's flags; the run is named d<depth>."""
    values = parse_flags(arguments)
    depth = values.get("depth", FIELDS["depth"].default)
    if values.get("run", "dummy") in ("dummy", "auto"):  # dummy: the upstream's name for "no name"
        values["run"] = f"d{depth}"
    config = Config(**({"sft_iterations": 0} | values))
    from nanochat.pipeline.train import train as run

    return run(config, ("base",), ["-m", "scripts.base_train", *arguments])


def chat_web(arguments: list[str]) -> int:
    """`python -m scripts.chat_web`: `serve`, with the same options."""
    sys.argv[1:] = ["serve", *arguments]
    return dispatch()


def torchrun() -> None:
    """`torchrun` with its options spelled out only: torch's own takes the guide's --run for a short form of its --run-path.

    With --standalone its workers meet on loopback: torch's own rendezvous for it listens on every address, and unpickles what comes.
    """
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
    from torch.distributed.run import get_args_parser, run

    from nanochat.distributed import workers

    parser = get_args_parser()
    parser.allow_abbrev = False
    options = parser.parse_args()
    if options.standalone:
        rendezvous_handler_registry.register("loopback", workers.loopback_rendezvous)
        options.standalone, options.rdzv_backend, options.rdzv_endpoint = False, "loopback", workers.LOOPBACK
        os.environ.update({name: value for name, value in workers.LOCAL_SOCKETS.items() if name not in os.environ})
    run(options)
