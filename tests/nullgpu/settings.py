"""The settings at which the plan's memory is compared with torch's allocator: the profiles, and what else a GPU's users choose."""

from typing import Any

# Name -> card, and the request of tests/nullgpu/steps.py. All but the last two are in bfloat16.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "rtx4050": ("4050", {"profile": "rtx4050"}),
    "rtx4050 trial": ("4050", {"profile": "rtx4050", "trial": True}),
    "rtx4090": ("4090", {"profile": "rtx4090"}),
    "rtx4090 trial on a 3090": ("3090", {"profile": "rtx4090", "trial": True}),
    "h100x8, one of 8 ranks": ("h100", {"profile": "h100x8", "world": 8}),
}


def other(depth: int, rows: int, length: int, compiled: bool, **more: Any) -> dict[str, Any]:
    """The request of a configuration without a profile."""
    compile = "on" if compiled else "off"
    shape = {"depth": depth, "device_batch_size": rows, "max_seq_len": length, "compile": compile, "num_iterations": 100}
    return {"config": shape | {"total_batch_size": 2 * rows * length} | more}


SETTINGS |= {
    "d12, 16 rows": ("h100", other(12, 16, 2048, True)),
    "d20, 8 rows": ("h100", other(20, 8, 2048, True)),
    "d8, windows": ("4090", other(8, 4, 2048, True, window_pattern="SSSL")),
    "d8, portable": ("4090", other(8, 4, 2048, True, architecture="portable")),
    "d6 eager, windows": ("4090", other(6, 8, 1024, False, window_pattern="SSSL")),
    "d6 eager, portable": ("5090", other(6, 8, 1024, False, architecture="portable")),
    "d6 eager, float32": ("3090", other(6, 4, 1024, False, dtype="float32")),
    "d8, float32": ("4090", other(8, 4, 1024, True, dtype="float32")),
}
