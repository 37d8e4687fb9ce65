"""The engine's thread: slots and queue are bounded, who leaves frees a slot, a new model takes over, a failure is not the end."""

import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nanochat.chat.loading import LoadedModel
from nanochat.chat.metrics import ServerMetrics
from nanochat.chat.scheduler import Busy, Delta, GenerationRequest, Scheduler
from nanochat.generate.engine import Engine
from nanochat.generate.sampling import Sampling
from tests.chat.serving import TOKENIZER, loaded_model

pytestmark = pytest.mark.long
GREEDY = Sampling(0.0)


class Client:
    """Collects the deltas of one answer."""

    def __init__(self, model: LoadedModel, text: str, max_tokens: int = 20, **options: Any):
        self.deltas: list[Delta] = []
        self.ended = threading.Event()
        self.request = GenerationRequest(
            model, [TOKENIZER.bos, *TOKENIZER.encode(text)], max_tokens, options.pop("sampling", GREEDY), self.take, **options
        )

    def take(self, delta: Delta) -> None:
        self.deltas.append(delta)
        if delta.finish:
            self.ended.set()

    @property
    def text(self) -> str:
        return "".join(piece for delta in self.deltas for piece in delta.pieces if isinstance(piece, str))

    def wait(self) -> "Client":
        assert self.ended.wait(60), "no end came"
        return self


def alone(model: LoadedModel, text: str, max_tokens: int = 20) -> str:
    [ids] = Engine(model.model, TOKENIZER).complete([[TOKENIZER.bos, *TOKENIZER.encode(text)]], max_tokens=max_tokens)
    return TOKENIZER.decode(ids)


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    before = set(threading.enumerate())
    one = Scheduler(ServerMetrics(), queue=8)
    one.start()
    yield one
    one.stop()
    assert set(threading.enumerate()) <= before


def wait_until(true: Any) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_more_answers_than_slots(scheduler: Scheduler) -> None:
    model = loaded_model(slots=3)
    clients = [Client(model, f"question {i}", 5 + i) for i in range(8)]
    scheduler.submit([client.request for client in clients])
    for i, client in enumerate(clients):
        assert client.wait().text == alone(model, f"question {i}", 5 + i)
        assert client.deltas[-1].completion_tokens == 5 + i
        assert client.deltas[-1].finish == "length"
    assert model.batch.free == 3


def test_sixty_four_mixed_answers_equal_those_alone() -> None:
    """Equal ids; or, at the first that differs, two candidates so close that rounding decides between them."""
    scheduler = Scheduler(ServerMetrics(), queue=64)
    scheduler.start()
    model = loaded_model(slots=24)
    rng = random.Random(5)
    texts = ["".join(chr(rng.randint(33, 126)) for _ in range(rng.randint(1, 150))) for _ in range(64)]
    lengths = [rng.randint(1, 60) for _ in texts]
    clients = [Client(model, text, length, top=2) for text, length in zip(texts, lengths, strict=True)]
    scheduler.submit([client.request for client in clients])
    near = 0
    for client, text, length in zip(clients, texts, lengths, strict=True):
        ids = [id for delta in client.wait().deltas for one in delta.log_probs for id in one.text]
        [expected] = Engine(model.model, TOKENIZER).complete([[TOKENIZER.bos, *TOKENIZER.encode(text)]], max_tokens=length)
        if ids != expected:
            place = next(i for i, (one, other) in enumerate(zip(ids, expected, strict=True)) if one != other)
            (_, best), (_, second) = [top for delta in client.deltas for one in delta.log_probs for top in [one.top]][place]
            assert best - second < 1e-3
            near += 1
    print(f"64 mixed answers: {64 - near} equal to those alone, {near} differ where the two best are within 1e-3")
    scheduler.stop()


def test_the_queue_is_bounded(scheduler: Scheduler) -> None:
    model = loaded_model(slots=1)
    first = Client(model, "long", 400)
    scheduler.submit([first.request])
    wait_until(lambda: scheduler.running)
    scheduler.submit([Client(model, "x", 2).request for _ in range(8)])
    with pytest.raises(Busy):
        scheduler.submit([Client(model, "y", 2).request])
    scheduler.cancel([first.request])
    wait_until(lambda: not scheduler.waiting)
    scheduler.submit([Client(model, "y", 2).request])


def test_who_leaves_frees_the_slot_within_two_tokens(scheduler: Scheduler) -> None:
    model = loaded_model(slots=1)
    client, other = Client(model, "long", 400), Client(model, "next", 3)
    seen = []

    def take(delta: Delta) -> None:  # in the engine's thread: the client leaves at its third token
        seen.append(delta)
        if len(seen) == 3:
            scheduler.cancel([client.request])

    client.request.deliver = take
    scheduler.submit([client.request])
    scheduler.submit([other.request])
    other.wait()
    assert 3 <= client.request.completion_tokens <= 5
    assert other.text == alone(model, "next", 3)
    wait_until(lambda: model.batch.free == 1)


def test_one_that_waits_can_leave(scheduler: Scheduler) -> None:
    model = loaded_model(slots=1)
    long, waiting = Client(model, "long", 300), Client(model, "waits", 3)
    scheduler.submit([long.request])
    scheduler.submit([waiting.request])
    scheduler.cancel([waiting.request])
    wait_until(lambda: not scheduler.waiting)
    assert not waiting.deltas
    scheduler.cancel([long.request])


def test_a_new_model_does_not_break_running_answers(scheduler: Scheduler) -> None:
    old, new = loaded_model(seed=1, slots=2), loaded_model(seed=2, slots=2)
    scheduler.serve(old)
    before = Client(old, "hello", 200)
    scheduler.submit([before.request])
    wait_until(lambda: len(before.deltas) > 3)
    scheduler.serve(new)
    assert scheduler.current is new
    after = Client(new, "hello", 10)
    scheduler.submit([after.request])
    assert after.wait().text == alone(new, "hello", 10)
    assert not before.ended.is_set()
    assert before.wait().text == alone(old, "hello", 200)


def test_a_stop_string_frees_the_slot(scheduler: Scheduler) -> None:
    model = loaded_model(slots=1)
    whole = alone(model, "hello", 50)
    stop = whole[10:13]
    client = Client(model, "hello", 50, stop=[stop])
    scheduler.submit([client.request])
    assert client.wait().text == whole[: whole.index(stop)]
    assert client.deltas[-1].finish == "stop"
    wait_until(lambda: model.batch.free == 1)


def test_a_failing_step_ends_its_answers_and_not_the_server(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded_model(slots=2)
    failed = Client(model, "hello", 50)
    batch = model.batch
    monkeypatch.setattr(batch, "step", lambda: (_ for _ in ()).throw(RuntimeError("out of memory")))
    scheduler.submit([failed.request])
    assert failed.wait().deltas[-1].finish == "error"
    assert model.batch is not batch
    good = Client(model, "hello", 5)
    scheduler.submit([good.request])
    assert good.wait().text == alone(model, "hello", 5)


def test_the_end_tells_everyone() -> None:
    scheduler = Scheduler(ServerMetrics(), queue=8)
    scheduler.start()
    model = loaded_model(slots=1)
    clients = [Client(model, "x", 400), Client(model, "y", 400)]
    scheduler.submit([client.request for client in clients])
    scheduler.stop()
    assert [client.wait().deltas[-1].finish for client in clients] == ["error", "error"]
    with pytest.raises(Busy):
        scheduler.submit([Client(model, "z").request])
