"""A model card's YAML metadata, as the hub validates it: licence, languages, datasets, base model, tags, scores."""

import re
from typing import Any

import yaml

from nanochat import paths
from nanochat.config import Config
from nanochat.data.published.origins import KNOWN, is_hub_name, is_mixture, mixture, origin
from nanochat.data.shards import read_manifest
from nanochat.errors import NanochatError
from nanochat.evaluation.results import SUMMARY, read_results
from nanochat.runs import record as runs
from nanochat.runs.record import TrainedModel
from nanochat.runs.report_schema import REPORT

LANGUAGES = {"embedded": ["en", "zh"], "climbmix": ["en"], "fineweb-edu": ["en"]}  # of the texts whose language is known
# The hub's identifiers of licences that published texts and models have; any other licence is "other" with a name.
LICENCES = (
    *("mit", "apache-2.0", "odc-by", "odbl", "pddl", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "gpl-3.0", "openrail"),
    *(f"cc-by{kind}-{version}" for kind in ("", "-sa", "-nc", "-nd", "-nc-sa", "-nc-nd") for version in ("3.0", "4.0")),
)
_WRITTEN = {"odc-by-1.0": "odc-by"}  # as datasets' manifests write them


def front_matter(opened: TrainedModel, library: str, tags: tuple[str, ...] = ()) -> str:
    """The card's header between its two lines of dashes; `library` is the hub's name of the library that loads the model."""
    record = runs.read_record(opened.run)
    known = record and record.dataset and not record.config.data  # nothing is known of a user's own text and of an imported model's
    config = record.config if record and known else None
    data: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation"} | _licence(licence_of(opened))
    if languages := _languages(config.dataset) if config else []:
        data["language"] = languages
    if config and (datasets := _datasets(config)):
        data["datasets"] = datasets
    data["tags"] = ["nanochat", *tags]
    if results := _results(summary_of(opened.run)):
        data["model-index"] = [{"name": opened.run, "results": results}]
    return f"---\n{yaml.safe_dump(data, allow_unicode=True, sort_keys=False, width=1000)}---\n"


def summary_of(run: str) -> dict[str, Any]:
    """Scores, bits per byte and samples of a finished run, from its results or else its report.json; {} if there are none."""
    folder = paths.run_dir(run)
    return read_results(folder).get(SUMMARY) or paths.read_json_object(folder / REPORT)


def licence_of(opened: TrainedModel) -> str:
    """The licences of the texts that a run and those it descends from were trained on, and of an imported model."""
    record = runs.read_record(opened.run)
    if record is None:
        return str(opened.checkpoint.meta.get("origin", {}).get("licence") or "unknown")
    known = [ancestor.licence for ancestor in record.descent if ancestor.licence]
    if record.dataset:
        try:
            known.append(read_manifest(paths.dataset_dir(record.dataset)).licence)
        except NanochatError:
            known.append(f"see {record.dataset}")
    return "; ".join(dict.fromkeys(known)) or "unknown"


def _licence(text: str) -> dict[str, str]:
    """The header's fields of a licence."""
    name = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "unknown"
    name = _WRITTEN.get(name, name)
    if name in (*LICENCES, "unknown"):
        return {"license": name}
    return {"license": "other", "license_name": name[:100]}


def _languages(dataset: str) -> list[str]:
    """The languages of a text, as the hub writes them; [] if they are not known."""
    return list(mixture(dataset).languages) if is_mixture(dataset) else LANGUAGES.get(dataset, [])


def _datasets(config: Config) -> list[str]:
    """Repositories of the hub that the run was pretrained and fine-tuned on."""
    try:
        names = [config.dataset]
        if is_mixture(config.dataset):
            mixed = mixture(config.dataset)
            names = [part.name for part in (*mixed.texts, *mixed.conversations)]
        names = [*names, *([config.chat_data] if is_hub_name(config.chat_data) else [])]
        return list(dict.fromkeys(origin(name).repo for name in names if is_hub_name(name) or name in KNOWN))
    except NanochatError:  # a dataset that a newer version knows
        return []


def _results(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The scores as the hub's model index has them."""

    def result(dataset: str, kind: str, name: str, value: float) -> dict[str, Any]:
        identifier = re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-") or "held-out"
        return {
            "task": {"type": "text-generation"},
            "dataset": {"name": dataset, "type": identifier},
            "metrics": [{"type": kind, "name": name, "value": round(float(value), 4)}],
        }

    scores, found = summary.get("scores") or {}, []
    for name, row in sorted((scores.get("by_skill") or {}).items()):
        found.append(result(f"held-out questions: {name}", "accuracy", "accuracy", row["trained"]))
    if scores:
        found.append(result("held-out questions", "accuracy", "accuracy", scores["trained"]))
    if isinstance(summary.get("bpb"), float):
        found.append(result("held-out text", "bits_per_byte", "bits per byte", summary["bpb"]))
    return found
