"""NVML (the NVIDIA driver's library) through ctypes: driver version, memory of each GPU, and the processes that use it."""

import ctypes
import dataclasses
import sys

LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
MAX_PROCESSES = 64  # listed for one GPU at most


@dataclasses.dataclass(frozen=True)
class GPUStatus:
    """One GPU and its memory, in bytes."""

    name: str
    total: int
    free: int
    processes: tuple[tuple[int, int], ...]  # (process id, bytes that it uses)


@dataclasses.dataclass(frozen=True)
class Driver:
    """The installed driver, such as "580.65.06", and all of its GPUs, also those that CUDA_VISIBLE_DEVICES hides."""

    version: str
    gpus: tuple[GPUStatus, ...]


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class _Process(ctypes.Structure):
    _fields_ = [("pid", ctypes.c_uint), ("bytes", ctypes.c_ulonglong), ("gpu_instance", ctypes.c_uint), ("compute_instance", ctypes.c_uint)]


def read_driver() -> Driver | None:
    """The driver and its GPUs; None if there is no NVIDIA driver, or it does not answer."""
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
        gpus = [_read_gpu(library, index) for index in range(count.value)]
        return Driver(version.value.decode(errors="replace"), tuple(gpu for gpu in gpus if gpu))
    finally:
        library.nvmlShutdown()


def _read_gpu(library: ctypes.CDLL, index: int) -> GPUStatus | None:
    """The GPU of that index; None if the driver does not answer."""
    handle, name, memory = ctypes.c_void_p(), ctypes.create_string_buffer(96), _Memory()
    if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)):
        return None
    if library.nvmlDeviceGetName(handle, name, ctypes.c_uint(96)) or library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)):
        return None
    count, found = ctypes.c_uint(MAX_PROCESSES), (_Process * MAX_PROCESSES)()
    refused = library.nvmlDeviceGetComputeRunningProcesses_v3(handle, ctypes.byref(count), found)
    processes = [] if refused else [(each.pid, each.bytes if each.bytes < memory.total else 0) for each in found[: count.value]]
    return GPUStatus(name.value.decode(errors="replace"), memory.total, memory.free, tuple(processes))
