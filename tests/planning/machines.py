"""Machines to plan for, and the runs that the tests of the rules and of the plan ask for."""

from nanochat.config import Config
from nanochat.hardware.gpu_specs import GIB
from nanochat.hardware.machine import Hardware
from nanochat.planning.hardware import profile_hardware

CPU = Hardware(name="a CPU", cuda=False, memory=16 * GIB, usable=12 * GIB, flops=30e9, avx2=True)
GPU = Hardware(name="NVIDIA GeForce RTX 4090", cuda=True, memory=24 * GIB, usable=22 * GIB, flops=80e12, bf16=True, here=False)


def card(config: Config) -> Hardware:
    """The GPUs of the config's profile, else the CPU."""
    return profile_hardware(config) or CPU
