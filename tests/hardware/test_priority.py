"""`--background`: the lowest priority for CPU and disk, in a process of its own, because it cannot be raised again."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import os, subprocess, sys
from pathlib import Path
from nanochat.hardware import priority
group = Path("/proc/self/autogroup")
share = lambda: group.read_text().split()[-1] if group.exists() else ""
before = share()
with priority.lowered() as lowers:
    disk = subprocess.run(["ionice", "-p", str(os.getpid())], capture_output=True, text=True).stdout.strip()
    child = int(subprocess.run([sys.executable, "-c", "import os; print(os.nice(0))"], capture_output=True, text=True).stdout)
    print(",".join(lowers), os.nice(0), child, disk, share(), sep="|")
print(share() == before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has them all")
def test_the_lowest_priority() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, start_new_session=True, check=True)
    first, restored = done.stdout.splitlines()
    lowers, own, child, disk, share = first.split("|")
    assert lowers == "CPU,disk" and own == child == "19" and disk in ("idle", "") and restored == "True"
    assert share == ("19" if Path("/proc/self/autogroup").exists() else "")
