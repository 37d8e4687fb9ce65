"""The model card of an export, README.md: where the model comes from, how to load it, scores, sample answers, limits."""

from typing import Any

from nanochat.data.source import text_source
from nanochat.export.metadata import front_matter, licence_of, summary_of
from nanochat.export.weights import is_plain_qwen3
from nanochat.model.scaling import count_parameters
from nanochat.runs import record as runs
from nanochat.runs.record import TrainedModel

CARD = "README.md"
SAMPLES = 3
LIMITS = (
    "A model of this size states wrong facts, loses the thread and repeats itself. Do not rely on its answers.",
    "It was not aligned for safety, and has no filter. It may say offensive things that its text or a user taught it.",
    "It knows nothing beyond the text that it was trained on, and no current events.",
)
ENGINES = "The model is a Qwen3, which transformers, vLLM, llama.cpp and Ollama can run."
OWN_CODE = (
    "The model has parts that other inference engines do not support (value embeddings, a smear of the previous token), so this\n"
    "directory includes its modelling code. vLLM cannot run it, because its decoding does not keep the previous token. Models trained\n"
    "with `--architecture portable` run in vLLM, llama.cpp and Ollama."
)
CALCULATOR = (
    "As with any chat template, special tokens that a user types in a message are read as real ones. Calculator calls\n"
    "(`<|python_start|>...<|python_end|>`) get no result outside of NanoChat Appliance."
)


def folder_card(opened: TrainedModel) -> str:
    """The card of a directory for transformers."""
    own = not is_plain_qwen3(opened.model.config)
    trust = ", trust_remote_code=True" if own else ""
    use = f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(folder{trust})
tokenizer = AutoTokenizer.from_pretrained(folder{trust})
ids = tokenizer.apply_chat_template([{{"role": "user", "content": "Who are you?"}}], add_generation_prompt=True, return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**ids, max_new_tokens=64)))
```"""
    return _card(opened, "transformers", (), use, OWN_CODE if own else ENGINES)


def gguf_card(opened: TrainedModel, outtype: str) -> str:
    """The card of a directory with a GGUF file whose matrices are of `outtype`."""
    use = f"""```sh
llama-cli -m model.gguf              # llama.cpp; the weights are {outtype}
ollama create NAME -f Modelfile      # Ollama, then: ollama run NAME
```"""
    return _card(opened, "gguf", ("gguf", outtype), use, ENGINES)


def _card(opened: TrainedModel, library: str, tags: tuple[str, ...], use: str, engines: str) -> str:
    """The whole card: header, shape, use, scores, samples, limits, notes."""
    gpt, meta = opened.model.config, opened.checkpoint.meta
    record = runs.read_record(opened.run)
    imported = meta.get("origin", {}).get("name")
    if record and record.dataset:
        text = text_source(record.config).title
    else:
        known = [ancestor.text for ancestor in record.descent if ancestor.text] if record else []
        text = known[-1] if known else f"unknown: imported from {imported}" if imported else "unknown"
    made = "imported by" if imported and not record else "trained from scratch with" if not (record and record.descent) else "trained with"
    trial = "\n\n**This is a short test run of a few steps; its answers are not useful.**" if meta.get("trial") else ""
    return f"""{front_matter(opened, library, tags)}
# {opened.run}

A small language model of {count_parameters(gpt)["total"]:,} parameters, {made} NanoChat Appliance
({meta["stage"]}, step {opened.checkpoint.step}).{trial}

| | |
|---|---|
| trained on | {text} |
| licence of that text | {licence_of(opened)} |
| layers, width, heads | {gpt.depth}, {gpt.dim}, {gpt.n_head} |
| context | {gpt.max_seq_len} tokens |
| vocabulary | {gpt.vocab_size} |

{use}

{_sections(opened.run)}

## Notes

{engines}

{CALCULATOR}
"""


def _sections(run: str) -> str:
    """Scores, sample answers and limits as Markdown; scores and samples where the run has results."""
    summary = summary_of(run)
    parts = [*_scores(summary), *_samples(summary), "## Limits\n\n" + "\n".join(f"- {line}" for line in LIMITS)]
    return "\n\n".join(parts)


def _scores(summary: dict[str, Any]) -> list[str]:
    """A table of the held-out questions by skill, and the bits per byte."""
    scores = summary.get("scores") or {}
    rows = [(name, row) for name, row in sorted((scores.get("by_skill") or {}).items())] + ([("**all**", scores)] if scores else [])
    parts = []
    if rows:
        lines = ["| held-out questions | untrained | trained | items |", "|---|---:|---:|---:|"]
        lines += [f"| {name} | {row['untrained']:.1%} | {row['trained']:.1%} | {row['items']} |" for name, row in rows]
        parts.append("## Scores\n\n" + "\n".join(lines))
    if isinstance(summary.get("bpb"), float):
        parts.append(("" if parts else "## Scores\n\n") + f"Bits per byte of held-out text: {summary['bpb']:.3f}")
    return parts


def _samples(summary: dict[str, Any]) -> list[str]:
    """A few answers at temperature 0, as indented text: a model's words are no Markdown."""
    found = [one for one in summary.get("samples") or [] if isinstance(one, dict)][:SAMPLES]
    blocks = []
    for one in found:
        said = [f"    > {line}" for line in str(one.get("prompt", "")).splitlines()]
        blocks.append("\n".join([*said, *(f"    {line}" for line in str(one.get("answer", "")).splitlines())]))
    return ["## Samples", *blocks] if blocks else []
