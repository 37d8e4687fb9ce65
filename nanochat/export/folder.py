"""Export of a run as a directory for Hugging Face transformers, and import of such a directory as a run.

The nanochat architecture is exported with its modelling code (trust_remote_code); a portable model is a plain Qwen3.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nanochat import paths, untrusted
from nanochat.console import log
from nanochat.data.shards import read_manifest
from nanochat.data.source import text_source
from nanochat.errors import DataError, NanochatError, UsageError
from nanochat.export import card, vocabulary
from nanochat.export.output import new_folder
from nanochat.hardware.memory import require_memory
from nanochat.hub.download import require_space
from nanochat.kernels.operations import RMS_EPS
from nanochat.model.build import allocate_model, describe_model
from nanochat.model.layers import ROPE_BASE
from nanochat.model.scaling import ARCHITECTURES, GPTConfig, count_parameters
from nanochat.model.transformer import Transformer
from nanochat.runs import record as runs
from nanochat.runs.checkpoint import import_checkpoint
from nanochat.runs.record import TrainedModel
from nanochat.runs.step_files import checked_meta, checked_run, safetensors_errors, tensor_shapes
from nanochat.tokenizer.tokenizer import Tokenizer

ABOUT = "nanochat.json"  # in the directory: metadata for `import`, beside the weights and the tokenizer
FORMAT = 1
WEIGHTS = "model.safetensors"
IMPORTED = (
    "stage",
    "step",
    "steps",
    "trial",
    "model",
    "tokenizer",
    "optimizer_steps",
    "skipped",
    "turn",
)  # keys of a checkpoint's metadata
MODELLING = Path(__file__).with_name("modeling_nanochat_appliance.py")

# This project's names of the weights -> Hugging Face's; {} is a layer's number.
_HF_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "norm.gain": "model.norm.weight",
    "blocks.{}.attn.q.weight": "model.layers.{}.self_attn.q_proj.weight",
    "blocks.{}.attn.k.weight": "model.layers.{}.self_attn.k_proj.weight",
    "blocks.{}.attn.v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blocks.{}.attn.o.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blocks.{}.attn.ve_gate.weight": "model.layers.{}.self_attn.ve_gate.weight",
    "blocks.{}.attn.q_norm.gain": "model.layers.{}.self_attn.q_norm.weight",
    "blocks.{}.attn.k_norm.gain": "model.layers.{}.self_attn.k_norm.weight",
    "blocks.{}.attn_norm.gain": "model.layers.{}.input_layernorm.weight",
    "blocks.{}.mlp_norm.gain": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.{}.mlp.fc.weight": "model.layers.{}.mlp.up_proj.weight",
    "blocks.{}.mlp.proj.weight": "model.layers.{}.mlp.down_proj.weight",
    "blocks.{}.mlp.gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blocks.{}.mlp.up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blocks.{}.mlp.down.weight": "model.layers.{}.mlp.down_proj.weight",
    "value_embeds.{}.weight": "model.value_embeds.{}.weight",
    "smear_gate.weight": "model.smear_gate.weight",
    **{name: f"model.{name}" for name in ("resid_lambdas", "x0_lambdas", "smear_lambda", "backout_lambda")},
}
_VOCABULARY = re.compile(r"(embed|head|value_embeds\.\d+)\.weight")  # tensors with a row per id
_ROTATED = re.compile(r"blocks\.\d+\.attn\.(q|k)(\.weight|_norm\.gain)")


def is_plain_qwen3(gpt: GPTConfig) -> bool:
    """Whether other inference engines can run the model: a Qwen3 with full attention in all layers."""
    return gpt.architecture == "qwen3" and all(gpt.window(layer) == gpt.max_seq_len for layer in range(gpt.depth))


def _hf_name(name: str) -> str:
    """Hugging Face's name of a weight."""
    numbered = re.sub(r"\.(\d+)\.", ".{}.", name)
    return _HF_NAMES[numbered].format(*re.findall(r"\.(\d+)\.", name))


def _swap_rotary_halves(name: str, weight: Tensor, gpt: GPTConfig) -> Tensor:
    """Convert a weight to or from transformers' Qwen3, whose rotary embedding has the halves of each head swapped."""
    if not (gpt.architecture == "qwen3" and _ROTATED.fullmatch(name)):
        return weight
    return weight.unflatten(0, (-1, 2, gpt.head_dim // 2)).flip(1).flatten(0, 2)


def hf_weights(model: Transformer) -> dict[str, Tensor]:
    """The model's weights in float32 under Hugging Face's names, without the vocabulary's padding."""
    found = {}
    for name, weight in model.named_parameters():
        kept = weight.detach()[: model.config.vocab_size] if _VOCABULARY.fullmatch(name) else weight.detach()
        found[_hf_name(name)] = _swap_rotary_halves(name, kept, model.config).contiguous()
    return found


def config_json(gpt: GPTConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of config.json."""
    return _common_config(gpt, tokenizer) | (_qwen3_config() if is_plain_qwen3(gpt) else _nanochat_config(gpt))


def _common_config(gpt: GPTConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The part of config.json that both architectures share."""
    return {
        "vocab_size": gpt.vocab_size,
        "hidden_size": gpt.dim,
        "intermediate_size": gpt.mlp_dim,
        "num_hidden_layers": gpt.depth,
        "num_attention_heads": gpt.n_head,
        "num_key_value_heads": gpt.n_kv_head,
        "head_dim": gpt.head_dim,
        "max_position_embeddings": gpt.max_seq_len,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": tokenizer.bos,
        "eos_token_id": [tokenizer.special("<|assistant_end|>"), tokenizer.bos],
        "pad_token_id": tokenizer.bos,
        "use_cache": True,
    }


def _qwen3_config() -> dict[str, Any]:
    """The part of config.json for transformers' Qwen3."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": RMS_EPS,
        "rope_theta": ROPE_BASE,
        "rope_scaling": None,
        "sliding_window": None,
        "use_sliding_window": False,
    }


def _nanochat_config(gpt: GPTConfig) -> dict[str, Any]:
    """The part of config.json for the exported modelling code."""
    windows = [gpt.window(layer) for layer in range(gpt.depth)]
    module = MODELLING.stem
    return {
        "architectures": ["NanochatForCausalLM"],
        "model_type": "nanochat_appliance",
        "auto_map": {
            "AutoConfig": f"{module}.NanochatConfig",
            "AutoModel": f"{module}.NanochatModel",
            "AutoModelForCausalLM": f"{module}.NanochatForCausalLM",
        },
        "rope_base": ROPE_BASE,
        "norm_eps": RMS_EPS,
        "sliding_window": min(windows) if min(windows) < gpt.max_seq_len else None,
        "layer_types": ["sliding_attention" if window < gpt.max_seq_len else "full_attention" for window in windows],
        "value_embedding_layers": [layer for layer in range(gpt.depth) if gpt.has_value_embedding(layer)],
        **{name: ARCHITECTURES[gpt.architecture][name] for name in ("residual_scalars", "smear", "backout", "softcap")},
    }


def licence_of(run: str) -> str:
    """The licences of the texts that a run and those it descends from were trained on, as their datasets' manifests have them."""
    record = runs.read_record(run)
    if record is None or not (record.dataset or record.descent):
        return "unknown"
    earlier = [ancestor.licence for ancestor in record.descent if ancestor.licence]
    if not record.dataset:
        return "; ".join(dict.fromkeys(earlier)) or "unknown"
    try:
        own = read_manifest(paths.dataset_dir(record.dataset)).licence
    except NanochatError:
        own = f"see {record.dataset}"
    return "; ".join(dict.fromkeys([*earlier, own]))


def model_card(opened: TrainedModel, licence: str) -> str:
    """The model card, README.md of the directory."""
    gpt, meta = opened.model.config, opened.checkpoint.meta
    record = runs.read_record(opened.run)
    text = text_source(record.config).title if record else "unknown"
    own = not is_plain_qwen3(gpt)
    trust = ", trust_remote_code=True" if own else ""
    engines = (
        "The model has parts that other inference engines do not support (value embeddings, a smear of the previous token), so this\n"
        "directory includes its modelling code. vLLM cannot run it, because its decoding does not keep the previous token. Models trained\n"
        "with `--architecture portable` run in vLLM, llama.cpp and Ollama."
        if own
        else "The model is a Qwen3, which transformers, vLLM, llama.cpp and Ollama can run."
    )
    trial = "\n\n**This is a short test run of a few steps; its answers are not useful.**" if meta.get("trial") else ""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
license: other
license_name: {json.dumps(licence, ensure_ascii=False)}
{card.front_matter(opened.run)}---

# {opened.run}

A small language model of {count_parameters(gpt)["total"]:,} parameters, trained from scratch with NanoChat Appliance
({meta["stage"]}, step {opened.checkpoint.step}).{trial}

| | |
|---|---|
| trained on | {text} |
| licence of that text | {licence} |
| layers, width, heads | {gpt.depth}, {gpt.dim}, {gpt.n_head} |
| context | {gpt.max_seq_len} tokens |
| vocabulary | {gpt.vocab_size} |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(folder{trust})
tokenizer = AutoTokenizer.from_pretrained(folder{trust})
ids = tokenizer.apply_chat_template([{{"role": "user", "content": "Who are you?"}}], add_generation_prompt=True, return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**ids, max_new_tokens=64)))
```

{card.sections(opened.run)}

## Notes

{engines}

As with any chat template, special tokens that a user types in a message are read as real ones. Calculator calls
(`<|python_start|>...<|python_end|>`) get no result outside of NanoChat Appliance.
"""


def write_folder(opened: TrainedModel, out: Path) -> None:
    """Write the directory `out` atomically. Raises UsageError if it exists, PreflightError if it cannot be written."""
    gpt, tokenizer, meta = opened.model.config, opened.tokenizer, opened.checkpoint.meta
    licence = licence_of(opened.run)
    about = {"format": FORMAT, "run": opened.run, "licence": licence, "meta": meta}
    config = config_json(gpt, tokenizer)
    generation = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with new_folder(out) as folder:
        with safetensors_errors(out / WEIGHTS):
            save_file(hf_weights(opened.model), folder / WEIGHTS, metadata={"format": "pt"})
        paths.atomic_write_json(folder / "config.json", config)
        paths.atomic_write_json(folder / "generation_config.json", generation | {"do_sample": True, "temperature": 0.8, "top_k": 50})
        paths.atomic_write_json(folder / "tokenizer.json", vocabulary.tokenizer_json(tokenizer))
        paths.atomic_write_json(folder / "tokenizer_config.json", vocabulary.tokenizer_config(gpt.max_seq_len))
        shutil.copyfile(vocabulary.TEMPLATE, folder / vocabulary.TEMPLATE.name)
        paths.atomic_write(folder / "README.md", model_card(opened, licence))
        paths.atomic_write_json(folder / ABOUT, about)
        if not is_plain_qwen3(gpt):
            shutil.copyfile(MODELLING, folder / MODELLING.name)


def import_folder(folder: Path, run: str | None = None) -> str:
    """Import a directory of `write_folder` as the run `run` (default: its old name) and return the name.

    The directory is untrusted, so all of it is checked, and the run appears in one rename. Raises DataError if it is damaged or not such
    an export, UsageError if a run of that name exists, PreflightError if memory or disk space is insufficient.
    """
    try:
        meta, tokenizer, old_name = _read_about(folder)
        name = runs.plain_name(run) if run else checked_run(old_name)
        target = paths.run_dir(name)
        if os.path.lexists(target):
            raise _run_exists(name)
        gpt = GPTConfig.from_dict(meta["model"])
        model = _read_model(untrusted.inside(folder, WEIGHTS), gpt)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(
            f"{folder} is not an export of `nanochat export --to hf`: {untrusted.reason(error)}", "export the run again"
        ) from error
    try:
        require_space(f"importing {folder}", 4 * count_parameters(gpt)["total"], target)
        tokenizer.save(paths.tokenizer_dir(tokenizer.id))
        with paths.atomic_folder(target, exclusive=True) as temporary:
            import_checkpoint(temporary / meta["stage"], model, meta | {"run": name, "imported": True})
    except FileExistsError as error:
        raise _run_exists(name) from error
    except OSError as error:
        raise paths.disk_error(error, f"importing into {target}") from error
    log(f"imported {folder} as the run {name}")
    return name


def _run_exists(name: str) -> UsageError:
    return UsageError(f"a run {name!r} exists already", "choose another name with --run NEW")


def _read_about(folder: Path) -> tuple[dict[str, Any], Tokenizer, Any]:
    """(checkpoint metadata, tokenizer, run's name) of a received directory, all checked. Raises ValueError, OSError."""
    about = untrusted.table(untrusted.read_json(untrusted.inside(folder, ABOUT)), ABOUT)
    meta = {name: value for name, value in checked_meta(about["meta"]).items() if name in IMPORTED}
    for name in ("stage", "tokenizer", "model"):
        if name not in meta:
            raise ValueError(f"{ABOUT} has no {name}")
    gpt, tokenizer = GPTConfig.from_dict(meta["model"]), vocabulary.read_tokenizer(untrusted.inside(folder, "tokenizer.json"))
    if about["format"] != FORMAT or tokenizer.id != meta["tokenizer"] or tokenizer.vocab_size != gpt.vocab_size:
        raise ValueError("its tokenizer or its format does not match")
    return meta, tokenizer, about["run"]


def _read_model(path: Path, gpt: GPTConfig) -> Transformer:
    """A model with the weights of an exported file. Raises ValueError if one is missing, left over or of another shape."""
    saved = tensor_shapes(path)
    if gpt.depth > len(saved):  # checked before the layers are built
        raise ValueError(f"{len(saved)} weights are too few for {gpt.depth} layers")
    for name, shape in _exported_shapes(gpt).items():
        if (found := saved.pop(_hf_name(name), None)) != shape:
            raise ValueError(f"{name} is {found}, not {shape}")
    if saved:
        raise ValueError(f"unknown weights {', '.join(sorted(map(untrusted.shown, saved))[:10])}")
    require_memory("importing this model", 4 * count_parameters(gpt)["total"])
    model = allocate_model(gpt)
    with safe_open(path, "pt") as file, torch.no_grad():
        for name, weight in model.named_parameters():
            value = _swap_rotary_halves(name, file.get_tensor(_hf_name(name)), gpt)
            weight[len(value) :] = 0
            weight[: len(value)] = value
    return model


def _exported_shapes(gpt: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each weight as `hf_weights` writes it, by this project's name."""
    return {
        name: (gpt.vocab_size if _VOCABULARY.fullmatch(name) else len(weight), *weight.shape[1:]) if weight.dim() else ()
        for name, weight in describe_model(gpt).named_parameters()
    }
