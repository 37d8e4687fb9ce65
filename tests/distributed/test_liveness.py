"""A rank that is gone is noticed by the others, whatever they wait for; one that has failed gives them its code."""

import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from nanochat.distributed import liveness
from nanochat.distributed.liveness import Liveness
from nanochat.errors import OutOfMemoryError

LOST = 0.6


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    monkeypatch.setattr(liveness, "LAST_WORD", 0.3)
    return dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=10), wait_for_workers=False, multi_tenant=True)


class Ended:
    """What a rank was ended with, and when."""

    def __init__(self) -> None:
        self.code, self.came = 0, threading.Event()

    def __call__(self, code: int) -> None:
        self.code = code
        self.came.set()


def rank(store: dist.Store, number: int, ended: Ended) -> Liveness:
    return Liveness(store.clone(), number, 2, ended, LOST, LOST)


def test_ranks_that_live_or_have_left_are_let_be(store: dist.Store) -> None:
    ended = Ended()
    with rank(store, 0, ended):
        with rank(store, 1, ended):
            assert not ended.came.wait(2 * LOST)
        assert not ended.came.wait(2 * LOST)  # it has finished, and need not be heard of


def test_a_silent_rank_is_lost(store: dist.Store, capfd: pytest.CaptureFixture[str]) -> None:
    ended = Ended()
    with rank(store, 0, ended):
        assert ended.came.wait(10) and ended.code == 7
    assert "no heartbeat from rank 1" in capfd.readouterr().err


def test_a_rank_that_was_never_heard_of_has_longer(store: dist.Store, capfd: pytest.CaptureFixture[str]) -> None:
    ended, began = Ended(), time.monotonic()
    with Liveness(store.clone(), 0, 2, ended, LOST, 4 * LOST):
        assert ended.came.wait(10) and ended.code == 7 and time.monotonic() - began > 4 * LOST
    assert "no heartbeat from rank 1 for 2 s" in capfd.readouterr().err


def test_ranks_that_were_suspended_together_are_not_lost(store: dist.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop's whole run is stopped for ten minutes: each rank's own clock jumps, as the others' heartbeats are missing."""
    ended, jump, clock = Ended(), 0.0, time.monotonic
    monkeypatch.setattr(liveness.time, "monotonic", lambda: clock() + jump)
    with rank(store, 0, ended), rank(store, 1, ended):
        time.sleep(LOST)
        jump = 600.0
        assert not ended.came.wait(3 * LOST)


def test_a_rank_that_failed_gives_its_code(store: dist.Store) -> None:
    ended = Ended()
    with rank(store, 0, ended) as first:
        with pytest.raises(OutOfMemoryError), rank(store, 1, Ended()):
            raise OutOfMemoryError("none left")
        assert first.failed(5) == 6
        assert ended.came.wait(10) and ended.code == 6


def test_a_network_that_answers_nothing_is_a_loss() -> None:
    """The question to the store never returns, as over a cable that was pulled."""

    class Silent:
        def add(self, _name: str, _count: int) -> int:
            time.sleep(5)
            return 0

    ended, began = Ended(), time.monotonic()
    silent: Any = Silent()
    peer = Liveness(silent, 1, 2, ended, LOST, LOST)
    peer.__enter__()
    assert ended.came.wait(4) and ended.code == 7 and time.monotonic() - began < 4


def test_a_store_that_has_gone_is_a_loss(store: dist.Store) -> None:
    class Gone:
        def add(self, _name: str, _count: int) -> int:
            raise dist.DistNetworkError("reset")

    ended = Ended()
    gone: Any = Gone()
    with Liveness(gone, 1, 2, ended, LOST, LOST):
        assert ended.came.wait(4) and ended.code == 7
