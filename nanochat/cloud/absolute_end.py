"""The absolute end in a run's manifests. An existing Job or JobSet is immutable, so it keeps its end."""

from collections.abc import Iterator, Sequence

from nanochat.cloud.kubernetes import COMPONENT, Manifest
from nanochat.train.deadline import VARIABLE as END


def _training_variables(made: Sequence[Manifest]) -> Iterator[Manifest]:
    """All environment variables of the run's containers."""
    for one in made:
        if one["kind"] in ("Job", "JobSet") and one["metadata"].get("labels", {}).get(COMPONENT) == "train":
            spec = one["spec"]
            jobs = [part["template"]["spec"] for part in spec["replicatedJobs"]] if one["kind"] == "JobSet" else [spec]
            for container in (container for job in jobs for container in job["template"]["spec"]["containers"]):
                yield from container.get("env", [])


def end_of(made: Sequence[Manifest]) -> str:
    """The absolute end of a run, in seconds since 1970; "" if it has none."""
    return next((str(variable.get("value", "")) for variable in _training_variables(made) if variable["name"] == END), "")


def set_end(made: Sequence[Manifest], end: str) -> None:
    """Change the absolute end of a run."""
    for variable in _training_variables(made):
        if variable["name"] == END:
            variable["value"] = end
