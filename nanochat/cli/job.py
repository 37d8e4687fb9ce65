"""The options that `submit k8s` and `submit runpod` share."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanochat.cli.options import Trial

if TYPE_CHECKING:
    from nanochat.cloud.workload import Workload


@dataclasses.dataclass(frozen=True)
class Job:
    """Options shared by `k8s` and `runpod`."""

    image: Annotated[str, typer.Option(metavar="REF", help="Image of the appliance, in a registry that can be pulled from there")]
    profile: Annotated[str, typer.Option(metavar="NAME", help="Profile: cpu, t4, rtx4050, rtx4090, speedrun, h100x8")]
    trial: Trial = False
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the job; without it, nanochat-RUN")] = ""
    env: Annotated[list[str] | None, typer.Option("--env", metavar="KEY=VALUE", help="Environment variable that is no secret")] = None
    max_hours: Annotated[
        float,
        typer.Option(
            "--max-hours", "--max_hours", metavar="HOURS", help="Hours until the job is ended; 0: twice the estimate and one hour"
        ),
    ] = 0.0
    detach: Annotated[bool, typer.Option("--detach", help="Return at once, without following the log")] = False

    def work(self, arguments: list[str], nodes: int = 1) -> "Workload":
        """The run that it is, with the config options given. Raises UsageError."""
        from nanochat.cloud.workload import by_digest, workload

        return workload(by_digest(self.image), self.name, self.profile, self.trial, arguments, nodes)


def takes_job(profile: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a Job, with `profile` as the default profile; it receives the Job as `job`."""

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        fields = {field.name: field for field in dataclasses.fields(Job)}

        @functools.wraps(command)
        def run(**given: Any) -> None:
            command(job=Job(**{name: given.pop(name) for name in fields}), **given)

        def option(field: Any) -> inspect.Parameter:
            default = profile if field.name == "profile" else field.default
            default = inspect.Parameter.empty if default is dataclasses.MISSING else default
            return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=field.type)

        shared = [option(field) for field in fields.values()]
        own = [
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, one in inspect.signature(command).parameters.items() if name != "job"
        ]
        run.__signature__ = inspect.Signature([own[0], *shared, *own[1:]])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in (*own, *shared)}
        del run.__wrapped__
        return run

    return with_options
