"""A plan as text: in full for the `plan` command, in three lines for `train`."""

from typing import Any

from nanochat.console import duration, file_size, quantity
from nanochat.planning.plan import Plan

DOWNLOAD_RATE = 10e6  # bytes per second, assumed for the download time


def describe(plan: Plan) -> str:
    """The plan as a few lines of text."""
    config, memory = plan.config, plan.memory_bytes
    devices = f"{plan.cards} x {plan.card}" if plan.cards > 1 else plan.card
    parts = ", ".join(
        f"{name} {file_size(memory[name])}" for name in ("weights", "gradients", "optimizer", "activations", "logits", "cache")
    )
    enough = memory["total"] <= memory["usable"]
    verdict = "fits" if plan.fits else "too few GPUs here" if enough else "DOES NOT FIT"
    rows = {
        "plan": f"{plan.profile or 'no profile'}{', trial' if config['trial'] else ''}, on {devices}",
        "model": f"depth {config['depth']}, {quantity(plan.parameters)} parameters, vocabulary {config['vocab_size']}",
        "context": f"{config['max_seq_len']} tokens",
        "training": f"{plan.steps} steps of {config['total_batch_size']} tokens = {quantity(plan.tokens)}, {plan.flops:.1e} FLOPs",
        "chat": f"{plan.sft_steps} fine-tuning steps after that",
        "memory": f"{file_size(memory['total'])} of {file_size(memory['usable'])} usable: {verdict} ({parts})",
        "batch": f"device_batch_size {config['device_batch_size']}; the largest that fits: {plan.max_device_batch_size}",
        "time": f"about {duration(plan.seconds)}, {quantity(plan.tokens_per_second)} tokens/s ({plan.basis})",
        "disk": f"{file_size(plan.disk_bytes)} at most, {_download(plan)}",
        "data": f"{config['data'] or config['dataset']}: {plan.data_licence}",
    }
    if not plan.steps:
        rows["training"] = "none: the model is pretrained already"
    if config["from_run"]:
        rows["begins"] = f"with {config['from_run']}: its weights and its tokenizer"
    if not plan.card_here:
        rows["plan"] += " (not in this machine)"
    if plan.cost is not None:
        rows["cost"] = f"about ${plan.cost:.2f} if the GPUs are rented (prices change)"
    if plan.data_parts:
        rows["data"] = f"{config['dataset']}, a mixture of"
    lines = [f"{name:<10}{text}" for name, text in rows.items()]
    at = next(index for index, line in enumerate(lines) if line.startswith("data")) + 1
    return "\n".join([*lines[:at], *(f"{'':<10}{_part(part)}" for part in plan.data_parts), *lines[at:]])


def _part(part: dict[str, Any]) -> str:
    """A part of a mixture: share, name, licence and download."""
    size = part["download_bytes"]
    size_left = f"{file_size(size)} to download" if size else "nothing to download"
    return f"{part['share']:.0%} of the {part['kind']}: {part['name']}, {part['licence']}, {size_left}"


def brief(plan: Plan) -> str:
    """The plan in three lines, as `train` prints it."""
    config, memory = plan.config, plan.memory_bytes
    devices = f"{plan.cards} x {plan.card}" if plan.cards > 1 else plan.card
    cost = f", about ${plan.cost:.2f} if rented" if plan.cost is not None else ""
    run = f"{plan.profile or 'no profile'}{', trial' if config['trial'] else ''} on {devices}"
    source = f" from {config['from_run']}" if config["from_run"] else ""
    model = f"depth {config['depth']}, {quantity(plan.parameters)} parameters"
    steps = f"{plan.steps} steps = {quantity(plan.tokens)} tokens, then {plan.sft_steps} of fine-tuning"
    batch = f"device_batch_size {config['device_batch_size']} of {plan.max_device_batch_size} at most"
    space = f"{file_size(memory['total'])} of {file_size(memory['usable'])} memory, {batch}"
    disk = f"disk {file_size(plan.disk_bytes)}, {_download(plan)}"
    time = f"about {duration(plan.seconds)} at {quantity(plan.tokens_per_second)} tokens/s ({plan.basis}){cost}"
    data = f"data {config['data'] or config['dataset']}: {plan.data_licence}"
    return f"plan: {run}: {model}{source}, {steps}\nplan: {space}; {disk}\nplan: {time}; {data}"


def _download(plan: Plan) -> str:
    """Size and time of the download, at DOWNLOAD_RATE."""
    if not plan.download_bytes:
        return "nothing to download"
    return f"{file_size(plan.download_bytes)} to download ({duration(plan.download_bytes / DOWNLOAD_RATE)} at {quantity(DOWNLOAD_RATE)}B/s)"
