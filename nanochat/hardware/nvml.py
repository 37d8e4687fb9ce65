"""The NVIDIA driver's own library, through ctypes: the driver's version, each card's memory, and who holds it."""

import ctypes
import dataclasses
import sys

LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
PROCESSES = 64  # asked for at most


@dataclasses.dataclass(frozen=True)
class Card:
    """One card; memory in bytes. `holders` are process ids and the bytes that they hold."""

    name: str
    total: int
    free: int
    holders: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Driver:
    """The installed driver, such as "580.65.06", and the cards that it sees, whatever CUDA_VISIBLE_DEVICES hides."""

    version: str
    cards: tuple[Card, ...]


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class _Process(ctypes.Structure):
    _fields_ = [("pid", ctypes.c_uint), ("bytes", ctypes.c_ulonglong), ("gpu_instance", ctypes.c_uint), ("compute_instance", ctypes.c_uint)]


def read_driver() -> Driver | None:
    """The driver and its cards; None where there is no NVIDIA driver, or it does not answer."""
    try:
        library = ctypes.CDLL(LIBRARY)
        if library.nvmlInit_v2():
            return None
    except (OSError, AttributeError):
        return None
    try:
        version = ctypes.create_string_buffer(96)
        count = ctypes.c_uint()
        if library.nvmlSystemGetDriverVersion(version, ctypes.c_uint(96)) or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return None
        cards = [_card(library, index) for index in range(count.value)]
        return Driver(version.value.decode(errors="replace"), tuple(card for card in cards if card))
    finally:
        library.nvmlShutdown()


def _card(library: ctypes.CDLL, index: int) -> Card | None:
    handle, name, memory = ctypes.c_void_p(), ctypes.create_string_buffer(96), _Memory()
    if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)):
        return None
    if library.nvmlDeviceGetName(handle, name, ctypes.c_uint(96)) or library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)):
        return None
    number, processes = ctypes.c_uint(PROCESSES), (_Process * PROCESSES)()
    refused = library.nvmlDeviceGetComputeRunningProcesses_v3(handle, ctypes.byref(number), processes)
    holders = [] if refused else [(each.pid, each.bytes if each.bytes < memory.total else 0) for each in processes[: number.value]]
    return Card(name.value.decode(errors="replace"), memory.total, memory.free, tuple(holders))
