"""Training runs on rented RunPod GPUs: choice of a GPU, costs, and the rental. runpod_watch.py follows a run to its end.

Called again with the same name, `submit` finds the existing pod and follows it.
"""

import datetime
import importlib.util
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanochat.cloud.guard import VARIABLE, Guard
from nanochat.cloud.runpod_api import Forbidden, Indeterminate, NoCapacity, RunPod
from nanochat.cloud.runpod_watch import POLL_SECONDS, START_MINUTES, deadline, end, watch
from nanochat.cloud.workload import DATA, Workload
from nanochat.console import duration, log
from nanochat.errors import NanochatError, PreflightError, UsageError
from nanochat.hardware.gpu_specs import RENTAL_GPUS

LIVE = ("PROVISIONING", "STARTING", "RUNNING")
IMAGE_GB = 12  # the unpacked image and a container's writes outside its volume
STOPPED_DISK = 0.20  # approximate dollars per GB and month of a stopped pod's disk


@dataclass(frozen=True)
class RentalOptions:
    """The requested rental and its cost limits."""

    gpus: tuple[str, ...] = ()  # candidates in order, instead of the profile's
    cloud: str = "SECURE"
    data_centers: tuple[str, ...] = ()
    volume: str = ""  # a network volume's id; else the pod's own disk
    registry: str = ""  # the id of credentials for a private image
    environment: tuple[tuple[str, str], ...] = ()
    min_cuda: str = ""
    max_price: float = 0.0  # dollars per hour for the whole pod; 0: no limit
    max_cost: float = 0.0  # dollars in total; 0: no limit
    max_hours: float = 0.0  # 0: twice the estimate plus an hour
    start_minutes: float = START_MINUTES
    poll: float = POLL_SECONDS


@dataclass(frozen=True)
class Candidate:
    """A GPU type to rent; `price` is the catalogue's price per hour of the whole pod."""

    gpu: str
    price: float
    free: str
    hours: float  # the time limit


def cuda_floor() -> str:
    """The oldest CUDA version of a host for the installed torch (any driver of its major version); "" for a torch without CUDA."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.origin:
        return ""
    version = re.search(r"^cuda\b[^=]*= '(\d+)\.", (Path(found.origin).parent / "version.py").read_text(encoding="utf-8"), re.M)
    return f"{version[1]}.0" if version else ""


def candidates(api: RunPod, work: Workload, options: RentalOptions) -> list[Candidate]:
    """The GPU types that may be rented, available ones first. Raises UsageError, or PreflightError with the reasons if there are none."""
    if not work.cards:
        raise UsageError(
            f"the profile {work.config.profile} needs no GPU", "choose rtx4050, rtx4090, speedrun or h100x8, or run `nanochat train` here"
        )
    wanted = options.gpus or RENTAL_GPUS[work.config.profile]
    offered = {gpu["id"]: gpu for gpu in api.gpus(work.cards, options.cloud, options.min_cuda)}
    found, refused = [], []
    for identifier in wanted:
        if (gpu := offered.get(identifier)) is None:
            refused.append(f"{identifier}: not offered")
            continue
        kind = options.cloud.lower()
        price = gpu["price"][kind] * work.cards
        hours = ceiling(work, options, price)
        if gpu["maxCount"][kind] < work.cards or not gpu[kind]:
            refused.append(f"{identifier}: at most {gpu['maxCount'][kind]} in one pod of {options.cloud}")
        elif options.max_price and price > options.max_price:
            refused.append(f"{identifier}: ${price:.2f} an hour is above --max-price")
        elif hours < work.hours:
            refused.append(f"{identifier}: needs about {work.hours:.1f} h; {hours:.1f} h are allowed (--max-hours, --max-cost)")
        else:
            found.append(Candidate(identifier, price, gpu.get("availability", "unknown"), hours))
    if not found:
        raise PreflightError("no GPU to rent: " + "; ".join(refused), "choose other GPUs with --gpu, by their names in RunPod's catalogue")
    return sorted(found, key=lambda one: one.free == "NONE")


def ceiling(work: Workload, options: RentalOptions, price: float) -> float:
    """Time limit of the pod in hours."""
    hours = options.max_hours or 2 * work.hours + 1
    return min(hours, options.max_cost / price) if options.max_cost and price else hours


def describe(work: Workload, options: RentalOptions, found: Sequence[Candidate]) -> str:
    """The rental and its costs as a few lines of text."""
    lines = [f"training  {' '.join(work.command)}", f"image     {work.image}", f"time      about {duration(3600 * work.hours)}"]
    for one in found:
        likely = one.price * work.hours
        lines.append(
            f"GPU       {work.cards} x {one.gpu}, ${one.price:.2f} an hour, availability {one.free.lower()}; about ${likely:.2f}, "
            f"at most {one.hours:.1f} h = ${one.price * one.hours:.2f}"
        )
    if options.volume:
        lines.append(f"disk      network volume {options.volume}; the pod is terminated at the end, the volume is kept (and billed)")
    else:
        gigabytes = disk_gigabytes(work)
        cost = STOPPED_DISK * gigabytes
        lines.append(
            f"disk      {gigabytes} GB in the pod; the pod is stopped at the end, and its disk then costs about ${cost:.2f} a month"
        )
        lines.append("          until `nanochat submit terminate NAME`, which deletes it with the checkpoints")
    return "\n".join(lines)


def disk_gigabytes(work: Workload) -> int:
    """Size of the pod's own disk in GB."""
    return max(round(1.5 * work.plan.disk_bytes / 1e9), 10)


def body(work: Workload, options: RentalOptions, one: Candidate, now: float) -> dict[str, Any]:
    """The body of the request that rents `one`."""
    guard = Guard(now + 3600 * one.hours, "terminate" if options.volume else "stop")
    gpu: dict[str, Any] = {"id": one.gpu, "count": work.cards}
    if options.min_cuda:
        gpu["minCudaVersion"] = options.min_cuda
    if options.volume:
        mounts: dict[str, Any] = {"network": [{"volumeId": options.volume, "path": DATA}]}
    else:
        mounts = {"persistent": {"size": disk_gigabytes(work), "path": DATA}}
    made = {
        "name": work.name,
        "image": work.image,
        "args": shlex.join(work.command),
        "gpu": gpu,
        "cloud": options.cloud,
        "disk": IMAGE_GB,
        "mounts": mounts,
        "env": {**work.environment(), **dict(options.environment), VARIABLE: str(guard)},
    }
    if options.data_centers:
        made["dataCenterIds"] = list(options.data_centers)
    if options.registry:
        made["registry"] = options.registry
    return made


def find(api: RunPod, name: str) -> dict[str, Any] | None:
    """The pod of that name. Raises UsageError if there are several."""
    found = [pod for pod in api.pods() if pod["name"] == name and pod["status"] != "TERMINATED"]
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} pods are named {name!r}: {', '.join(pod['id'] for pod in found)}", "terminate all but one on RunPod's page"
        )
    return found[0] if found else None


def require(api: RunPod, name: str) -> dict[str, Any]:
    """The pod of that name. Raises UsageError if there is none."""
    if pod := find(api, name):
        return pod
    raise UsageError(f"there is no pod named {name!r}", "list the pods with `nanochat submit status --on runpod`")


def rent(api: RunPod, work: Workload, options: RentalOptions, found: Sequence[Candidate]) -> tuple[dict[str, Any], Candidate]:
    """Rent the first available candidate, only one. Raises PreflightError if none is available."""
    refused = []
    for one in found:
        for _ in range(3):
            try:
                pod = api.create(body(work, options, one, time.time()))
                return _affordable(api, pod, work, options, one), one
            except (NoCapacity, Forbidden) as error:
                log(f"{one.gpu}: {error.message}")
                refused.append(one.gpu)
                break
            except Indeterminate as error:  # the pod may have been created anyway
                log(f"{error.message}; checking whether the pod was created")
                time.sleep(api.pause)
                if made := find(api, work.name):
                    return _affordable(api, made, work, options, one), one
        else:
            raise NanochatError(f"RunPod cannot rent {one.gpu} now (nothing was rented)", "try again later, or see RunPod's status page")
    raise PreflightError(
        f"none of {', '.join(refused)} is available now (nothing was rented)",
        "choose other GPUs (--gpu), another data centre or --cloud, or try again later",
    )


def _affordable(api: RunPod, pod: dict[str, Any], work: Workload, options: RentalOptions, one: Candidate) -> dict[str, Any]:
    """The pod; if its real price exceeds the limit, terminate it and raise PreflightError."""
    price = pod.get("cost") or 0.0
    if (options.max_price and price > options.max_price + 0.005) or (options.max_cost and price * one.hours > 1.01 * options.max_cost):
        end(api, pod["id"], "terminate")
        raise PreflightError(
            f"the pod would cost ${price:.2f} an hour, not ${one.price:.2f}, and was terminated", "set a higher --max-price or --max-cost"
        )
    return pod


def submit(api: RunPod, work: Workload, options: RentalOptions, agree: Callable[[str], bool], follow: bool = True) -> int:
    """Rent (or find) the pod of this name and follow it; returns the exit code."""
    options = options if options.min_cuda else replace(options, min_cuda=cuda_floor())
    if not options.min_cuda:
        log("no least CUDA version, because the torch installed here has no CUDA (--min-cuda sets one)")
    pod = find(api, work.name)
    if pod and pod["status"] in LIVE:
        log(f"following pod {pod['id']} ({pod['status']}), which has this name already; nothing new is rented")
        return _follow(api, pod, options, deadline(pod)) if follow else 0
    if pod and pod["status"] == "ERROR":
        raise PreflightError(
            f"pod {pod['id']} of this name is in an error state", f"remove it with its disk by `nanochat submit terminate {work.name}`"
        )
    found = candidates(api, work, options)
    if pod:  # stopped; its disk has the checkpoints
        found = [one for one in found if one.gpu == pod["gpu"]["id"]] or found[:1]
        log(f"starting the stopped pod {pod['id']} of this name, which resumes from its checkpoints")
    if not agree(describe(work, options, found)):
        log("nothing was rented")
        return 0
    if pod:
        changed = body(work, options, found[0], time.time())
        api.change(pod["id"], {"args": changed["args"], "env": changed["env"], "image": changed["image"]})
        api.act(pod["id"], "start")
        one = found[0]
    else:
        pod, one = rent(api, work, options, found)
    log(f"pod {pod['id']}: {one.gpu}, ${pod.get('cost') or one.price:.2f} an hour; `nanochat submit stop {work.name}` ends it")
    until = time.time() + 3600 * one.hours
    if not follow:
        log("not following; the guard inside the pod ends it")
        return 0
    try:
        return _follow(api, pod, options, until)
    except KeyboardInterrupt:
        log(f"stopped following; the pod runs until its guard ends it, and `nanochat submit logs {work.name} --on runpod` follows it again")
        raise


def _follow(api: RunPod, pod: dict[str, Any], options: RentalOptions, until: float) -> int:
    return watch(api, pod["id"], until, options.poll, options.start_minutes)


def status_lines(api: RunPod, name: str = "") -> list[str]:
    """A line with state, price and start for each of the account's pods, or one."""
    lines = []
    for pod in [require(api, name)] if name else api.pods():
        since = pod.get("startedAt") or pod.get("createdAt") or ""
        spent = ""
        if pod["status"] in LIVE and since:
            hours = (time.time() - datetime.datetime.fromisoformat(since).timestamp()) / 3600
            spent = f", about ${max(hours, 0) * (pod.get('cost') or 0):.2f} so far"
        lines.append(f"{pod['name']}  {pod['id']}  {pod['status']}  ${pod.get('cost') or 0:.2f}/h{spent}")
    return lines
