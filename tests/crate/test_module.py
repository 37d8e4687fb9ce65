"""rustbpe as a module: how it is imported, interrupted and shared by threads, and that its ids are those of other implementations."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.crate.references import encoding

ROOT = Path(__file__).resolve().parent.parent.parent


class TestTheModule:
    # The working directory is first on sys.path both ways, and it has a folder named rustbpe.
    @pytest.mark.parametrize("way", [["-c"], ["-m", "timeit", "-n", "1", "-r", "1"]])
    def test_the_folder_of_the_crate_does_not_shadow_it(self, way: list[str]) -> None:
        done = subprocess.run([sys.executable, *way, "import rustbpe; rustbpe.train"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def test_ctrl_c_ends_long_work(self) -> None:
        code = "import rustbpe; print('go', flush=True); rustbpe.train(['abc def ' * (1 << 17)] * 10_000, 300, r'\\w+|\\W+', threads=1)"
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "go\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert "KeyboardInterrupt" in errors

    def test_the_interpreter_is_free_meanwhile(self) -> None:
        done = threading.Event()
        worker = threading.Thread(target=lambda: (encoding(["abcd" * 200_000], 400), done.set()))
        worker.start()
        ticks = 0
        while not done.is_set():
            ticks += 1
            time.sleep(0.001)
        worker.join()
        assert ticks > 10


@pytest.mark.slow
class TestAgainstReferences:
    def test_ids_equal_tiktokens_and_huggingfaces_on_a_gigabyte(self) -> None:
        done = subprocess.run([sys.executable, "bench/bpe_equal.py"], cwd=ROOT, capture_output=True, text=True, timeout=3600)
        if "Failed to fetch" in done.stderr or "No solution found" in done.stderr:
            pytest.skip("tiktoken and tokenizers cannot be installed here")
        print(done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count(": equal") == 3

    def test_splits_equal_the_regular_expressions(self) -> None:
        """All code points in several contexts, and a minute of fuzzing (RUSTBPE_FUZZ_SECONDS for more)."""
        command = ["cargo", "test", "--release", "--manifest-path", "rustbpe/Cargo.toml", "split", "--", "--ignored", "--nocapture"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=7200)
        print(done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 passed" in done.stdout and "all equal" in done.stdout
