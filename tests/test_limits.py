"""Commands within real limits of a container, a service or a shell: the doctor and a run name them, and what they propose fits."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.runs.record import read_record
from tests import tiny

pytestmark = pytest.mark.slow
GB = 1 << 30
# Micro-batches that need 1.5 GB, of one step.
LARGE = {"depth": 2, "aspect_ratio": 64, "head_dim": 64, "vocab_size": 4096, "max_seq_len": 512, "total_batch_size": 65536}
LARGE |= {"device_batch_size": 128, "num_iterations": 1, "dataset": "embedded", "sft_iterations": 0, "eval_every": -1, "eval_tokens": 8192}
LARGE |= {"core_metric_max_per_task": 0}


def call(base: Path, before: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A command of a shell that has run `before`."""
    command = ["sh", "-c", f'{before} && exec "$0" "$@"', sys.executable, "entrypoint.py", *arguments]
    return subprocess.run(command, cwd=tiny.ROOT, env=tiny.environment(base), text=True, capture_output=True, timeout=300, check=False)


def joining(group: Path) -> str:
    return f"echo $$ > {group}/cgroup.procs"


def fits(base: Path, before: str, limit: str) -> None:
    """The doctor and the run refuse the large micro-batches by `limit`; those that they propose instead are trained within it."""
    flags = ["--profile=cpu", *(f"--{name}={value}" for name, value in LARGE.items())]
    found = call(base, before, "doctor", *flags)
    assert found.returncode == 3 and limit in found.stdout, (found.stdout, found.stderr)
    refused = call(base, before, "train", *flags)
    assert refused.returncode == 3 and limit in refused.stderr, refused.stderr
    proposed = re.search(r"hint: use (--device_batch_size=\d+)", refused.stderr)
    assert proposed and proposed[1] in found.stdout, refused.stderr
    done = call(base, before, "train", *flags, proposed[1])
    assert done.returncode == 0, done.stderr


def test_a_containers_memory(base: Path, memory_group: Path) -> None:
    for name in ("memory.limit_in_bytes", "memory.max"):
        if (memory_group / name).exists():
            (memory_group / name).write_text(str(GB))
    fits(base, joining(memory_group), "by a container's or service's limit")


def test_a_shells_addresses(base: Path) -> None:
    fits(base, f"ulimit -v {7 * GB >> 10}", "by the limit of addresses (ulimit -v)")


def test_half_a_processor(base: Path, tmp_path: Path, processor_group: Path) -> None:
    """One thread, and steps as planned: the plan's were measured within the limit too."""
    flags = tiny.flags(tiny.sentences(tmp_path / "text.txt"), threads=-1, deterministic=False, num_iterations=40)
    found = call(base, joining(processor_group), "doctor", "--json", *flags[1:])
    processors = next(finding for finding in json.loads(found.stdout)["findings"] if finding["id"] == "processors")
    assert processors["level"] == "warning" and processors["what"].startswith("0.5 of "), found.stderr
    done = call(base, joining(processor_group), *flags)
    assert done.returncode == 0 and "warning: 0.5 of " in done.stderr and "of the planned tokens" not in done.stderr, done.stderr
    record = read_record("tiny")
    assert record and record.config.threads == 1 and len(tiny.losses(base)) == 40
