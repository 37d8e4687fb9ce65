"""/api/runs and /api/models, and a request's `model`: what they tell, and what they refuse."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nanochat.chat.middleware import Limits
from tests.chat.serve_process import Serve
from tests.chat.serving import KEY, loaded_model, one_message, running
from tests.tiny import call

ROUTES = ("/api/runs", "/api/runs/tiny", "/api/runs/tiny/report.html", "/api/models")


@pytest.fixture(scope="module")
def server(trained: Path) -> Iterator[Serve]:
    one = Serve(trained)
    yield one
    one.end()


@pytest.mark.long
def test_runs_and_models(server: Serve, trained: Path) -> None:
    listed = httpx.get(f"{server.url}/api/runs").json()
    assert listed == json.loads(call(trained, "entrypoint.py", "runs", "--json").stdout)
    assert [one["name"] for one in listed["runs"]] == ["tiny"]
    one = httpx.get(f"{server.url}/api/runs/tiny").json()
    assert one["run"] == listed["runs"][0] and one["report"]["stages"]["sft"]["steps"] == 3 and one["samples"]
    page = httpx.get(f"{server.url}/api/runs/tiny/report.html")
    assert page.headers["content-disposition"] == "attachment" and "<main>" in page.text
    assert "script-src 'self'" in page.headers["content-security-policy"]
    found = httpx.get(f"{server.url}/api/models").json()
    assert found["default"] == "tiny:sft:3" and [one["id"] for one in found["models"]][:2] == ["tiny:sft:3", "tiny:sft:2"]
    assert found["models"][0]["context"] == 256 and found["models"][-1]["stage"] == "base"
    training = httpx.get(f"{server.url}/api/training").json()
    assert training["last"] == "tiny" and training["training"] is None


@pytest.mark.long
def test_a_request_names_its_checkpoint(server: Serve) -> None:
    def ask(**more: object) -> httpx.Response:
        return httpx.post(
            f"{server.url}/v1/chat/completions", json=one_message("cat", temperature=0, max_tokens=8, stream=True) | more, timeout=60
        )

    def checkpoint(model: str) -> tuple[str, int]:
        answer = ask(model=model)
        assert answer.status_code == 200, answer.text
        first = json.loads(answer.text.split("\n\n")[0].removeprefix("data: "))["checkpoint"]
        return first["stage"], first["step"]

    names = ("nanochat", "tiny", "tiny:sft", "tiny:sft:3", "tiny:sft:1", "tiny:base", "tiny:base:6", "tiny:sft:2")
    assert [checkpoint(name) for name in names] == [*[("sft", 3)] * 4, ("sft", 1), ("base", 6), ("base", 6), ("sft", 2)]
    for name in ("other", "tiny:sft:99", "tiny:rl", "../tiny", "tiny/../tiny", "tiny:sft:../3", "\x00", "a" * 5000, "tiny:sft:١"):
        assert ask(model=name).status_code == 404, name


@pytest.mark.parametrize("path", ROUTES)
def test_foreign_pages_and_strangers_learn_nothing(path: str) -> None:
    with running(loaded_model(), Limits(api_key=KEY)) as one:
        assert httpx.get(one.url + path).status_code == 401
        assert httpx.get(one.url + path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        good = {"Authorization": f"Bearer {KEY}"}
        assert httpx.get(one.url + path, headers=good | {"Origin": "https://evil.example"}).status_code == 403
        assert httpx.get(one.url + path, headers=good | {"Host": "evil.example"}).status_code == 403


@pytest.mark.parametrize("name", ["..", "../secret", "%2e%2e", "..%2fsecret", "a%00b", "link", ".hidden", "x" * 300, "a%2f..%2f..", "%ff"])
def test_names_that_lead_elsewhere(name: str, base: Path) -> None:
    secret = base / "runs" / ".hidden"
    secret.mkdir(parents=True)
    (secret / "config.toml").write_text('profile = "secret"\n')
    (base / "runs" / "link").symlink_to(secret)
    with running(loaded_model()) as one:
        for end in ("", "/report.html"):
            answer = one.raw(f"GET /api/runs/{name}{end} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            status = int(answer.split()[1])
            assert status in (400, 404) and b"secret" not in answer.partition(b"\r\n\r\n")[2].replace(name.encode(), b""), answer
