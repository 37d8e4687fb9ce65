"""Fixtures of the chat's tests. The browser is imported by the tests that use it alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tiny import call, chats, flags, sentences

if TYPE_CHECKING:
    import openai
    from playwright.sync_api import Browser, Page

    from tests.chat.serving import Running


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a tiny run, fine-tuned, whose checkpoints of every step are kept."""
    folder = tmp_path_factory.mktemp("serve")
    text, talks = sentences(folder / "text.txt"), chats(folder / "talks.jsonl")
    more = {"chat_data": str(talks), "sft_iterations": 3, "save_every": 1, "keep_last": 9, "max_seq_len": 256, "total_batch_size": 1024}
    done = call(folder / "base", "entrypoint.py", *flags(text, **more), timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "base"


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    from tests.chat.pages import chromium

    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def server() -> "Iterator[Running]":
    """A model whose answers never end by themselves, for the page; tests of the API have servers of their own."""
    from tests.chat.serving import loaded_model, running

    with running(loaded_model(context=4096)) as one:
        yield one


@pytest.fixture
def page(browser: "Browser", server: "Running") -> "Iterator[Page]":
    from tests.chat.pages import SHORT, opened

    with opened(browser, server.url, SHORT) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: "Running") -> "openai.OpenAI":
    """OpenAI's client of the module's server."""
    import openai

    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
