"""The `export` command: write, check, then copy to a hub and a mirror."""

from dataclasses import dataclass
from pathlib import Path

from nanochat.console import log
from nanochat.errors import UsageError, did_you_mean
from nanochat.export.check import check
from nanochat.export.folder import write_folder
from nanochat.export.gguf_file import OUTTYPES, write_gguf
from nanochat.export.publish import ExportMirror, Push
from nanochat.runs import record as runs


@dataclass(frozen=True)
class ExportRequest:
    """The options of `export`."""

    to: str  # hf or gguf
    out: Path
    run: str | None = None
    outtype: str = "f32"
    check: bool = False
    push: str = ""
    mirror: str = ""


def write_export(request: ExportRequest) -> list[str]:
    """Write the export and return its places: the directory, and where it was copied to.

    Raises UsageError for options that do not fit together, before the model is loaded, and what the formats and copies raise.
    """
    if request.outtype not in OUTTYPES:
        raise UsageError(f"unknown value in --outtype={request.outtype}", did_you_mean(request.outtype, tuple(OUTTYPES)))
    if request.to != "gguf" and request.outtype != "f32":
        raise UsageError("--outtype is for GGUF files", "use it with --to gguf")
    push = Push(request.push) if request.push else None
    mirror = ExportMirror(request.mirror, request.out) if request.mirror else None
    opened = runs.open_model(request.run)
    if request.to == "hf":
        write_folder(opened, request.out)
    else:
        write_gguf(opened, request.out, request.outtype)
    if request.check:
        check(opened, request.to, request.out)
    places = [str(request.out)]
    if mirror:
        places.append(mirror.send())
        log(f"copied to {places[-1]}")
    if push:
        places.append(push.send(request.out))
        log(f"uploaded to {push.repo}")
    return places
