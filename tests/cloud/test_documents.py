"""The Slurm example of docs/guides/cluster.md, line by line, with stand-ins for Slurm's commands that do what its documentation says."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from nanochat.config import load_profile
from nanochat.errors import ORCHESTRATOR_RETRIED_CODES

ROOT = Path(__file__).resolve().parents[2]
# One task a node. Bound to --cpus-per-task CPUs, or to one: srun does not take the number over from sbatch. The highest code is srun's.
SRUN = """#!/bin/bash
cpus=1 command=()
while [ $# -gt 0 ]; do
    case $1 in
        --cpus-per-task=*) cpus=${1#*=} ;;
        --kill-on-bad-exit=0) ;;
        -*) echo "unknown: $1" >&2; exit 99 ;;
        *) command=("$@"); break ;;
    esac
    shift
done
tasks=()
for node in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do
    SLURM_NODEID=$node SLURM_PROCID=$node taskset -c "0-$((cpus - 1))" "${command[@]}" & tasks+=($!)
done
code=0
for task in "${tasks[@]}"; do wait "$task"; found=$?; [ $found -gt $code ] && code=$found; done
exit $code
"""
TRAIN = """#!/bin/bash
echo "$PET_NODE_RANK of $PET_NNODES, $PET_MASTER_ADDR:$PET_MASTER_PORT, $(nproc) CPUs, $NANOCHAT_BASE_DIR, $*" >>told
exit "$(cat code)"
"""


def example() -> str:
    """The batch script in the document."""
    (block,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", (ROOT / "docs/guides/cluster.md").read_text(encoding="utf-8"), re.S)
    return block


def run(folder: Path, code: int, nodes: int = 2, restarts: str = "") -> tuple[list[str], list[str]]:
    """Run the example where the training ends with `code`: what each task said, and what Slurm was asked for."""
    for name, text in {
        "srun": SRUN,
        "scontrol": '#!/bin/sh\necho "$*" >>asked\n',
        "hostname": "#!/bin/sh\necho '10.0.0.7 172.17.0.1 '\n",
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/nanochat").write_text(TRAIN)
    (folder / ".venv/bin/nanochat").chmod(0o755)
    (folder / "code").write_text(str(code))
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_ID": "77",
        "SLURM_CPUS_PER_TASK": "2",
    }
    environment |= {"SLURM_JOB_NODELIST": "node[0-1]"} | ({"SLURM_RESTART_COUNT": restarts} if restarts else {})
    subprocess.run(["bash", "-c", example()], cwd=folder, env=environment, check=False, timeout=60)
    asked = folder / "asked"
    return sorted((folder / "told").read_text().splitlines()), asked.read_text().splitlines() if asked.exists() else []


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="binding to two CPUs needs two")
def test_each_node_has_its_rank_its_cpus_and_the_masters_address(tmp_path: Path) -> None:
    told, _ = run(tmp_path, 0)
    assert told == [f"{rank} of 2, 10.0.0.7:29500, 2 CPUs, /shared/nanochat, train --profile h100x8" for rank in (0, 1)]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 7, 75, 137, 143])
def test_what_is_queued_again(tmp_path: Path, code: int) -> None:
    """The codes that every orchestrator retries, and those of a task that was killed; not for ever."""
    _, asked = run(tmp_path, code)
    assert asked == (["requeue 77"] if code in (*ORCHESTRATOR_RETRIED_CODES, 137, 143) else [])


def test_not_for_ever(tmp_path: Path) -> None:
    assert run(tmp_path, 7, restarts="20")[1] == []


def test_options_of_the_job_fit_the_profile() -> None:
    """As many GPUs as the profile has processes, time for a checkpoint before the limit, and a job that may be queued again."""
    options = " ".join(re.findall(r"^#SBATCH (.*)$", example(), re.M))
    assert f"--gpus-per-node={load_profile('h100x8')['nproc_per_node']}" in options and "--ntasks-per-node=1" in options
    assert "--requeue" in options and "--signal=TERM@300" in options
