"""References to secrets of a RunPod account: RunPod inserts the value when the container starts, so no request contains it."""

import re
from collections.abc import Mapping, Sequence

from nanochat.cloud.workload import OWN_VARIABLES, VARIABLE_NAME, plain_environment
from nanochat.errors import UsageError

INSTEAD = "create a secret on RunPod's page, and use it with --secret HF_TOKEN=SECRET_NAME"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_REFERENCE = re.compile(r"\{\{ *RUNPOD_SECRET_([A-Za-z0-9_-]{1,128}) *\}\}")


def reference(name: str) -> str:
    """The value of an environment variable in a request that refers to the secret `name`."""
    return f"{{{{ RUNPOD_SECRET_{name} }}}}"


def environment(plain: Sequence[str], secrets: Sequence[str]) -> dict[str, str]:
    """The variables of `--env KEY=VALUE` and `--secret KEY=NAME` (or NAME, for a variable of that name). Raises UsageError.

    `--env` also accepts RunPod's notation of a reference, but no other secret.
    """
    pairs = [pair.partition("=") for pair in plain]
    found = {key: match[1] for key, _, value in pairs if (match := _REFERENCE.fullmatch(value.strip()))}
    values = plain_environment([pair for pair in plain if pair.partition("=")[0] not in found], INSTEAD)
    for text in secrets:
        key, equals, name = text.partition("=")
        found[key] = name if equals else key
    for key, name in found.items():
        if not VARIABLE_NAME.fullmatch(key) or not _NAME.fullmatch(name):
            # The value is not printed, because it may be the secret itself.
            raise UsageError(
                "--secret takes VARIABLE=NAME, where NAME is a secret of your RunPod account",
                "use a name, as in --secret HF_TOKEN=hf_token",
            )
        if key.startswith(("PET_", "RUNPOD_")) or key in OWN_VARIABLES:
            raise UsageError(f"--secret {key} is set by RunPod or by this command", "leave it out")
    return values | {key: reference(name) for key, name in found.items()}


def missing(values: Mapping[str, str]) -> list[str]:
    """In a pod, the secrets that RunPod has not inserted, because the account has none of these names."""
    return sorted({match[1] for value in values.values() if (match := _REFERENCE.search(value))})
