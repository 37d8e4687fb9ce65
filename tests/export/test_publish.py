"""`export --push` and `--mirror`: against a hub on this machine with huggingface_hub itself, and a directory."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat.errors import DataError, UsageError
from nanochat.export import export, metadata
from nanochat.export.export import ExportRequest, write_export
from nanochat.export.folder import write_folder
from nanochat.export.publish import ExportMirror, Push
from nanochat.runs import record as runs
from tests.export.random_model import random_model
from tests.fake_hub import Hub, card_faults

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")
TOKEN = "hf_secretsecret"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    yield hub
    hub.server.shutdown()


@pytest.fixture
def opened(base: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    found = random_model("qwen3", 1)
    monkeypatch.setattr(runs, "open_model", lambda run: found)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_an_export_is_pushed_and_mirrored(opened: Any, hub: Hub, tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    request = ExportRequest(to, out, outtype="q8_0" if to == "gguf" else "f32", push="hf:alice/my-model", mirror=f"file://{tmp_path}/nas")
    places = write_export(request)
    assert places == [str(out), f"file://{tmp_path}/nas/out", f"{hub.url}/alice/my-model/commit/{'1' * 40}"]
    assert hub.models["alice/my-model"] == contents(out) == contents(tmp_path / "nas" / "out")
    assert hub.private == {"alice/my-model"} and len(hub.commits) == 1
    assert [f"Bearer {TOKEN}"] * 2 == [token for token in hub.tokens if token][:2]
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err and "new private repository" in said.err


def test_a_push_is_prepared_in_a_new_process(hub: Hub) -> None:
    """huggingface_hub's modules are imported when they are named, and here no test has imported them."""
    code = "from nanochat.export.publish import Push; print(Push('hf:alice/my-model').repo)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "alice/my-model\n", done.stderr


def test_a_second_push_is_a_commit_of_the_same_repository(
    opened: Any, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.models["alice/my-model"] = {"notes.txt": b"mine"}
    write_export(ExportRequest("hf", tmp_path / "out", push="hf:alice/my-model"))
    assert hub.models["alice/my-model"]["notes.txt"] == b"mine" and "model.safetensors" in hub.models["alice/my-model"]
    assert "private" not in capsys.readouterr().err


def test_what_cannot_be_pushed_is_said_before_the_model_is_loaded(
    base: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in ("alice/model", "hf:alice", "hf:a/b/c", "hf:../x", "hf:a/b.git", "hf:a b/c"):
        with pytest.raises(UsageError, match="is not hf:OWNER/NAME"):
            write_export(ExportRequest("hf", tmp_path / "out", push=target))
    with pytest.raises(UsageError, match="--outtype is for GGUF"):
        write_export(ExportRequest("hf", tmp_path / "out", outtype="f16"))
    with pytest.raises(UsageError, match="unknown value in --outtype"):
        write_export(ExportRequest("gguf", tmp_path / "out", outtype="q4_0"))
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    with pytest.raises(UsageError, match="not https"):
        write_export(ExportRequest("hf", tmp_path / "out", push="hf:alice/model"))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UsageError, match="HF_TOKEN is not set"):
        write_export(ExportRequest("hf", tmp_path / "out", push="hf:alice/model"))
    assert not hub.requests and not (tmp_path / "out").exists()


def test_a_refused_or_unreachable_hub_leaves_the_export(opened: Any, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.refused = 403
    with pytest.raises(UsageError, match="refuses to write alice/model") as caught:
        write_export(ExportRequest("hf", tmp_path / "out", push="hf:alice/model"))
    assert f"hf upload alice/model {tmp_path}/out" in caught.value.hint and (tmp_path / "out" / "config.json").exists()
    assert TOKEN not in caught.value.message + caught.value.hint
    hub.refused = 500
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with pytest.raises(DataError):
        Push("hf:alice/model").send(tmp_path / "out")


def test_a_mirror_is_never_overwritten_and_an_unfinished_copy_is_completed(opened: Any, tmp_path: Path) -> None:
    (tmp_path / "nas" / "out").mkdir(parents=True)
    (tmp_path / "nas" / "out" / "config.json").write_text("mine")
    request = ExportRequest("hf", tmp_path / "out", mirror=f"file://{tmp_path}/nas")
    with pytest.raises(UsageError, match="exists already"):
        write_export(request)
    assert not (tmp_path / "out").exists() and (tmp_path / "nas" / "out" / "config.json").read_text() == "mine"
    (tmp_path / "nas" / "out" / "UNFINISHED").touch()
    write_export(request)
    assert contents(tmp_path / "nas" / "out") == contents(tmp_path / "out")
    with pytest.raises(UsageError, match="exists already"):
        ExportMirror(f"file://{tmp_path}/nas", tmp_path / "out")


def test_the_cards_metadata_is_the_hubs(opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"untrained": 0.0, "trained": 0.985, "items": 80}
    summary = {"scores": row | {"by_skill": {"addition": row}}, "bpb": 0.52, "samples": []}
    monkeypatch.setattr(metadata, "summary_of", lambda run: summary)
    licences = {
        "MIT": {"license": "mit"},
        "ODC-By 1.0": {"license": "odc-by"},
        "unknown": {"license": "unknown"},
        "the user's own text": {"license": "other", "license_name": "the-user-s-own-text"},
        "MIT; CC-BY-4.0": {"license": "other", "license_name": "mit-cc-by-4.0"},
        "授權": {"license": "unknown"},
    }
    for number, (text, expected) in enumerate(licences.items()):
        monkeypatch.setattr(metadata, "licence_of", lambda opened, text=text: text)
        write_folder(opened, tmp_path / str(number))
        content = (tmp_path / str(number) / "README.md").read_text()
        assert card_faults(content) == []
        card = huggingface_hub.ModelCard(content)
        assert {name: value for name, value in card.data.to_dict().items() if name.startswith("license")} == expected
        assert [(one.dataset_name, one.metric_value) for one in card.data.eval_results] == [
            ("held-out questions: addition", 0.985),
            ("held-out questions", 0.985),
            ("held-out text", 0.52),
        ]
        assert huggingface_hub.ModelCardData(**card.data.to_dict()).to_yaml()
    assert export.OUTTYPES.keys() == {"f32", "f16", "q8_0"}
