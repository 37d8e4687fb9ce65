"""Credentials in addresses: `redact` hides them in every spelling, and no output and no file of a run has one."""

import html
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat import redaction
from nanochat.config import build_config
from nanochat.errors import DataError
from nanochat.hub.addresses import endpoint, get, reason
from nanochat.hub.assets import asset_url
from nanochat.redaction import redact, remember
from nanochat.runs.mirror import Mirror
from tests.fake_hub import Hub, parquet
from tests.tiny import MODEL, ROOT, call, chats, environment, flags, sentences

SECRET = "S3CRET"


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_remembered", set())
    for name in (*redaction.SECRETS, *redaction.ADDRESSES):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:S3CRET@host:80/x: the server answered 404", "http://***@host:80/x: the server answered 404"),
        ("s3://S3CRET@bucket/folder", "s3://***@bucket/folder"),
        ("http://u:a@S3CRET@host/x, http://u:S3CRET@other", "http://***@host/x, http://***@other"),
        ("http://user:with/S3CRET@host/x", "http://***@host/x"),
        ("http://user:what?S3CRET#@host/x", "http://***@host/x"),
        ("https://host/x?sig=S3CRET&recursive=true (tried)", "https://host/x?sig=***&recursive=true (tried)"),
        ("Max retries exceeded with url: /x?a=S3CRET&b=S3CRET (Caused by", "Max retries exceeded with url: /x?a=***&b=*** (Caused by"),
        ("'https://host/x?X-Amz-Signature=S3CRET'", "'https://host/x?X-Amz-Signature=***'"),
        ("https://host/x#access_token=S3CRET", "https://host/x#access_token=***"),
        *(  # nothing to hide: unchanged
            (text, text)
            for text in (
                "file:///mnt/nas/a@b",
                "http://host:8080/@scope/x",
                "https://host/api/tree/main?recursive=true",
                "give --run a name, as in --run=mine",
                "s3://bucket/folder",
                "me@example.org",
                "hf:owner/name",
            )
        ),
    ],
)
def test_addresses_lose_their_credentials(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_known_secrets_are_hidden_decoded_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://user:p%40ss%2Fword@host")
    monkeypatch.setenv("NANOCHAT_MIRRORS", "http://a, token-of-mine@b,http://c?key=a+key")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    remember("memory://user:of%20the%20mirror@x/y")
    for secret in ("p@ss/word", "p%40ss%2Fword", "token-of-mine", "a+key", "hf_abcdef", "of the mirror", "of%20the%20mirror"):
        assert redact(f"it said {secret}!") == "it said ***!", secret
    assert redact("user host memory") == "user host memory"


def test_errors_and_their_causes_hold_none() -> None:
    error = DataError("http://user:S3CRET@host: no", "HF_ENDPOINT is http://user:S3CRET@host")
    assert SECRET not in f"{error} {error.message} {error.hint} {error!r}"
    assert SECRET not in reason(ValueError("x" * 180 + " http://user:S3CRET@host"))  # not cut where only its beginning is left
    assert SECRET not in Mirror("memory://user:S3CRET@x/y", "run").url


@pytest.mark.parametrize(
    "address",
    [
        "user:S3CRET@host",
        "http://user:S3/CRET@127.0.0.1:9",
        "http://u:S3CRET@[::1",
        "ftp://u:S3CRET@h",
        "http://u:S3CRET@",
    ],
)
def test_what_is_no_address_is_said_without_it(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, ask in (("HF_ENDPOINT", lambda: get(f"{endpoint()}/x")), ("NANOCHAT_ASSET_URL", lambda: get(asset_url("x")))):
        with monkeypatch.context() as patch:
            patch.setenv(variable, address)
            with pytest.raises(DataError) as raised:
                ask()
        assert "is not an address" in raised.value.message and "S3CRET" not in f"{raised.value}{raised.value.hint}".replace("/", "")


def test_the_address_of_an_asset_keeps_its_query_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_ASSET_URL", "https://user:pw@host/folder/?sig=a%2Fb")
    assert asset_url("eval_bundle.zip") == "https://user:pw@host/folder/eval_bundle.zip?sig=a%2Fb"


def test_the_config_remembers_the_mirrors_credentials() -> None:
    build_config("cpu", False, {"mirror": "memory://user:S3CRET@x/y"})
    assert redact("no such file: /user:S3CRET@x/y/run") == "no such file: /user:***@x/y/run"


def with_secret(folder: Path) -> list[str]:
    """The files in `folder` that hold a secret, in their names or their bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if SECRET in str(path) or SECRET.encode() in path.read_bytes()]


# ---- whole commands -----------------------------------------------------------------------------------------------


@pytest.fixture
def hub() -> Iterator[Hub]:
    served = Hub()
    served.files["some/text"] = {f"{index}.parquet": parquet(str(index)) for index in range(3)}
    yield served
    served.server.shutdown()
    served.server.server_close()


@pytest.mark.long
def test_no_output_and_no_file_has_a_secret(hub: Hub, tmp_path: Path) -> None:
    """Every address of a run holds a secret, servers refuse, drop connections and are not there: none is told, none is kept."""
    base, text, talks = tmp_path / "base", sentences(tmp_path / "text.txt"), chats(tmp_path / "chats.jsonl")
    host = hub.url.removeprefix("http://")
    addresses = {
        "HF_ENDPOINT": f"http://user:{SECRET}1@127.0.0.1:9",  # nobody listens
        "NANOCHAT_MIRRORS": f"http://{SECRET}2@127.0.0.1:9,http://user:{SECRET}3@{host}",
        "NANOCHAT_ASSET_URL": f"http://user:{SECRET}4@{host}/assets?sig={SECRET}5",
        "HF_TOKEN": f"hf_{SECRET}6",
        "WANDB_API_KEY": f"{SECRET}7",
    }
    # A name that is kept beside a file that breaks off: the record of what has come.
    hub.faults["0.parquet"] = ["cut"] * 30  # for the mirror that has it
    train = ["train", "--profile=cpu", *(f"--{name}={value}" for name, value in MODEL.items()), "--sft_iterations=2"]
    train += [f"--data={text}", f"--chat_data={talks}", "--core_metric_max_per_task=5"]
    mirror = f"--mirror=memory://user:{SECRET}8@x/y?key={SECRET}9"
    told = {}

    def call(name: str, *arguments: str, code: int, **more: str) -> None:
        command = [sys.executable, "entrypoint.py", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(base) | addresses | more, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == code, (name, done.stderr)
        told[name] = done.stdout + done.stderr

    call("a download that fails", "download", "--dataset=hf:some/text", "-n", "1", code=4)
    parts = [path.name for path in base.rglob(".part-*.json")]
    assert parts, "no record of a part was kept: nothing was tested"
    call("a file that is not there", "identity", code=4)
    call("the same with its traceback", "identity", code=1, NANOCHAT_DEBUG="1")
    call("the plan", "plan", "--profile=cpu", "--json", mirror, code=0)
    call("a mirror of no kind", *train, "--run=none", f"--mirror=nothing://user:{SECRET}a@x", code=2)
    call("a mirror that is gone", *train, "--run=gone", f"--mirror=ftp://user:{SECRET}b@127.0.0.1:1/x", code=3)
    call("a run", *train, "--run=tiny", mirror, code=0)
    call("the same again", *train, "--run=tiny", mirror, code=0)
    assert "is finished" in told["the same again"]
    call("its report", "report", "--run=tiny", code=0)
    call("its report as JSON", "report", "--run=tiny", "--json", code=0)
    call("the checks", "doctor", "--profile=cpu", "--dataset=climbmix", mirror, code=3)

    assert [name for name, output in told.items() if SECRET in output] == []
    assert "***@" in told["a file that is not there"] and "Traceback" in told["the same with its traceback"]
    files = [path for path in base.rglob("*") if path.is_file()]
    assert {"config.toml", "plan.json", "report.json", "report.html", "metrics.jsonl"} <= {path.name for path in files}
    assert with_secret(base) == []


@pytest.mark.long
def test_a_run_of_an_older_version_loses_the_mirrors_password(tmp_path: Path) -> None:
    """Its config.toml, plan.json and reports were written with it, here and on the mirror; one command removes it, and says so once."""
    base, mirror = tmp_path / "base", tmp_path / "mirror"
    train = flags(sentences(tmp_path / "text.txt"), mirror=f"file://{mirror}")
    begun = call(base, "entrypoint.py", *train)
    assert begun.returncode == 0, begun.stderr
    folder = base / "runs/tiny"
    address = f'memory://user:{SECRET}"&@x/y?key={SECRET}2'
    (folder / "config.toml").write_text((folder / "config.toml").read_text().replace(f'"file://{mirror}"', f"'{address}'"))
    for name in ("plan.json", "report.json", "report.md", "report.html"):
        text = (folder / name).read_text()
        spelled = {".json": json.dumps(address)[1:-1], ".md": address, ".html": html.escape(address)}[Path(name).suffix]
        end = {".json": "\n}\n", ".md": "", ".html": "</html>\n"}[Path(name).suffix]
        more = f',\n  "mirror": "{spelled}"{end}' if end == "\n}\n" else f"{spelled}\n{end}"
        (folder / name).write_text(text.removesuffix(end) + more)
    (mirror / "tiny/config.toml").write_text((folder / "config.toml").read_text())
    assert len(with_secret(base)) == 5 and len(with_secret(mirror)) == 1
    again = call(base, "entrypoint.py", *train)
    assert again.returncode == 0 and again.stderr.count("they are removed") == 1 and SECRET not in again.stderr, again.stderr
    assert "is finished" in again.stderr, again.stderr
    assert with_secret(base) == with_secret(mirror) == []
    assert json.loads((folder / "plan.json").read_text())["mirror"].startswith("memory://***@x/y")
    third = call(base, "entrypoint.py", *train)
    assert third.returncode == 0 and "removed" not in third.stderr, third.stderr


@pytest.mark.long
def test_a_run_from_a_mirror_of_an_older_version_keeps_no_password(tmp_path: Path) -> None:
    mirror, text = tmp_path / "mirror", sentences(tmp_path / "text.txt")
    train = flags(text, mirror=f"file://{mirror}")
    assert call(tmp_path / "first", "entrypoint.py", *train).returncode == 0
    record = mirror / "tiny/config.toml"
    record.write_text(record.read_text().replace(f'"file://{mirror}"', f'"memory://user:{SECRET}@x/y"'))
    fetched = call(tmp_path / "second", "entrypoint.py", *train)
    assert fetched.returncode == 0 and SECRET not in fetched.stderr, fetched.stderr
    assert with_secret(tmp_path) == []
