"""The commands that a container session prints, pasted into the host's shell one after the other: each of them ends with success."""

import re
from collections.abc import Iterator

import pytest

from tests.containers.engine import call, project_of

pytestmark = [pytest.mark.container, pytest.mark.slow]
# To the end of a line, or of what is put in backticks or quotes, without the sentence's punctuation.
PRINTED = re.compile(r"docker compose [^\n`\"']*?(?=[,;:)]* *(?:[\n`\"']|$)|, then |; )")
RUN = "docker compose run --rm"
SESSION = (
    f"{RUN} nanochat runs",  # nothing yet: it says how to begin
    f"{RUN} nanochat chat --prompt hello",
    f"{RUN} train --profile cpu --num-iterations 30 --sft-iterations 10",
    f"{RUN} train --profile cpu --num-iterations 30 --sft-iterations 10",  # finished
    f"{RUN} train --profile cpu --num-iterations 40",  # another config under this name
    f"{RUN} train --profile cpu --hours 0.005 --run short",
    f"{RUN} nanochat runs show cpu",
    f"{RUN} nanochat runs show nothing",
    f"{RUN} nanochat runs rm",
    f"{RUN} nanochat report",
    f"{RUN} nanochat eval",
    f"{RUN} nanochat disk",
    f"{RUN} nanochat doctor",
    f"{RUN} nanochat plan --profile rtx4050",
    f"{RUN} nanochat chat --run cup --prompt hello",
    f"{RUN} nanochat export --to gguf --out /data/model.gguf",  # of an architecture that GGUF does not know
    f"{RUN} nanochat export --to hf --out /data/model",
    f"{RUN} nanochat export --to hf --out /data/model",  # it is there already
    f"{RUN} nanochat import /data/nothing",
    f"{RUN} nanochat import /data/model --run received",
    f"{RUN} nanochat reprot",
)
# A cluster, a build, minutes, a card, and a question that only a terminal answers.
UNTRIED = (" submit ", "NANOCHAT_EXTRAS=", " quickstart", "--profile rtx", "--profile h100", " disk --prune")


@pytest.fixture
def environment(volume: str) -> Iterator[dict[str, str]]:
    """Of a shell in a checkout whose .env is that of a machine without a GPU."""
    found = project_of(volume) | {"COMPOSE_FILE": "docker-compose.yml:docker-compose.cpu.yml", "NANOCHAT_PORT": "18766"}
    yield found
    call("docker", "compose", "down", "--timeout=30", **found)


def pasted(line: str, environment: dict[str, str]) -> tuple[int, str]:
    """(exit code, all that is printed) of a line in a shell."""
    done = call("sh", "-c", line, **environment)
    return done.returncode, done.stdout + done.stderr


def test_every_printed_command_runs(environment: dict[str, str]) -> None:
    waiting, done, failed = list(SESSION), dict[str, int](), []
    while waiting:
        line = waiting.pop(0)
        code, text = pasted(line, environment)
        done[line] = code
        if line not in SESSION and code:
            failed.append((line, code, text[-1500:]))
        for found in PRINTED.findall(text):
            new = " ".join(found.split())
            if new not in done and new not in waiting and not any(part in f"{new} " for part in UNTRIED):
                waiting.append(new)
    print("\n".join(f"{code} {line}" for line, code in done.items()))
    assert not failed, failed
    assert {f"{RUN} nanochat chat --run cpu", "docker compose up -d chat"} <= set(done)
