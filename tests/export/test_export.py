"""Exported folders and files, read by the libraries that they are for."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nanochat import paths
from nanochat.data.embedded import corpus
from nanochat.errors import DataError, NanochatError, UsageError
from nanochat.export import check, folder, gguf_file, importer, parity
from nanochat.runs.record import TrainedModel, open_model
from nanochat.tokenizer.conversation import Conversation
from tests.export.random_model import random_model
from tests.export.words import WORDS

transformers = pytest.importorskip("transformers")


def written_text(rng: random.Random) -> str:
    return "".join(rng.choice(WORDS) if rng.random() < 0.8 else chr(rng.randint(32, 0x2FFF)) for _ in range(rng.randint(1, 15)))


def conversation(rng: random.Random) -> Conversation:
    found: Conversation = [{"role": "system", "content": written_text(rng)}] if rng.random() < 0.3 else []
    for turn in range(rng.randint(1, 6)):
        content: Any = written_text(rng)
        if turn % 2 and rng.random() < 0.4:
            kinds = ("text", "python", "python_output", "text")
            content = [{"type": kind, "text": written_text(rng)} for kind in kinds]
        found.append({"role": ("user", "assistant")[turn % 2], "content": content})
    return found


@pytest.fixture(scope="module", params=[("nanochat", 4), ("nanochat", 8), ("qwen3", 4), ("qwen3", 8)], ids=str)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedModel, Path, Any, Any]:
    architecture, depth = request.param
    ours, out = random_model(architecture, depth), tmp_path_factory.mktemp("export") / "folder"
    patch = pytest.MonkeyPatch()
    patch.setenv("NANOCHAT_BASE_DIR", str(out.parent / "base"))
    folder.write_folder(ours, out)
    patch.undo()
    assert (out / folder.MODELLING.name).exists() == (architecture == "nanochat")
    return (
        ours,
        out,
        check.load_folder(out, own_code=architecture == "nanochat"),
        transformers.AutoTokenizer.from_pretrained(out, trust_remote_code=architecture == "nanochat"),
    )


Exported = tuple[TrainedModel, Path, Any, Any]


@pytest.mark.long
@torch.inference_mode()
def test_logits_on_200_prompts(exported: Exported) -> None:
    ours, _, theirs, _ = exported
    model, rng, worst = ours.model, random.Random(1), 0.0
    for number in range(200):
        length = 500 if number % 20 == 0 else rng.randint(1, 60)  # some beyond the window
        ids = torch.tensor([[rng.randrange(ours.tokenizer.vocab_size) for _ in range(length)]])
        worst = max(worst, float((model.logits(model(ids)) - theirs(ids).logits).abs().max()))
    print(f"largest difference {worst:.1e}")
    assert worst < 1e-4


@pytest.mark.long
@torch.inference_mode()
def test_greedy_generation_with_a_cache(exported: Exported) -> None:
    ours, _, theirs, _ = exported
    rng = random.Random(2)
    for length in (2, 40):
        rows = [[rng.randrange(ours.tokenizer.vocab_size) for _ in range(length)] for _ in range(25)]
        ids = torch.tensor(rows)  # without a mask, transformers takes what equals the padding for padding
        options = {"max_new_tokens": 200, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        made = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert made[:, length:].tolist() == parity.greedy(ours.model, rows, 200)


@pytest.mark.long
@torch.inference_mode()
def test_a_padded_batch_and_beams_go_on_as_one_row_does(exported: Exported) -> None:
    ours, _, theirs, _ = exported
    rng = random.Random(3)
    rows = [[rng.randrange(ours.tokenizer.vocab_size) for _ in range(length)] for length in (3, 17, 150)]
    ids = torch.tensor([[0] * (150 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (150 - len(row)) + [1] * len(row) for row in rows])
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    made = theirs.generate(ids, attention_mask=mask, **options)[:, 150:].tolist()
    assert made == [parity.greedy(ours.model, [row], 20)[0] for row in rows]
    beams = [theirs.generate(torch.tensor([rows[1]]), num_beams=3, use_cache=use, **options).tolist() for use in (True, False)]
    assert beams[0] == beams[1]


@pytest.mark.long
def test_text_and_template_yield_our_ids(exported: Exported) -> None:
    ours, _, _, theirs = exported
    tokenizer, rng = ours.tokenizer, random.Random(4)
    for _ in range(1000):
        text = written_text(rng)
        assert theirs(text)["input_ids"] == tokenizer.encode(text), repr(text)
        assert theirs.decode(tokenizer.encode(text)) == text
        talk = conversation(rng)
        whole = theirs.apply_chat_template(talk, tokenize=True, return_dict=False)
        assert whole == tokenizer.render(talk)[0], talk
        if talk[-1]["role"] == "user":
            asked = theirs.apply_chat_template(talk, tokenize=True, add_generation_prompt=True, return_dict=False)
            assert asked == tokenizer.render_prompt(talk, 100_000)[0], talk
    with pytest.raises(Exception, match="alternate"):
        theirs.apply_chat_template([{"role": "assistant", "content": "x"}])


def test_transformers_pipeline(exported: Exported) -> None:
    ours, out, _, _ = exported
    pipeline = transformers.pipeline("text-generation", model=str(out), trust_remote_code=True)
    answer = pipeline([{"role": "user", "content": "你是誰？"}], max_new_tokens=8, do_sample=False)[0]["generated_text"][-1]
    ids, _ = ours.tokenizer.render_prompt([{"role": "user", "content": "你是誰？"}], 500)
    new = parity.greedy(ours.model, [ids], 8)[0]
    stop = next((i for i, id in enumerate(new) if id in (ours.tokenizer.bos, ours.tokenizer.special("<|assistant_end|>"))), 8)
    expected = ours.tokenizer.decode([id for id in new[:stop] if id < ours.tokenizer.bos])
    assert answer == {"role": "assistant", "content": expected}


def test_a_folder_comes_back_as_a_run(exported: Exported, base: Path) -> None:
    ours, out, _, _ = exported
    assert importer.import_folder(out, "back") == "back"
    again = open_model("back")
    assert (again.tokenizer.id, again.model.config, again.checkpoint.step) == (ours.tokenizer.id, ours.model.config, 7)
    ids = torch.tensor([[1, 2, 3, 5, 8]])
    with torch.inference_mode():
        assert torch.equal(again.model.logits(again.model(ids)), ours.model.logits(ours.model(ids)))
    with pytest.raises(UsageError, match="exists"):
        importer.import_folder(out, "back")
    with pytest.raises(UsageError, match="not a directory name"):
        importer.import_folder(out, "../back")
    assert list(paths.runs_dir().iterdir()) == [paths.run_dir("back")]


def test_damage_is_refused(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ours = random_model("qwen3", 1)
    folder.write_folder(ours, out)
    with pytest.raises(UsageError, match="exists"):
        folder.write_folder(ours, out)
    with pytest.raises(DataError, match="there is no directory"):
        importer.import_folder(tmp_path / "nothing")
    weights = out / folder.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match="is not an export"):
        importer.import_folder(out)


def test_check_proves_parity_and_finds_a_difference(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for architecture in ("nanochat", "qwen3"):
        ours, out = random_model(architecture, 2), tmp_path / architecture
        folder.write_folder(ours, out)
        check.check(ours, "hf", out)
        assert "greedy answers equal" in capsys.readouterr().err
        with torch.no_grad():
            ours.model.blocks[1].attn.k.weight[3] += 1
        with pytest.raises(Exception, match=r"differ|another way"):
            check.check(ours, "hf", out)


def test_greedy_answers_may_fill_the_context(base: Path) -> None:
    """As those of a check whose prompts are all too long: the begin token, and as many new ones as there is room for."""
    model = random_model("qwen3", 2).model
    context = model.config.max_seq_len
    assert len(parity.greedy(model, [[0]], context)[0]) == context


def test_gguf_holds_the_model_and_its_vocabulary(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gguf = pytest.importorskip("gguf")
    ours, out = random_model("qwen3", 2), tmp_path / "gguf"
    gguf_file.write_gguf(ours, out)
    check.check(ours, "gguf", out)
    assert "bit for bit" in capsys.readouterr().err
    fields = {name: field.contents() for name, field in gguf.GGUFReader(out / gguf_file.GGUF).fields.items()}
    assert (fields["general.architecture"], fields["tokenizer.ggml.pre"]) == ("qwen3", "qwen2")
    assert fields["tokenizer.ggml.tokens"][-9] == "<|bos|>" and len(fields["tokenizer.ggml.tokens"]) == ours.tokenizer.vocab_size
    assert fields["tokenizer.ggml.eos_token_id"] == ours.tokenizer.special("<|assistant_end|>")
    assert "add_generation_prompt" in fields["tokenizer.chat_template"]
    assert "stop <|assistant_end|>" in (out / "Modelfile").read_text()


@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_a_quantized_gguf_answers_as_the_run(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], outtype: str) -> None:
    gguf = pytest.importorskip("gguf")
    ours, out = random_model("qwen3", 2), tmp_path / "gguf"
    gguf_file.write_gguf(ours, out, outtype)
    check.check(ours, "gguf", out)
    assert "greedy answers equal" in capsys.readouterr().err
    reader = gguf.GGUFReader(out / gguf_file.GGUF)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert {kind for name, kind in kinds.items() if "norm" in name} == {"F32"}
    assert {kind for name, kind in kinds.items() if "norm" not in name} == {outtype.upper()}
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType[gguf_file.OUTTYPES[outtype]]
    assert outtype in (out / "README.md").read_text()
    with torch.no_grad():
        ours.model.blocks[1].attn.o.weight.mul_(3)
    with pytest.raises(NanochatError, match="perplexity"):
        check.check(ours, "gguf", out)


def test_what_float16_cannot_hold_is_not_written(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    ours = random_model("qwen3", 1)
    with torch.no_grad():
        ours.model.blocks[0].mlp.down.weight[0, 0] = 1e6
    with pytest.raises(UsageError, match="float16"):
        gguf_file.write_gguf(ours, tmp_path / "out", "f16")
    assert not (tmp_path / "out").exists()


def test_gguf_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="GGUF does not support this model") as caught:
        gguf_file.write_gguf(random_model("nanochat", 1), tmp_path / "out")
    assert "--architecture portable" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_the_card_names_the_licence_of_the_text(base: Path, tmp_path: Path) -> None:
    from nanochat.config import build_config
    from nanochat.runs.record import Record

    data = corpus.build()
    Record(build_config("cpu", overrides={"run": "tiny"}), data.folder.name, ("x",), "t").write()
    folder.write_folder(random_model("nanochat", 1), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card and "licence of that text | MIT" in card


def test_the_card_tells_language_datasets_scores_samples_and_limits(base: Path, tmp_path: Path) -> None:
    from nanochat.config import build_config
    from nanochat.evaluation.results import SUMMARY, write_part
    from nanochat.runs.record import Record

    def card(out: str, **values: Any) -> tuple[dict[str, Any], str]:
        Record(build_config("cpu", overrides={"run": "tiny"} | values), "folder", ("x",), "t").write()
        folder.write_folder(random_model("nanochat", 1), tmp_path / out)
        head, text = (tmp_path / out / "README.md").read_text().removeprefix("---\n").split("---\n", 1)
        return yaml.safe_load(head), text

    head, text = card("plain")
    assert head["language"] == ["en", "zh"] and "datasets" not in head and "## Limits" in text and "## Scores" not in text
    row = {"untrained": 0.0, "trained": 0.985, "items": 80}
    samples = [{"prompt": "Who are you?", "answer": "I am | **small**\n# not a heading"}]
    write_part(paths.run_dir("tiny"), SUMMARY, {"scores": row | {"by_skill": {"addition": row}}, "bpb": 0.52, "samples": samples})
    head, text = card("scored", dataset="climbmix")
    assert head["language"] == ["en"] and head["datasets"] == ["karpathy/climbmix-400b-shuffle"]
    assert "| addition | 0.0% | 98.5% | 80 |" in text and "| **all** | 0.0% | 98.5% | 80 |" in text and "0.520" in text
    assert "    > Who are you?\n    I am | **small**\n    # not a heading\n" in text
    head, _ = card("own", data="/texts")
    assert "language" not in head and "datasets" not in head
