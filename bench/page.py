"""The chat page in headless Chromium: first paint, and the times of what a person does with 500 runs and 1,000 conversations.

A model of some KB is trained for it, so that the times are the page's, the server's and the commands' own. Needs Chromium.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nanochat.chat.server import WEB
from tests.chat import crowded
from tests.chat.pages import SHORT, chromium, opened
from tests.chat.serve_process import Serve
from tests.tiny import call, chats, flags, sentences

TIMES = 5


@contextmanager
def served(base: Path) -> Iterator[str]:
    """The address of a server of the data directory `base`."""
    server = Serve(base, "--allow-training")
    try:
        yield server.url
    finally:
        server.end()


def train(base: Path) -> None:
    """A run of 200 steps with fine-tuning and several checkpoints."""
    text, talks = sentences(base.parent / "text.txt"), chats(base.parent / "talks.jsonl")
    more = {"chat_data": str(talks), "num_iterations": 200, "sft_iterations": 50, "save_every": 50, "keep_last": 4, "max_seq_len": 256}
    done = call(base, "entrypoint.py", *flags(text, total_batch_size=1024, sample_every=50, **more), timeout=600)
    assert done.returncode == 0, done.stderr


def medians(all_times: list[dict[str, float]]) -> dict[str, float]:
    """The median of each time, in milliseconds."""
    return {name: round(1000 * statistics.median(times[name] for times in all_times)) for name in all_times[0]}


def command_seconds(base: Path, *arguments: str) -> float:
    """Median seconds of a command."""
    found = []
    for _ in range(TIMES):
        began = time.monotonic()
        assert call(base, "-m", "nanochat", *arguments).returncode == 0
        found.append(time.monotonic() - began)
    return statistics.median(found)


def main() -> None:
    """Print one line of JSON for each measurement."""

    def say(what: str, **figures: float) -> None:
        print(json.dumps({"what": what, **figures}), flush=True)

    say("weight of the page in bytes", bytes=sum(path.stat().st_size for path in WEB.iterdir()))
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        base = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "base"
        with served(Path(folder) / "empty") as url:
            paints = [crowded.first_paint(browser, url) for _ in range(TIMES + 1)][1:]
            say("first paint, empty data directory, ms", median=statistics.median(paints), most=max(paints))
        train(base)
        with served(base) as url:
            paints = [crowded.first_paint(browser, url) for _ in range(TIMES + 1)][1:]
            say("first paint, one run, ms", median=statistics.median(paints), most=max(paints))
        crowded.many_runs(base, "tiny")
        say("nanochat runs, s", median=command_seconds(base, "runs"))
        say("nanochat runs --json, s", median=command_seconds(base, "runs", "--json"))
        with served(base) as url:
            paints = [crowded.first_paint(browser, url) for _ in range(TIMES + 1)][1:]
            say("first paint, 501 runs, ms", median=statistics.median(paints), most=max(paints))
            with opened(browser, url, SHORT) as page:
                say("501 runs, the first time, ms", **medians([crowded.times_of_runs(page, url)]))
            with opened(browser, url, SHORT) as page:
                page.evaluate(crowded.STORE, [crowded.CONVERSATIONS, "tiny"])
                found = [(crowded.times_of_runs(page, url), crowded.times_of_conversations(page, url)) for _ in range(TIMES)]
                say("501 runs, ms", **medians([runs for runs, _ in found]))
                say("1,000 conversations, ms", **medians([talks for _, talks in found]))


if __name__ == "__main__":
    main()
