"""Commands under the names of karpathy/nanochat: scripts.base_train, scripts.chat_web, torchrun."""

import os
import sys

from nanochat.cli.app import dispatch
from nanochat.cli.help import config_sections, layout
from nanochat.config import FIELDS, Config, parse_flags
from nanochat.console import show

HELP = "Pretrain a model, with the options of karpathy/nanochat. `nanochat train` also fine-tunes and evaluates it."


def base_train(arguments: list[str]) -> int:
    """`python -m scripts.base_train`: pretrain only, with karpathy/nanochat's options, a run named d<depth>. Returns the exit code."""
    if {"-h", "--help"} & set(arguments):
        show(layout("python -m scripts.base_train [OPTIONS]", [HELP], config_sections("")))
        return 0
    values = parse_flags(arguments)
    depth = values.get("depth", FIELDS["depth"].default)
    if values.get("run", "dummy") in ("dummy", "auto"):  # dummy: the upstream's name for "no name"
        values["run"] = f"d{depth}"
    config = Config(**({"sft_iterations": 0} | values))
    from nanochat.pipeline.train import train as run

    return run(config, ("base",), ["-m", "scripts.base_train", *arguments])


def chat_web(arguments: list[str]) -> int:
    """`python -m scripts.chat_web`: `nanochat serve` with the same options. Returns the exit code."""
    sys.argv[1:] = ["serve", *arguments]
    return dispatch()


def torchrun() -> None:
    """Run torch's `torchrun` without abbreviated options: it would take `--run` of karpathy/nanochat's commands for its own `--run-path`.

    With --standalone, workers rendezvous on loopback: torch's own rendezvous listens on every address and unpickles what it receives.
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
