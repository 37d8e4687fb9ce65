"""The hardware that a run is planned for: this machine, a profile's GPU, or a GPU that the user names."""

from nanochat.config import Config
from nanochat.hardware.gpu_specs import PROFILE_GPUS, GPUSpec, profile_for, require_spec, usable_bytes
from nanochat.hardware.machine import Hardware, this_machine


def gpu_hardware(spec: GPUSpec, count: int) -> Hardware:
    """`count` GPUs of the table, of another machine."""
    return Hardware(
        name=spec.name,
        cuda=True,
        memory=spec.memory,
        usable=usable_bytes(spec.memory),
        flops=spec.flops,
        count=count,
        bf16=spec.bf16,
        fp16=True,
        dollars=spec.dollars,
        here=False,
        source=spec.source,
    )


def profile_hardware(config: Config) -> Hardware | None:
    """The GPUs of the config's profile, from the table; None for the profile cpu and without a profile."""
    if config.profile not in PROFILE_GPUS or config.device == "cpu":
        return None
    return gpu_hardware(require_spec(PROFILE_GPUS[config.profile]), config.nproc_per_node)


def choose_hardware(config: Config) -> Hardware:
    """The hardware to plan for: this machine's GPUs if it has any, else the profile's, else this machine's CPU."""
    here = this_machine(config.device)
    return here if here.cuda else profile_hardware(config) or here


def detect_profile() -> str:
    """The profile for this machine, by the number and memory of its GPUs; cpu without any."""
    here = this_machine()
    return profile_for(here.count if here.cuda else 0, here.memory, float16=here.fp16 and not here.bf16)
