"""A Qwen3 of any shape as a run: parity with transformers, its tokenizer and template, training, and export again."""

import json
import random
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import paths
from nanochat.errors import DataError, UsageError
from nanochat.export import check, gguf_file, importer, metadata, parity
from nanochat.export.folder import write_folder
from nanochat.generate.engine import Engine, prompt_ids
from nanochat.runs.record import TrainedModel, open_model
from nanochat.tokenizer.files import load_tokenizer
from tests.export.random_model import TEXT

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
from tests.export.foreign_model import SHAPES, change_config, foreign_tokenizer, write_qwen3, written_text  # noqa: E402

pytestmark = pytest.mark.long
Pair = tuple[TrainedModel, Any, Path]


@pytest.fixture(scope="module", params=list(SHAPES))
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("qwen3") / request.param
    theirs = write_qwen3(folder, request.param, shards=request.param == "full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(folder.parent / "base"))
        return open_model(importer.import_folder(folder)), theirs, folder


@torch.inference_mode()
def compare(pair: Pair, prompts: int, longest: int, new: int) -> float:
    """The largest difference of logits on random prompts; asserts that greedy answers are equal."""
    ours, theirs, _ = pair
    rng, worst, rows = random.Random(1), 0.0, []
    for number in range(prompts):
        length = longest if number % 20 == 0 else rng.randint(1, 60)
        rows.append([rng.randrange(ours.model.config.vocab_size) for _ in range(length)])
        ids = torch.tensor(rows[-1:])
        worst = max(worst, float((ours.model.logits(ours.model(ids)) - theirs(ids).logits).abs().max()))
    options = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for row in rows[: prompts // 4]:
        ids = torch.tensor([row])
        made = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(row) :].tolist()
        assert made == parity.greedy(ours.model, [row], new)[0]
    return worst


def test_logits_and_greedy_answers_are_transformers_own(imported: Pair) -> None:
    assert compare(imported, prompts=12, longest=300, new=12) < 1e-4


@pytest.mark.slow
def test_200_prompts(imported: Pair) -> None:
    worst = compare(imported, prompts=200, longest=440, new=64)
    print(f"largest difference {worst:.1e}")
    assert worst < 1e-4


def test_text_and_template_yield_transformers_ids(imported: Pair) -> None:
    ours, _, folder = imported
    theirs, tokenizer, rng = transformers.AutoTokenizer.from_pretrained(folder), ours.tokenizer, random.Random(4)
    for _ in range(200):
        text = written_text(rng)
        assert theirs(text)["input_ids"] == tokenizer.encode(text), repr(text)
        talk = [{"role": role, "content": written_text(rng)} for role in ("system", "user", "assistant", "user", "assistant")]
        for message in talk[2::2]:  # a line end after the template's own would be one token with it, which no answer can give
            message["content"] = message["content"].lstrip() or "x"
        talk = talk[rng.randint(0, 1) :]
        asked = theirs.apply_chat_template(talk[:-1], tokenize=True, add_generation_prompt=True, return_dict=False)
        assert asked == tokenizer.render_prompt(talk[:-1], 100_000)[0], talk
        ids, mask = tokenizer.render(talk)
        assert ids == theirs.apply_chat_template(talk, tokenize=True, return_dict=False), talk
        learned = [theirs.decode([id]) for id, counts in zip(ids, mask, strict=True) if counts]
        assert "".join(learned).count("<|im_end|>") == 2 and learned[-1] == "<|im_end|>"


def test_text_never_yields_a_special_token(imported: Pair) -> None:
    tokenizer, rng = imported[0].tokenizer, random.Random(5)
    specials = set(tokenizer.specials.values())
    control = {tokenizer.specials[name] for name in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")}
    plain = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "user", "content": "z"}]
    expected = [id for id in tokenizer.render_prompt(plain, 100_000)[0] if id in control]
    for _ in range(200):
        text = written_text(rng, specials=True)
        ids = tokenizer.encode(text)
        assert not specials & set(ids)
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
        answer = {"role": "assistant", "content": written_text(rng, specials=True)}
        talk = [{"role": "user", "content": text}, answer, {"role": "user", "content": text}]
        assert [id for id in tokenizer.render_prompt(talk, 100_000)[0] if id in control] == expected, talk


def test_too_long_a_history_loses_its_oldest_turns(imported: Pair) -> None:
    tokenizer = imported[0].tokenizer
    talk = [{"role": "system", "content": "S"}]
    for number in range(9):
        talk += [{"role": "user", "content": f"question {number} " * 5}, {"role": "assistant", "content": "an answer"}]
    talk.pop()
    whole, _ = tokenizer.render_prompt(talk, 100_000)
    for limit in (len(whole) - 1, len(whole) // 2, len(whole) // 8):
        ids, dropped = tokenizer.render_prompt(talk, limit)
        assert len(ids) <= limit and ids == tokenizer.render_prompt([talk[0], *talk[1 + 2 * dropped :]], 100_000)[0]
        assert len(tokenizer.render_prompt([talk[0], *talk[1 + 2 * (dropped - 1) :]], 100_000)[0]) > limit
    with pytest.raises(UsageError, match="at most 10 fit"):
        tokenizer.render_prompt(talk, 10)


def test_it_answers_and_comes_back_from_an_export(imported: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _, folder = imported
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(folder.parent / "base"))
    answer = Engine(ours.model, ours.tokenizer).complete([prompt_ids(ours.tokenizer, "你是誰？")], max_tokens=8)[0]
    assert answer and ours.chats and metadata.licence_of(ours) == "apache-2.0"
    write_folder(ours, tmp_path / "out")
    check.check(ours, "hf", tmp_path / "out")
    assert "license: apache-2.0" in (tmp_path / "out" / "README.md").read_text()
    theirs, text = transformers.AutoTokenizer.from_pretrained(tmp_path / "out"), "a <|im_end|> 你是誰？"
    assert (
        theirs.apply_chat_template([{"role": "user", "content": "é"}], return_dict=False)
        == ours.tokenizer.render([{"role": "user", "content": "é"}])[0]
    )
    assert theirs.decode(ours.tokenizer.encode(text)) == text
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    for marker in (True, False):  # as our own export, and as anybody's directory
        if not marker:
            (tmp_path / "out" / "nanochat.json").unlink()
        again = open_model(importer.import_folder(tmp_path / "out", f"again-{marker}"))
        assert (again.tokenizer.id, again.model.config) == (ours.tokenizer.id, ours.model.config)
        assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), ours.model.parameters(), strict=True))
        assert metadata.licence_of(again) == "apache-2.0"


def test_its_gguf_is_equal(imported: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gguf = pytest.importorskip("gguf")
    ours, _, folder = imported
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(folder.parent / "base"))
    gguf_file.write_gguf(ours, tmp_path / "gguf")
    check.check(ours, "gguf", tmp_path / "gguf")
    assert "bit for bit" in capsys.readouterr().err
    fields = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "gguf" / gguf_file.GGUF).fields.items()}
    assert len(fields["tokenizer.ggml.tokens"]) == ours.model.config.vocab_size
    assert fields["tokenizer.ggml.tokens"][ours.tokenizer.specials["<|im_end|>"]] == "<|im_end|>"
    assert fields["tokenizer.ggml.eos_token_id"] == ours.tokenizer.ends[0]
    assert "stop <|im_end|>" in (tmp_path / "gguf" / "Modelfile").read_text()


def test_half_precision_and_a_model_without_a_template(base: Path, tmp_path: Path) -> None:
    theirs = write_qwen3(tmp_path / "base-model", "single", template=False, dtype=torch.bfloat16)
    ours = open_model(importer.import_folder(tmp_path / "base-model"))
    assert not ours.chats
    ids = torch.tensor([[5, 6, 7, 300]])
    with torch.inference_mode():
        assert float((ours.model.logits(ours.model(ids)) - theirs(ids).logits).abs().max()) < 1e-4
    ids_of, mask = ours.tokenizer.render([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}])
    assert ours.tokenizer.decode(ids_of) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n" and sum(mask)


def test_its_tokenizer_packs_rows(base: Path, tmp_path: Path) -> None:
    write_qwen3(tmp_path / "m", "single")
    tokenizer = open_model(importer.import_folder(tmp_path / "m")).tokenizer
    assert load_tokenizer(paths.tokenizer_dir(tokenizer.id)).id == tokenizer.id
    documents = [text[: 40 + 17 * number] for number, text in enumerate(TEXT * 5)]
    rows, tokens, size = tokenizer.encoding.pack_rows([documents[:7], documents[7:]], 32, str(tmp_path / "rows.bin"), tokenizer.bos)
    ids = torch.frombuffer(bytearray((tmp_path / "rows.bin").read_bytes()), dtype=torch.int16)
    expected = [id for text in documents for id in [tokenizer.bos, *tokenizer.encode(text)]]
    assert (len(ids), tokens, size) == (rows * 32, len(expected), sum(len(text.encode()) for text in documents))
    assert rows == -(-tokens // 32) and sorted(ids.tolist())[: len(expected) // 2]
    counts = [0] * tokenizer.vocab_size
    for id in ids.tolist():
        counts[id] += 1
    for id in expected:
        counts[id] -= 1
    assert min(counts) >= 0 and sum(counts) == rows * 32 - tokens  # every id is there, and the last row was filled up


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another type": ({"model_type": "llama"}, "model_type is 'llama'"),
    "experts": ({"model_type": "qwen3_moe", "num_experts": 8}, "model_type is 'qwen3_moe'"),
    "rope scaling": ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0}}, "rope scaling"),
    "old rope scaling": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope scaling"),
    "windows": ({"use_sliding_window": True, "sliding_window": 128}, "sliding windows"),
    "window layers": ({"layer_types": ["sliding_attention"] * 3}, "sliding windows"),
    "bias": ({"attention_bias": True}, "bias in attention"),
    "quantized": ({"quantization_config": {"quant_method": "gptq"}}, "quantized weights"),
    "code": ({"auto_map": {"AutoModel": "x.Y"}}, "modelling code"),
    "activation": ({"hidden_act": "gelu"}, "activation"),
    "huge": ({"hidden_size": 10**9}, "dim is"),
    "heads": ({"num_key_value_heads": 3}, "impossible"),
    "vocabulary": ({"vocab_size": 300}, "embed_tokens"),
    "depth": ({"num_hidden_layers": 4}, "is missing"),
    "not tied": ({"tie_word_embeddings": False}, "lm_head"),
}


def test_what_is_not_supported_is_refused_with_its_reason(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_qwen3(tmp_path / "good", "grouped", shards=True)
    monkeypatch.setattr(importer, "allocate_model", lambda gpt: pytest.fail("the model was allocated"))
    for number, (changes, reason) in enumerate(REFUSED.values()):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", folder)
        change_config(folder, **changes)
        with pytest.raises(DataError, match=reason):
            importer.import_folder(folder)
    folder = tmp_path / "shard"
    shutil.copytree(tmp_path / "good", folder)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(DataError, match=f"{shard.name}, which .* is missing"):
        importer.import_folder(folder)
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(DataError, match=r"pytorch_model\.bin' is of a kind that is not read"):
        importer.import_folder(folder)
    assert not paths.runs_dir().exists() or not list(paths.runs_dir().iterdir())


def test_tokenizers_that_cannot_be_equal_are_refused(base: Path, tmp_path: Path) -> None:
    write_qwen3(tmp_path / "good", "grouped")

    def refused(change: Any, reason: str) -> None:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        path = tmp_path / "bad" / "tokenizer.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=reason):
            importer.import_folder(tmp_path / "bad")

    split = "(a+)+$"
    refused(lambda found: found["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=split), "split pattern .* is unknown")
    refused(lambda found: found["model"].update(type="Unigram"), "not a BPE")
    refused(lambda found: found["model"].update(byte_fallback=True), "byte_fallback")
    refused(lambda found: found.update(normalizer={"type": "Lowercase"}), "normalizer")
    refused(lambda found: found["added_tokens"][0].update(lstrip=True), "blanks around")
    refused(lambda found: found["model"]["vocab"].pop("Ġ"), "lacks 1 of the 256 bytes|has tokens that are not")
    refused(lambda found: found["model"]["merges"].append(["x", "y"]), "merge")
    refused(lambda found: found["added_tokens"][0].update(id=70_000), "ids beyond")
    template = tmp_path / "good" / "chat_template.jinja"
    template.write_text("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}")
    with pytest.raises(DataError, match="template cannot be used"):
        importer.import_folder(tmp_path / "good")


def test_a_directory_whose_name_is_no_runs_name_needs_one(base: Path, tmp_path: Path) -> None:
    write_qwen3(tmp_path / ".Qwen3", "grouped")
    with pytest.raises(UsageError, match="no run's name") as caught:
        importer.import_folder(tmp_path / ".Qwen3")
    assert "--run NAME" in caught.value.hint
    assert importer.import_folder(tmp_path / ".Qwen3", "mine") == "mine"
    with pytest.raises(UsageError, match="out of range"):
        importer.import_folder(tmp_path / ".Qwen3", "short", 1000)
    assert open_model(importer.import_folder(tmp_path / ".Qwen3", "short", 100)).model.config.max_seq_len == 100
    assert foreign_tokenizer().get_vocab_size() > 256
