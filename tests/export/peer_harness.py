"""In lm-evaluation-harness's environment: an exported folder and a folder with a task on stdin; the task's results on stdout."""

import contextlib
import json
import sys

import lm_eval
from lm_eval.tasks import TaskManager


def main() -> None:
    """{model, trust, tasks, task} -> {acc, samples: [[log-likelihood of each choice]]}."""
    task = json.load(sys.stdin)
    arguments = {"pretrained": task["model"], "trust_remote_code": task["trust"], "dtype": "float32"}
    with contextlib.redirect_stdout(sys.stderr):
        manager = TaskManager(include_path=task["tasks"], include_defaults=False)
        options = {"device": "cpu", "batch_size": 4, "log_samples": True, "bootstrap_iters": 0}
        found = lm_eval.simple_evaluate("hf", model_args=arguments, tasks=[task["task"]], task_manager=manager, **options)
    samples = sorted(found["samples"][task["task"]], key=lambda sample: sample["doc_id"])
    likelihoods = [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples]
    print(json.dumps({"acc": found["results"][task["task"]]["acc,none"], "samples": likelihoods}))


main()
