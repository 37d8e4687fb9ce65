"""docs/reference/exit-codes.md: the exit codes of nanochat/errors.py, and who restarts which."""

import inspect

from nanochat import errors
from scripts.reference.catalog import Language
from scripts.reference.markdown import page, switch, table

NAME = "exit-codes"
OTHERS = {
    0: "Done. `nanochat submit logs` returns the exit code of the job that it follows",
    errors.INTERRUPTED: "Interrupted by Ctrl-C. Training saves a checkpoint first and ends with 75; a second Ctrl-C ends it at once",
    errors.CLOSED_PIPE: "The reader of stdout has gone, as in `nanochat report | head`",
}
NEXT = {
    0: "",
    1: "Run it again with `NANOCHAT_DEBUG=1` and report the traceback",
    2: "Change the command as the hint says",
    3: "`nanochat doctor` lists what is missing, with fixes",
    4: "Change the path or the file that the message names, or download it again",
    5: "Lower the learning rates (`--matrix_lr`, `--embedding_lr`) or raise `--warmup_steps`; the last checkpoint is good",
    6: "Lower `--depth` or `--max_seq_len`",
    7: "Run the same command again: it resumes",
    75: "Run the same command again: it resumes",
    errors.INTERRUPTED: "Run the same command again",
    errors.CLOSED_PIPE: "",
}


def codes() -> dict[int, str]:
    """Exit code -> meaning, in ascending order, from the error classes' docstrings."""
    kinds = [errors.NanochatError, *errors.NanochatError.__subclasses__()]
    found = {
        kind.exit_code: " ".join(inspect.getdoc(kind).split()).removesuffix(".") for kind in kinds if kind.__module__ == errors.__name__
    }
    return dict(sorted((found | {1: "Internal error, or a worker process was killed"} | OTHERS).items()))


def document(language: Language) -> str:
    """The page in a language."""

    def say(text: str) -> str:
        return language.page(NAME, text)

    rows = []
    for code, meaning in codes().items():
        local = (
            "" if code in (0, errors.INTERRUPTED, errors.CLOSED_PIPE) else "no" if code in errors.LAUNCHER_FINAL_CODES else "at most twice"
        )
        cluster = "" if not local else "yes" if code in errors.ORCHESTRATOR_RETRIED_CODES else "no"
        rows.append([f"{code}", say(meaning), say(NEXT[code]), say(local), say(cluster)])
    heads = ["code", "meaning", "what to do", "restarted on this machine", "restarted in a cluster"]
    parts = [
        say("Every error prints one `error:` and one `hint:` line on stderr. `NANOCHAT_DEBUG=1` adds the traceback."),
        table([say(head) for head in heads], rows),
        say(
            "`nanochat train --nproc_per_node N` starts several processes on one machine, returns their common code, and restarts them "
            "from the newest checkpoint. Under your own `torchrun` the code is always 1. A Kubernetes job and a RunPod pod restart as the "
            "last column says, from the newest checkpoint."
        ),
        say("A process killed by a signal N ends with 128 + N: 137 (SIGKILL) often means that the kernel ended it for lack of memory."),
    ]
    return page(say("Exit codes"), "nanochat/errors.py", switch(NAME, language.suffix), parts)
