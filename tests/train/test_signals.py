"""SIGTERM and SIGINT: when they end the command, when they ask for a checkpoint first."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.errors import Preempted
from nanochat.train.signals import StopSignal


def test_a_signal_before_the_loop_ends_the_command() -> None:
    with StopSignal().installed(), pytest.raises(Preempted, match="before the first step"):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_in_the_loop_sets_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignal().installed() as stop:
        stop.in_loop = True
        assert not stop.set
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.set
    assert signal.getsignal(signal.SIGINT) is before
    assert "saving" in capsys.readouterr().err


def test_a_second_signal_ends_at_once() -> None:
    script = (
        "import os, signal\nfrom nanochat.train.signals import StopSignal\n"
        "with StopSignal().installed() as stop:\n    stop.in_loop = True\n"
        "    for _ in range(2):\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGTERM and "still here" not in done.stdout
