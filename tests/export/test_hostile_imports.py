"""200 mutated folders, steps, mirrors, manifests and archives: one clear error each, nothing outside touched, little time and memory."""

import contextlib
import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat import paths
from nanochat.data.rows import RowCache
from nanochat.data.shards import open_dataset, verify, write_dataset
from nanochat.errors import DataError, UsageError
from nanochat.export import folder, importer
from nanochat.hub.archive import extract_zip
from nanochat.pipeline.mirrored import fetch
from nanochat.runs import checkpoint
from nanochat.runs.mirror import Mirror
from nanochat.runs.record import open_model
from nanochat.runs.step_files import seal
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.export.random_model import random_model
from tests.hostile import Attack, change_bytes, change_file

SEEDS = st.integers(0, 2**32 - 1)
MANY = settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported folder (`export`), a data directory with the run of it (`base`), and its mirror (`mirror`)."""
    place = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(place / "base"))
        opened = random_model("nanochat", 2)
        folder.write_folder(opened, place / "export")
        importer.import_folder(place / "export", "tiny")
        (place / "base" / "runs" / "tiny" / "metrics.jsonl").write_text('{"stage": "sft", "step": 7}\n')
        (place / "base" / "runs" / "tiny" / "config.toml").write_text(RECORD)
        Mirror(f"file://{place / 'mirror'}", "tiny").push(place / "base" / "runs" / "tiny" / "sft" / "step_000007", keep=1)
    return place


RECORD = 'run = "tiny"\n[frozen]\ndataset = "embedded"\nshards = ["shard_00000.parquet"]\ntokenizer = "abc"\nconversations = ""\n'


def attack(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch, good: Path) -> Attack:
    made = Attack(tmp_path_factory.mktemp("attack") / "place", good)
    patch.setenv("NANOCHAT_BASE_DIR", str(made.place / "base"))
    return made


def import_changed(made: Attack, names: list[str], rng: random.Random, run: str | None = None) -> bool:
    """Import a fresh copy of the directory with one of the files `names` changed; whether that was refused, whole."""
    received = made.fresh()
    shutil.rmtree(made.place / "base", ignore_errors=True)
    change_file(received / rng.choice(names), rng, made.outside)
    refused = made.run(lambda: importer.import_folder(received, run))
    if refused:
        assert not paths.runs_dir().exists() or list(paths.runs_dir().iterdir()) == []  # whole or not at all
    return bool(refused)


def test_an_imported_folder(good: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    made = attack(tmp_path_factory, monkeypatch, good / "export")
    names = [folder.ABOUT] * 3 + [folder.WEIGHTS, "tokenizer.json"]

    @MANY
    @given(SEEDS)
    def try_one(seed: int) -> None:
        import_changed(made, names, random.Random(seed))

    try_one()
    assert made.refused > 120 and made.taken


def reseal(step: Path) -> None:
    """Give a step's manifest the sizes and hashes of its files, as whoever has changed them would; nothing where it is none any more."""
    if not (step / "manifest.json").is_file() or (step / "manifest.json").stat().st_size > 1 << 20:
        return
    try:
        manifest = json.loads((step / "manifest.json").read_text())
        for name, entry in manifest["files"].items():
            if (step / name).is_file() and not (step / name).is_symlink() and (step / name).stat().st_size < 1 << 30:
                entry |= checkpoint._entry(step / name)
        manifest["sha256"] = seal(manifest)
        (step / "manifest.json").unlink()
        (step / "manifest.json").write_text(json.dumps(manifest))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return


def test_a_step_of_a_run(good: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    made = attack(tmp_path_factory, monkeypatch, good / "base")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(made.received))

    @MANY
    @given(SEEDS)
    def try_one(seed: int) -> None:
        rng = random.Random(seed)
        step = made.fresh() / "runs" / "tiny" / "sft" / "step_000007"
        change_file(step / rng.choice(["meta.json", "meta.json", "manifest.json", "model.safetensors"]), rng, made.outside)
        reseal(step)
        made.run(lambda: open_model("tiny"))

    try_one()
    assert made.refused > 120


def test_a_mirror(good: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    made = attack(tmp_path_factory, monkeypatch, good / "mirror")

    @MANY
    @given(SEEDS)
    def try_one(seed: int) -> None:
        rng, received = random.Random(seed), made.fresh()
        shutil.rmtree(made.place / "base", ignore_errors=True)
        path = rng.choice(sorted(path for path in received.rglob("*") if path.is_file()))
        change_file(path, rng, made.outside)
        if path.parent.name.startswith("step_"):
            reseal(path.parent)
        made.run(lambda: fetch(f"file://{received}", "tiny"))

    try_one()
    assert made.refused and made.taken


def test_a_datasets_manifest(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path_factory.mktemp("dataset")
    written = write_dataset(
        place / "data", name="x", source="a test", licence="MIT", training=["some text"] * 50, validation=["held out"], shard_bytes=400
    )
    tokenizer = Tokenizer.train(["some text"], 300)
    made = attack(tmp_path_factory, monkeypatch, written.folder)

    def use() -> None:
        dataset = open_dataset(made.received)
        cache = RowCache(tokenizer, 8, ahead=False)
        for shard in dataset.training:
            cache.rows(shard)
        verify(dataset)

    @MANY
    @given(SEEDS)
    def try_one(seed: int) -> None:
        rng = random.Random(seed)
        made.fresh()
        shutil.rmtree(made.place / "base", ignore_errors=True)
        change_file(made.received / rng.choice(["manifest.json"] * 3 + ["shard_00000.parquet"]), rng, made.outside)
        made.run(use)

    try_one()
    assert made.refused > 80


def test_a_bundle(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    place = tmp_path_factory.mktemp("bundle")
    with zipfile.ZipFile(place / "eval_bundle.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(5):
            file.writestr(f"eval_bundle/some/{number}", f"row {number}\n" * 100)
    made = attack(tmp_path_factory, monkeypatch, place)
    names = [
        "eval_bundle//{}/x",
        "eval_bundle/../../x",
        "eval_bundle/../outside/secret",
        "eval_bundle/some",
        "eval_bundle/a\\..\\b",
        "/x",
        "..",
    ]

    @MANY
    @given(SEEDS)
    def try_one(seed: int) -> None:
        rng, archive = random.Random(seed), made.fresh() / "eval_bundle.zip"
        shutil.rmtree(made.place / "base", ignore_errors=True)
        if rng.random() < 0.5:
            archive.write_bytes(change_bytes(archive.read_bytes(), rng))
        else:
            with zipfile.ZipFile(archive, "a") as file:
                entry = zipfile.ZipInfo(rng.choice(names).format(made.outside))
                entry.external_attr = rng.choice([0, 0o120777 << 16, 0o100644 << 16, 0o010644 << 16])
                file.writestr(entry, rng.choice([b"evil", str(made.outside).encode()]))
        if made.run(lambda: extract_zip(archive, paths.base_dir() / "eval_bundle", "eval_bundle", 10_000)):
            assert not paths.base_dir().exists() or list(paths.base_dir().iterdir()) == []

    try_one()
    assert made.refused and made.taken


def test_a_foreign_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from tests.export.foreign_model import write_qwen3

    place = tmp_path_factory.mktemp("foreign") / "good"
    write_qwen3(place, "grouped", shards=True)
    made = attack(tmp_path_factory, monkeypatch, place)
    shard = sorted(path.name for path in place.glob("model-*.safetensors"))[0]
    names = ["config.json", "config.json", "tokenizer.json", "model.safetensors.index.json", "tokenizer_config.json"]
    names += ["generation_config.json", "chat_template.jinja", "README.md", shard]

    @MANY
    @given(SEEDS)
    def try_one(seed: int) -> None:
        if not import_changed(made, names, random.Random(seed), "mine") and made.taken:
            opened = open_model("mine")  # what was taken can be used
            with contextlib.suppress(DataError, UsageError):  # a changed template may refuse a conversation, or make it too long
                opened.tokenizer.render_prompt([{"role": "user", "content": "hi"}], 100)

    try_one()
    assert made.refused > 80 and made.taken
