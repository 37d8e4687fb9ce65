"""docs/reference/profiles.md and the profile table of both READMEs, from profiles/*.toml and `plan` for each profile's own GPU."""

import os
import tempfile
from collections.abc import Iterator
from typing import Any

from nanochat.config import FIELDS, PROFILE_NAMES, build_config, load_profile, shown
from nanochat.console import quantity
from nanochat.hardware.gpu_specs import PROFILE_GPUS, RENTAL_GPUS, require_spec
from nanochat.hardware.machine import Hardware
from nanochat.planning.hardware import gpu_hardware
from nanochat.planning.plan import Plan, make_plan
from scripts.reference.catalog import Language
from scripts.reference.markdown import page, switch, table

NAME = "profiles"
START, END = "<!-- profiles -->", "<!-- /profiles -->"  # around the table in a README
FOR = {
    "cpu": "any machine, no GPU",
    "t4": "16 GB GPU without bfloat16 (T4: Colab, Kaggle)",
    "rtx4050": "6 GB laptop GPU (RTX 4050)",
    "rtx4090": "24 GB desktop GPU (RTX 4090, RTX 3090)",
    "speedrun": "eight H100 80GB, to GPT-2's capability",
    "h100x8": "eight H100 80GB",
}
# Of the profile without a GPU the times are measured: docs/benchmarks/log.md.
CPU_TIMES = {False: "4 to 6 min on 2 cores (measured)", True: "about 1 min on 2 cores (measured)"}
CPU = Hardware("a CPU", cuda=False, memory=16 * 10**9, usable=12 * 10**9, flops=17e9, here=False)


def planned(profile: str, trial: bool, gpu: str = "") -> Plan:
    """The plan of a profile for its own GPU or another one, as on a machine that has neither data nor GPU."""
    config = build_config(profile, trial)
    hardware = gpu_hardware(require_spec(gpu or PROFILE_GPUS[profile]), config.nproc_per_node) if profile in PROFILE_GPUS else CPU
    before = os.environ.get("NANOCHAT_BASE_DIR")
    with tempfile.TemporaryDirectory() as empty:
        os.environ["NANOCHAT_BASE_DIR"] = empty
        try:
            return make_plan(config.replace(device="cuda" if hardware.cuda else "cpu"), hardware)
        finally:
            os.environ.pop("NANOCHAT_BASE_DIR")
            os.environ.update({"NANOCHAT_BASE_DIR": before} if before is not None else {})


def readme_table(language: Language) -> str:
    """The profile table of a README."""

    def say(text: str) -> str:
        return language.page(NAME, text)

    rows = []
    for name in PROFILE_NAMES:
        plan = planned(name, False)
        model = say("{count} parameters").format(count=_parameters(plan))
        rows.append([f"`{name}`", say(FOR[name]), model, _time(plan, say), _size(plan.disk_bytes), _download(plan, say), _cost(plan, say)])
    return table([say(head) for head in ("Profile", "For", "Model", "Time", "Disk", "Download", "Cost")], rows)


def document(language: Language) -> str:
    """The page in a language."""

    def say(text: str) -> str:
        return language.page(NAME, text)

    parts = [
        say(
            "A profile is a configuration for a kind of machine. Without `--profile`, a command takes the profile for this machine's GPUs."
        ),
        say(
            "All figures of GPUs are estimates by `nanochat plan`, not measured. Memory is good to about 3%, time to about a factor of "
            "two. Disk is the most that a run takes, download included. The installation takes another 6 GB (1 GB without CUDA)."
        ),
        f"## {say('Full run')}",
        say("`nanochat train --profile NAME` trains this, and `nanochat plan --profile NAME` shows it for your machine."),
        _plans(False, say),
        f"## {say('Short test run')}",
        say("`nanochat train --profile NAME --trial` shows that the machine works. Its model has learned next to nothing."),
        _plans(True, say),
        f"## {say('The same run on other GPUs')}",
        say("`nanochat plan --profile NAME --card GPU` estimates the time on another GPU. These are estimates, not measured."),
        table([say(head) for head in ("profile", "GPU", "time", "cost")], _others(say)),
        f"## {say('Values')}",
        say("Options that a profile sets for the full run. Every other option has the default of [cli.md](cli.md#config-options)."),
        table([say("option"), *(f"`{name}`" for name in PROFILE_NAMES)], _values()),
    ]
    return page(say("Profiles"), "profiles/*.toml and `plan`", switch(NAME, language.suffix), parts)


def _plans(trial: bool, say: Any) -> str:
    """A table with a column for each profile: what the run is and needs."""
    plans = [planned(name, trial) for name in PROFILE_NAMES]
    facts: dict[str, list[str]] = {
        "for": [say(FOR[name]) for name in PROFILE_NAMES],
        "parameters": [_parameters(plan) for plan in plans],
        "depth": [str(plan.config["depth"]) for plan in plans],
        "context length in tokens": [f"{plan.config['max_seq_len']:,}" for plan in plans],
        "training tokens": [quantity(plan.tokens) for plan in plans],
        "steps (pretraining + fine-tuning)": [f"{plan.steps:,} + {plan.sft_steps:,}" for plan in plans],
        "time": [_time(plan, say) for plan in plans],
        "memory per device": [
            f"{_size(plan.memory_bytes['total'])} / {_size(plan.memory_bytes['usable'])}"
            if plan.cards
            else _size(plan.memory_bytes["total"])
            for plan in plans
        ],
        "disk": [_size(plan.disk_bytes) for plan in plans],
        "download": [_download(plan, say) for plan in plans],
        "cost": [_cost(plan, say) for plan in plans],
        "text": [f"{plan.config['dataset']}: {say(plan.data_licence)}" for plan in plans],
    }
    return table([say("figure"), *(f"`{name}`" for name in PROFILE_NAMES)], [[say(name), *cells] for name, cells in facts.items()])


def _others(say: Any) -> Iterator[list[str]]:
    """The full run of a profile on the GPUs that are rented for it and on those that people have."""
    more = {
        "rtx4050": ("4060", "4060 laptop", "3060"),
        "rtx4090": ("3090", "4080", "L4", "A100-SXM4-80GB"),
        "speedrun": ("A100-SXM4-80GB",),
    }
    for profile in PROFILE_GPUS:
        for gpu in dict.fromkeys((*more.get(profile, ()), *RENTAL_GPUS[profile])):
            if require_spec(gpu).name != PROFILE_GPUS[profile]:
                plan = planned(profile, False, gpu)
                yield [f"`{profile}`", plan.card.removeprefix("NVIDIA ").removeprefix("GeForce "), _time(plan, say), _cost(plan, say)]


def _values() -> Iterator[list[str]]:
    """An option's value in each profile that sets it."""
    profiles = [load_profile(name) for name in PROFILE_NAMES]
    for name in FIELDS:
        if name not in ("profile", "trial") and any(name in values for values in profiles):
            yield [f"`--{name}`", *(f"`{shown(name, values[name])}`" if name in values else "" for values in profiles)]


def _parameters(plan: Plan) -> str:
    millions = plan.parameters / 1e6
    return f"{millions / 1e3:.1f}B" if millions >= 1000 else f"{millions:.0f}M" if millions >= 10 else f"{millions:.1f}M"


def _time(plan: Plan, say: Any) -> str:
    if not plan.cards:
        return say(CPU_TIMES[plan.config["trial"]])
    if plan.seconds >= 3600:
        return say("about {time} h (estimate, not measured)").format(time=round(plan.seconds / 3600))
    if plan.seconds >= 120:
        return say("about {time} min (estimate, not measured)").format(time=round(plan.seconds / 60))
    return say("about {time} s (estimate, not measured)").format(time=int(round(plan.seconds, -1)))


def _size(size: float) -> str:
    return f"{size / 1e9:.0f} GB" if size >= 1e10 else f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 1):.0f} MB"


def _download(plan: Plan, say: Any) -> str:
    return _size(plan.download_bytes) if plan.download_bytes else say("nothing")


def _cost(plan: Plan, say: Any) -> str:
    """The rent, where the GPU is rented out."""
    if plan.cost is None:
        return say("electricity")
    dollars = f"${plan.cost:,.2f}" if plan.cost < 10 else f"${plan.cost:,.0f}"
    return say("about {dollars} rented").format(dollars=dollars)
