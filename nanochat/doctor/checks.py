"""Checks of this machine before a run: each finding has a result, the reason why it matters, and a fix.

With an error the run would fail; with a warning it would be slow, or fail later. `train` runs the same checks, without the slow ones.
"""

import dataclasses
import os
import platform
import resource
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from nanochat import paths
from nanochat.config import Config
from nanochat.console import duration, file_size, log
from nanochat.data.source import text_source
from nanochat.doctor.findings import ERROR, OK, WARNING, Finding
from nanochat.errors import NanochatError, PreflightError
from nanochat.hardware import memory, nvml, power
from nanochat.hardware.cpu import physical_cores, processor_limit, usable_processors
from nanochat.hardware.toolchain import c_compiler, torch_compile_lacks, torch_compiler
from nanochat.hub import addresses as hub
from nanochat.planning.memory import reserved_bytes
from nanochat.planning.plan import Plan, kept_checkpoints, largest_batch
from nanochat.redaction import redact

DRIVER_FLOORS = {12: 525, 13: 580}  # CUDA's major version in torch's wheels -> the oldest driver
SLOW_DISK = 30e6  # bytes per second
PROBE_BYTES = 32 << 20  # bytes written to measure a disk
SHARED_BYTES = 1 << 30  # least size of /dev/shm for several GPUs
FILES = 1024
HELD = 0.1  # fraction of a GPU's memory that other processes may use without a warning
NETWORK_SECONDS = 5.0
CPU_DAYS = 3.0  # a GPU profile's full run that takes longer on this CPU is refused


@dataclasses.dataclass(frozen=True)
class Case:
    """The input of all checks: the resolved config of a run, its plan, and the driver; `quick` skips slow checks.

    `asked` is the user's --device, before "auto" was resolved.
    """

    config: Config
    plan: Plan
    driver: nvml.Driver | None
    quick: bool = False
    asked: str = ""


def examine(config: Config, plan: Plan, quick: bool = False, asked: str = "") -> list[Finding]:
    """Run all checks for a resolved config; `asked` is the user's --device."""
    case = Case(config, plan, nvml.read_driver(), quick, asked)
    return [finding for check in CHECKS for finding in check(case)]


def require(config: Config, plan: Plan, asked: str = "") -> None:
    """Run the quick checks, log the warnings, and raise PreflightError for the first error."""
    findings = examine(config, plan, quick=True, asked=asked)
    for finding in findings:
        if finding.level == WARNING:
            log(f"warning: {finding.what}: {finding.why}; {finding.fix}")
    for finding in findings:
        if finding.level == ERROR:
            raise PreflightError(f"{finding.what}: {finding.why}" if finding.why else finding.what, finding.fix)


# ---- the GPU ----------------------------------------------------------------------------------------------------


def check_torch(case: Case) -> Iterator[Finding]:
    """The driver against torch's CUDA version, and a GPU profile's run that would take days on the CPU."""
    fell_to_cpu = case.asked == "auto" and case.config.device == "cpu" and case.config.profile not in ("", "cpu")
    stranded = fell_to_cpu and case.plan.seconds > CPU_DAYS * 86400
    if stranded:
        what = f"no CUDA device is visible, and on this CPU the run would take about {duration(case.plan.seconds)}"
        fix = "check the driver with nvidia-smi (in a container also its toolkit and `docker run --gpus all`), or use --profile cpu, or "
        yield Finding("driver", ERROR, what, fix=fix + "--device=cpu to start it anyway")
    if case.driver is None:
        if case.config.device == "cuda":
            why, fix = "--device=cuda needs a GPU", "install the driver (R580 or newer for torch's CUDA 13), or use --device=cpu"
            yield Finding("driver", ERROR, "there is no NVIDIA driver", why, fix)
        elif not stranded:
            yield Finding("driver", OK, "no NVIDIA driver: the CPU is used")
        return
    import torch

    cuda = torch.version.cuda or ""
    if not cuda:
        why = f"driver {case.driver.version} and {len(case.driver.gpus)} GPU(s) are installed, but this torch was built without CUDA"
        fix = "run `make install TORCH_BACKEND=auto`, or use --device=cpu"
        yield Finding(
            "torch", ERROR if case.config.device == "cuda" else WARNING, f"torch {torch.__version__} cannot use the GPU", why, fix
        )
        return
    floor = DRIVER_FLOORS.get(int(cuda.split(".")[0]), 0)
    major = int(case.driver.version.split(".")[0]) if case.driver.version.split(".")[0].isdigit() else floor
    if major < floor:
        what = f"driver {case.driver.version} is too old for torch {torch.__version__} with CUDA {cuda}"
        fix = f"update the driver to R{floor} or newer (this torch has no build for an older one), or use --device=cpu"
        yield Finding("driver", ERROR, what, f"it needs driver {floor} or newer", fix)
        return
    yield Finding("driver", OK, f"driver {case.driver.version}, torch {torch.__version__} with CUDA {cuda}")
    if not torch.cuda.is_available():
        level = ERROR if case.config.device == "cuda" else WARNING
        why = "the driver sees GPUs that torch does not; CUDA_VISIBLE_DEVICES may hide them, or the container was started without them"
        yield Finding("torch", level, "torch sees no GPU", why, "unset CUDA_VISIBLE_DEVICES, or in Docker add --gpus all")


def check_processes(case: Case) -> Iterator[Finding]:
    """Requested processes against visible devices."""
    asked = case.config.nproc_per_node
    if case.config.device == "cuda":
        import torch

        visible = torch.cuda.device_count()
        if asked > visible:
            fix = f"use --nproc_per_node={visible} (or --device=cpu)" if visible else "use --device=cpu"
            why = "each process needs its own GPU (CUDA's error is: invalid device ordinal)"
            yield Finding("processes", ERROR, f"{asked} processes were requested; {visible} GPU(s) are visible", why, fix)
            return
        yield Finding("processes", OK, f"{asked} process(es), {visible} GPU(s) visible")
    elif asked > physical_cores():
        why, fix = "they share the cores, so the run is slower, not faster", f"use --nproc_per_node={physical_cores()}"
        yield Finding("processes", WARNING, f"{asked} processes were requested; there are {physical_cores()} CPU core(s)", why, fix)
    most, all_ = processor_limit(), len(usable_processors())
    if case.plan.card_here and most < all_:
        what = f"{most:g} of {all_} processors, by a container's or service's limit"
        why = "the run stops for a part of each tenth of a second"
        fix = "raise the limit (--cpus of Docker, CPUQuota of systemd)"
        yield Finding("processors", WARNING, what, why, fix) if most < 1 else Finding("processors", OK, what)


def check_memory(case: Case) -> Iterator[Finding]:
    """The memory that the run needs against free memory, and the processes that use the rest."""
    config, plan = case.config, case.plan
    needed, usable = reserved_bytes(plan.memory_bytes["total"], config.device), plan.memory_bytes["usable"]
    if not plan.card_here:
        return
    limited = memory.available().limit if config.device != "cuda" else ""
    limit = f", by {limited}" if limited else ""
    if needed > usable:
        what = f"the run needs {needed / 1e9:.1f} GB; {usable / 1e9:.1f} GB are usable{limit}"
        smaller = _smaller(config, plan.max_device_batch_size)
        yield Finding("memory", ERROR, what, "it would run out of memory", f"{smaller}, or raise the limit" if limit else smaller)
        return
    if config.device != "cuda":
        yield Finding("memory", OK, f"{needed / 1e9:.1f} GB needed, {usable / 1e9:.1f} GB usable{limit}")
        return
    gpus = case.driver.gpus[: config.nproc_per_node] if case.driver else ()
    for index, gpu in enumerate(gpus):
        others = ", ".join(f"process {pid} uses {held / 1e9:.1f} GB" for pid, held in gpu.processes) or "no process is listed"
        what = f"GPU {index} ({gpu.name}): {gpu.free / 1e9:.1f} of {gpu.total / 1e9:.1f} GB are free; {others}"
        if gpu.free < needed:
            fix = f"stop the processes that use the memory, or {_smaller(config, largest_batch(config, gpu.free))}"
            yield Finding("memory", ERROR, what, f"the run needs {needed / 1e9:.1f} GB", fix)
        elif gpu.total - gpu.free > HELD * gpu.total:
            why = f"the run needs {needed / 1e9:.1f} GB, and other processes slow it down"
            yield Finding("memory", WARNING, what, why, "stop the processes that you do not need")
        else:
            yield Finding("memory", OK, what)


def _smaller(config: Config, most: int) -> str:
    """Changes by which the run needs less memory, if micro-batches of `most` sequences fit."""
    return f"use --device_batch_size={most}, which keeps the losses" if most else "use a smaller --depth or --max_seq_len"


def check_spill(case: Case) -> Iterator[Finding]:
    """Windows' driver, which moves GPU memory to system memory without an error."""
    if (sys.platform == "win32" or "microsoft" in platform.release().lower()) and case.config.device == "cuda":
        why = "the driver moves GPU memory that does not fit to system memory, where training is ten times slower, at 2% GPU use"
        fix = "set CUDA - Sysmem Fallback Policy in the NVIDIA control panel to Prefer No Sysmem Fallback; lower --device_batch_size"
        yield Finding("spill", WARNING, "this is Windows or WSL", why, fix)


def check_compiler(case: Case) -> Iterator[Finding]:
    """The compiler for the CPU's fused operations, or for torch.compile."""
    cuda = case.config.device == "cuda"
    if not cuda and case.config.compile != "on":
        if path := c_compiler():
            yield Finding("compiler", OK, f"{path} for the fused operations")
        else:
            why = "training takes 1.3 to 1.6 times as long without the fused operations"
            yield Finding("compiler", WARNING, "no C compiler (cc)", why, "install it: apt install gcc libc6-dev")
        return
    name, found = torch_compiler(cuda)
    lacking = torch_compile_lacks(cuda)
    if not lacking:
        yield Finding("compiler", OK, f"{found} for torch.compile")
        return
    fix = f"install it: apt install {name} python3-dev; or use --compile=off"
    if case.config.compile == "on":
        yield Finding("compiler", ERROR, f"torch.compile needs {' and '.join(lacking)}", "the first step would fail", fix)
    else:
        yield Finding(
            "compiler", WARNING, f"no {' and '.join(lacking)}, so torch.compile is off", "long runs take about 1.4 times as long", fix
        )


# ---- the machine ------------------------------------------------------------------------------------------------


def check_folder(case: Case) -> Iterator[Finding]:
    """The data directory: writable, large enough, fast enough."""
    folder = paths.base_dir()
    try:
        paths.require_writable(folder)
        space = shutil.disk_usage(folder)
    except (NanochatError, OSError) as error:
        hint = error.hint if isinstance(error, NanochatError) else "set NANOCHAT_BASE_DIR to another directory"
        yield Finding("folder", ERROR, f"the data directory {folder} cannot be written", str(error), hint)
        return
    needed = case.plan.disk_bytes
    parts = ", ".join(f"{name} {file_size(size)}" for name, size in case.plan.disk_parts.items() if size)
    what = f"{file_size(space.free)} free in {folder}, {file_size(needed)} needed ({parts})"
    checkpoint = case.plan.disk_parts["checkpoints"] // kept_checkpoints(case.config)
    fix = f"free some space under {folder}, or set NANOCHAT_BASE_DIR to a directory on a larger disk"
    if space.free < case.plan.disk_parts["download"] + 2 * checkpoint:
        yield Finding("disk", ERROR, what, "the data and the first checkpoints do not fit", fix)
    elif space.free < needed:
        yield Finding("disk", WARNING, what, "the disk may be full before the end", f"{fix}, or lower --keep_last")
    else:
        yield Finding("disk", OK, what)
    if not case.quick and space.free > 2 * PROBE_BYTES:
        speed = _disk_speed(folder)
        if speed < SLOW_DISK:
            why = f"a checkpoint takes {duration(checkpoint / speed)} to save"
            fix = "set NANOCHAT_BASE_DIR to a directory on a faster disk, or raise --save_minutes"
            yield Finding("disk speed", WARNING, f"writing to {folder} at {file_size(speed)}/s", why, fix)
        else:
            yield Finding("disk speed", OK, f"writing at {file_size(speed)}/s")


def _disk_speed(folder: Path) -> float:
    """Speed of writing and syncing in `folder`, in bytes per second."""
    path, block = folder / f"{paths.TEMPORARY}{uuid.uuid4().hex}", os.urandom(1 << 20)
    began = time.monotonic()
    try:
        with path.open("wb") as file:
            for _ in range(PROBE_BYTES >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return PROBE_BYTES / (time.monotonic() - began)
    except OSError:
        return 0.0
    finally:
        path.unlink(missing_ok=True)


def check_limits(case: Case) -> Iterator[Finding]:
    """Shared memory, open files, the clock."""
    shared = Path("/dev/shm")
    if case.config.device == "cuda" and case.config.nproc_per_node > 1 and shared.exists():
        size = shutil.disk_usage(shared).total
        if size < SHARED_BYTES:
            why, fix = "the GPUs exchange gradients through it", "set --shm-size=8g in Docker, or shm_size: 8g in compose"
            yield Finding("shm", WARNING, f"/dev/shm has {file_size(size)}", why, fix)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES:
        what, why = f"the limit of open files is {soft}", "shards, rows, workers and chats need some hundreds"
        yield Finding("files", WARNING, what, why, f"raise the limit: ulimit -n {min(max(hard, FILES), 65536)}")
    newest = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
    if time.time() < newest - 2 * 86400:
        what = f"the clock is wrong: {time.strftime('%Y-%m-%d %H:%M')} is before this program's release"
        why = "certificates are refused, and the newest run and checkpoint are not found"
        yield Finding("clock", WARNING, what, why, "set the clock: timedatectl set-ntp true")


def check_power(_: Case) -> Iterator[Finding]:
    """Battery and heat, where the system tells."""
    state = power.read_power()
    if state.battery is not None:
        why = "most laptops slow down on battery, and a long run empties it; a run that stops resumes with the same command"
        yield Finding("battery", WARNING, f"this machine runs on battery ({state.battery}% left)", why, "connect the charger")
    if state.throttled:
        why = "a run then takes longer than its plan"
        yield Finding("heat", WARNING, state.throttled, why, "let it cool down, clean its fans, or lower --threads or use --background")


# ---- the data ---------------------------------------------------------------------------------------------------


def check_data(case: Case) -> Iterator[Finding]:
    """Whether the data is complete, and if not, whether it can be downloaded."""
    config, source = case.config, text_source(case.config)
    if fault := source.fault:
        yield Finding("data", ERROR, fault, "the run has no text", "set --data to a file or directory of text")
        return
    lacking = source.missing()
    if not lacking:
        yield Finding("data", OK, f"the data is complete: {source.name}")
        return
    what = f"to be downloaded: {', '.join(lacking)} ({file_size(sum(lacking.values()))})"
    command = f"`nanochat download --for {config.profile or 'cpu'}{' --trial' if config.trial else ''}` to download it beforehand"
    if not case.quick and (wrong := _unreachable()):
        fix = f"check the network and HF_ENDPOINT (a mirror), run {command}, or use --dataset=embedded, which needs none"
        yield Finding("network", ERROR, what, f"{redact(hub.endpoint())} does not answer: {wrong}", fix)
    else:
        yield Finding("data", OK, f"{what}; run {command}")


def _unreachable() -> str | None:
    """The reason why the hub cannot be reached, None if it answers."""
    import requests

    try:
        requests.head(hub.endpoint(), timeout=NETWORK_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        return hub.reason(error)
    return None


CHECKS: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    check_torch,
    check_processes,
    check_memory,
    check_spill,
    check_compiler,
    check_folder,
    check_limits,
    check_power,
    check_data,
)
