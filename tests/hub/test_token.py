"""HF_TOKEN as people set it: a newline at its end is no part of it, and one that is none is refused without being shown."""

import http.server
import threading
from collections.abc import Iterator

import pytest

from nanochat.errors import UsageError
from nanochat.hub import addresses


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str | None]]:
    """The Authorization header of each request that a hub on this machine has received."""
    found: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield found
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("token", "header"), [("hf_x", "Bearer hf_x"), ("hf_x\n", "Bearer hf_x"), (" hf_x\r\n", "Bearer hf_x"), ("\n", None), ("", None)]
)
def test_blanks_around_a_token_are_no_part_of_it(seen: list[str | None], monkeypatch: pytest.MonkeyPatch, token: str, header: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    addresses.get(f"{addresses.endpoint()}/api").close()
    assert seen == [header]


@pytest.mark.parametrize("token", ["hf_a\nb", "hf_a b", "hf_\u00e9", "hf_\u200b"])
def test_what_no_header_can_hold_is_refused_and_not_shown(seen: list[str | None], monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UsageError, match="HF_TOKEN is not a token") as caught:
        addresses.get(f"{addresses.endpoint()}/api")
    assert token[3:] not in caught.value.message + caught.value.hint and seen == []
