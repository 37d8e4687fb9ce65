"""Downloads from a real server on this machine: what comes is right, whatever the server does on the way."""

import email.utils
import io
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from nanochat import dataset as command
from nanochat.data.published.sets import ensure_identity, ensure_task
from nanochat.data.published.shards import ensure_shards
from nanochat.data.shards import open_dataset, shard_name, texts, verify
from nanochat.errors import DataError, UsageError
from nanochat.hub import addresses as hub
from nanochat.hub import download
from nanochat.hub.assets import ensure_bundle
from nanochat.paths import dataset_dir
from tests.fake_hub import Hub, parquet

pytestmark = pytest.mark.long


CLIMBMIX = "karpathy/climbmix-400b-shuffle"


@pytest.fixture
def server(base, monkeypatch):
    """A hub with five shards of climbmix and its validation shard; waiting costs nothing."""
    hub_ = Hub()
    names = [*map(shard_name, range(5)), shard_name(6542)]
    hub_.files[CLIMBMIX] = {"README.md": b"a card"} | {name: parquet(name) for name in names}
    monkeypatch.setenv("HF_ENDPOINT", hub_.url + "/")
    monkeypatch.setenv("NANOCHAT_ASSET_URL", hub_.url + "/assets/")
    monkeypatch.setattr(hub, "FIRST_WAIT", 0.001)
    yield hub_
    hub_.server.shutdown()
    hub_.server.server_close()


def names(dataset) -> list[str]:
    return [shard.path.name for shard in dataset.training]


def no_leftovers(folder: Path) -> bool:
    return not list(folder.rglob(".tmp-*"))


def test_shards_and_the_validation_shard(server, capsys):
    dataset = ensure_shards("climbmix", 3)
    assert names(dataset) == [shard_name(0), shard_name(1), shard_name(2)] and dataset.validation.path.name == shard_name(6542)
    assert sorted(server.fetched()) == sorted([*names(dataset), shard_name(6542)])
    for shard in (*dataset.training, dataset.validation):
        assert shard.path.read_bytes() == server.files[CLIMBMIX][shard.path.name]
    assert open_dataset(dataset.folder) == dataset and no_leftovers(dataset.folder)
    verify(dataset)
    assert next(texts(dataset.validation))[0] == "shard_06542.parquet document 0"
    assert "no hash" not in capsys.readouterr().err


def test_nothing_is_fetched_twice(server):
    ensure_shards("climbmix", 2)
    server.requests.clear()
    assert names(ensure_shards("climbmix", 2)) == [shard_name(0), shard_name(1)] and server.requests == []
    assert len(ensure_shards("climbmix", 4).training) == 4
    assert sorted(server.fetched()) == [shard_name(2), shard_name(3)]
    server.requests.clear()
    assert names(ensure_shards("climbmix", 1)) == [shard_name(0)] and server.requests == []
    assert len(open_dataset(dataset_dir("climbmix")).training) == 4


def test_a_damaged_shard_is_fetched_again(server):
    dataset = ensure_shards("climbmix", 2)
    dataset.training[1].path.write_bytes(b"short")
    dataset.validation.path.unlink()
    server.requests.clear()
    assert ensure_shards("climbmix", 2) == dataset
    assert sorted(server.fetched()) == [shard_name(1), shard_name(6542)]


@pytest.mark.parametrize(
    "fault", ["cut", "short", "flip", (500, {}), (429, {"Retry-After": "0"}), (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})]
)
def test_faults_that_pass_are_survived(server, fault):
    server.faults = {shard_name(0): [fault, fault], "tree": [(502, {})]}
    dataset = ensure_shards("climbmix", 1)
    verify(dataset)
    assert dataset.training[0].path.read_bytes() == server.files[CLIMBMIX][shard_name(0)]
    assert server.fetched().count(shard_name(0)) == 3 and no_leftovers(dataset.folder)


@pytest.mark.parametrize(("fault", "tried"), [("cut", "6 attempts"), ("flip", "4 whole files"), ((503, {}), "6 attempts")])
def test_a_fault_that_stays_is_one_clear_error(server, fault, tried):
    server.faults = {shard_name(1): [fault] * 100}
    with pytest.raises(DataError) as caught:
        ensure_shards("climbmix", 2)
    assert shard_name(1) in caught.value.message and tried in caught.value.message
    assert "nanochat download --dataset climbmix -n 2" in caught.value.hint and "HF_ENDPOINT" in caught.value.hint
    folder = dataset_dir("climbmix")
    assert not (folder / shard_name(1)).exists() and no_leftovers(folder)
    server.faults = {}
    assert len(ensure_shards("climbmix", 2).training) == 2


def test_a_refusal_is_not_retried(server):
    del server.files[CLIMBMIX][shard_name(1)]
    with pytest.raises(DataError, match="404"):
        ensure_shards("climbmix", 2)
    assert server.fetched().count(shard_name(1)) == 1


def test_without_hashes_size_only_and_a_warning(server, capsys):
    server.hashes = False
    server.faults = {shard_name(0): ["short"]}
    assert ensure_shards("climbmix", 1).training[0].path.read_bytes() == server.files[CLIMBMIX][shard_name(0)]
    assert "warning: no hash is published" in capsys.readouterr().err


def test_a_mirror_without_a_list_will_do(server, capsys):
    server.listing = False
    assert len(ensure_shards("climbmix", 2).training) == 2
    assert "checked by size" in capsys.readouterr().err


def test_no_server_at_all(base, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "FIRST_WAIT", 0.001)
    with pytest.raises(DataError) as caught:
        ensure_shards("climbmix", 2)
    assert "127.0.0.1:9" in caught.value.message and "` again" in caught.value.hint
    monkeypatch.setenv("HF_ENDPOINT", "nonsense")
    with pytest.raises(DataError, match="is not an address"):
        ensure_shards("climbmix", 2)


def put(server, folder: Path, *indexes: int) -> None:
    folder.mkdir(parents=True)
    for index in indexes:
        (folder / shard_name(index)).write_bytes(server.files[CLIMBMIX].get(shard_name(index)) or parquet("x"))


def test_shards_put_by_hand_need_no_network(server, capsys):
    put(server, dataset_dir("climbmix"), 0, 1, 2, 3, 4)
    dataset = ensure_shards("climbmix", 2)
    assert dataset.validation.path.name == shard_name(4) and names(dataset) == [shard_name(0), shard_name(1)]
    assert server.requests == [] and "shard_00004.parquet is kept for validation" in capsys.readouterr().err
    # It stays the validation shard, also when the official one could be had.
    assert ensure_shards("climbmix", 4).validation.path.name == shard_name(4) and server.requests == []
    assert len(open_dataset(dataset_dir("climbmix")).training) == 4


def test_shards_put_by_hand_with_the_official_validation(server):
    put(server, dataset_dir("climbmix"), 0, 1, 6542)
    dataset = ensure_shards("climbmix", 2)
    assert dataset.validation.path.name == shard_name(6542) and server.requests == []


def test_too_few_by_hand_are_completed(server):
    put(server, dataset_dir("climbmix"), 0, 1)
    dataset = ensure_shards("climbmix", 3)
    assert dataset.validation.path.name == shard_name(6542) and sorted(server.fetched()) == [shard_name(2), shard_name(6542)]


def test_upstreams_folder_is_used(server, base, capsys):
    put(server, base / "base_data_climbmix", 0, 1, 6542)
    dataset = ensure_shards("climbmix", 2)
    assert dataset.folder == dataset_dir("climbmix") and server.requests == []
    assert dataset.training[0].path.samefile(base / "base_data_climbmix" / shard_name(0))
    assert "adopted from" in capsys.readouterr().err


def test_any_dataset_of_the_hub(server, capsys):
    server.files["some/Corpus"] = {f"data/train-{i}.parquet": parquet(str(i)) for i in range(3)} | {"x.txt": b"not this"}
    dataset = ensure_shards("hf:some/Corpus", 1)
    assert dataset.validation.path.name == "data__train-2.parquet" and names(dataset) == ["data__train-0.parquet"]
    assert "data__train-2.parquet, the last file, is kept for validation" in capsys.readouterr().err
    server.requests.clear()
    ensure_shards("hf:some/Corpus", 1)
    assert server.requests == []
    with pytest.raises(UsageError, match="2 training shards"):
        ensure_shards("hf:some/Corpus", 5)


@pytest.mark.parametrize(
    "path", ["../evil.parquet", "/etc/evil.parquet", "a/../../evil.parquet", "a\\evil.parquet", "a//b.parquet", "C:evil.parquet"]
)
def test_names_that_lead_elsewhere_are_refused(server, base, path):
    server.files["some/corpus"] = {path: parquet("a"), "b.parquet": parquet("b")}
    with pytest.raises(DataError, match="unsafe name"):
        ensure_shards("hf:some/corpus", 1)
    assert not list(base.rglob("*.parquet"))


def test_a_dataset_without_text(server):
    server.files["some/corpus"] = {f"{i}.parquet": parquet("", title=["a"], summary=["b"], id=[1]) for i in range(2)}
    with pytest.raises(DataError, match="title, summary, id") as caught:
        ensure_shards("hf:some/corpus", 1)
    assert "hf:OWNER/NAME:COLUMN" in caught.value.hint
    with pytest.raises(DataError, match="no column 'text'"):
        ensure_shards("hf:some/corpus:text", 1)


@pytest.mark.parametrize(
    ("columns", "name", "column"),
    [
        ({"title": ["t"], "content": ["a b"], "id": [1]}, "hf:some/corpus", "content"),
        ({"story": ["a b"], "id": [1]}, "hf:some/corpus", "story"),
        ({"title": ["t"], "summary": ["a b"]}, "hf:some/corpus:summary", "summary"),
        ({"text": ["t"], "content": ["a b"]}, "hf:some/corpus:content", "content"),
    ],
)
def test_the_column_of_text_is_found_or_named(server, columns, name, column):
    server.files["some/corpus"] = {f"{i}.parquet": parquet("", **columns) for i in range(2)}
    dataset = ensure_shards(name, 1)
    assert dataset.training[0].column == column and list(texts(dataset.training[0])) == [["a b"]]
    assert open_dataset(dataset.folder) == dataset  # the manifest knows it too
    assert (dataset.training[0].content == dataset.training[0].sha256) == (column == "text")
    server.requests.clear()
    assert ensure_shards(name, 1) == dataset and server.requests == []


def test_a_set_is_never_trained_on_its_test_part(server):
    server.files["some/corpus"] = {f"{part}-{i}.parquet": parquet(part) for part in ("train", "test", "validation") for i in range(2)}
    dataset = ensure_shards("hf:some/corpus", 1)
    assert names(dataset) == ["train-0.parquet"] and dataset.validation.path.name == "train-1.parquet"


def test_the_licence_is_the_cards(server, capsys):
    server.files["some/corpus"] = {f"{i}.parquet": parquet(str(i)) for i in range(3)}
    server.assets["/api/datasets/some/corpus"] = json.dumps({"cardData": {"license": "cc-by-sa-4.0"}}).encode()
    assert ensure_shards("hf:some/corpus", 1).licence == "cc-by-sa-4.0"
    assert "licence: cc-by-sa-4.0" in capsys.readouterr().err
    server.assets.clear()
    assert ensure_shards("hf:some/corpus", 2).licence == "cc-by-sa-4.0"  # what was once known stays known
    server.files["other/corpus"] = server.files["some/corpus"]
    assert ensure_shards("hf:other/corpus", 1).licence == hub.UNKNOWN_LICENCE


def test_a_mirror_takes_over(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NANOCHAT_MIRRORS", f"http://127.0.0.1:9/other, {server.url}/")
    verify(ensure_shards("climbmix", 2))
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/nothing-here")  # which refuses, instead of being silent
    verify(ensure_shards("climbmix", 4))


def test_the_token_goes_to_the_hub_alone(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    ensure_shards("climbmix", 1)
    assert set(server.tokens) == {"Bearer hf_secret"}
    server.tokens.clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NANOCHAT_MIRRORS", server.url)
    server.assets["/assets/identity_conversations.jsonl"] = IDENTITY
    ensure_shards("climbmix", 2)
    ensure_identity()
    assert set(server.tokens) == {None}


def test_two_downloaders_in_one_folder(server, base):
    """The second waits, and finds what the first has brought: nothing is fetched twice."""
    code = "import sys; from nanochat.dataset import main; sys.exit(main(['-n', '4']))"
    root = Path(__file__).parents[3]
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0], [process.stderr.read() for process in both]
    assert len(server.fetched()) == 5
    verify(open_dataset(dataset_dir("climbmix")))


def test_the_evaluation_bundle(server, base):
    def archive(*names):
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w") as file:
            for name in names:
                file.writestr(name, "tasks: []")
        return sink.getvalue()

    for body in (b"no archive", archive("eval_bundle/core.yaml", "eval_bundle/../../evil")):
        server.assets["/assets/eval_bundle.zip"] = body
        with pytest.raises(DataError):
            ensure_bundle()
        assert not (base / "eval_bundle").exists() and not list(base.rglob("evil"))
    server.assets["/assets/eval_bundle.zip"] = archive("eval_bundle/core.yaml", "eval_bundle/eval_data/a.jsonl", "__MACOSX/x")
    folder = ensure_bundle()
    assert (folder / "core.yaml").read_text() == "tasks: []" and (folder / "eval_data" / "a.jsonl").exists()
    server.requests.clear()
    assert ensure_bundle() == folder and server.requests == []


@pytest.mark.parametrize("name", ["nonsense", "hf:", "hf:a", "hf:../b", "hf:a/..", "hf:a/b/c/d"])
def test_unknown_datasets(base, name):
    with pytest.raises(UsageError, match="cannot download a dataset"):
        ensure_shards(name, 1)


def test_more_shards_than_there_are(base):
    with pytest.raises(UsageError, match="6542"):
        ensure_shards("climbmix", 9999)


def test_retry_after():
    assert hub.retry_after("7") == 7
    assert 28 < hub.retry_after(email.utils.formatdate(time.time() + 30, usegmt=True)) <= 31
    assert hub.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert hub.retry_after("1e9") == hub.LONGEST_WAIT
    assert hub.retry_after("soon") is hub.retry_after(None) is hub.retry_after("nan") is None


def test_a_full_disk_is_seen_beforehand(server, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(Exception, match="are free") as caught:
        ensure_shards("climbmix", 1)
    assert caught.value.exit_code == 3


IDENTITY = b'[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I am nanochat"}]\n'


def test_identity(server, base):
    server.assets["/assets/identity_conversations.jsonl"] = IDENTITY
    assert ensure_identity() == base / "identity_conversations.jsonl" and ensure_identity().read_bytes() == IDENTITY
    assert len(server.requests) == 1


def test_identity_where_curl_left_it(server, base):
    base.mkdir()
    (base / "identity_conversations.jsonl").write_bytes(IDENTITY)
    assert ensure_identity().read_bytes() == IDENTITY and server.requests == []


def test_an_error_page_is_no_identity(server, base):
    server.assets["/assets/identity_conversations.jsonl"] = b"<Error>AccessDenied</Error>"
    with pytest.raises(DataError, match="not JSON"):
        ensure_identity()
    assert not (base / "identity_conversations.jsonl").exists()


def test_a_set_for_fine_tuning(server):
    server.files["openai/gsm8k"] = {
        "main/train-0.parquet": parquet("", question=["q"], answer=["a"]),
        "main/test-0.parquet": b"x",
        "socratic/train-0.parquet": b"x",
    }
    (path,) = ensure_task("gsm8k")
    assert path == dataset_dir("tasks") / "gsm8k" / "main__train-0.parquet"
    server.requests.clear()
    assert ensure_task("gsm8k") == [path] and server.requests == []
    path.write_bytes(b"broken")
    assert ensure_task("gsm8k")[0].stat().st_size > 6


def test_the_guides_command(server, capsys):
    assert command.main(["-n", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "2 training shards" in out and str(dataset_dir("climbmix")) in out
    assert command.main(["--verify"]) == 0 and "2 training shards" in capsys.readouterr().out
    assert command.main(["-n", "many"]) == 2 and command.main(["-n", "0"]) == 2
    assert command.main(["--dataset", "nonsense"]) == 2
    error = capsys.readouterr().err
    assert "cannot download a dataset 'nonsense'" in error and "hint: use one of: climbmix" in error
    server.files.clear()
    assert command.main(["-n", "4"]) == 4


def test_the_module_runs_and_does_not_need_torch(server, base):
    code = "import sys; from nanochat.dataset import main; code = main(['-n', '1']); assert 'torch' not in sys.modules; sys.exit(code)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 training shards and shard_06542.parquet" in done.stdout
