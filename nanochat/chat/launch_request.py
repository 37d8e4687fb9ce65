"""A request of the page for a training run: every value is checked, and becomes an argument of the terminal's command."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool

from nanochat.chat.api_errors import ApiError, shown
from nanochat.chat.schema import Text
from nanochat.config import PROFILE_NAMES
from nanochat.errors import NanochatError
from nanochat.planning.hardware import detect_profile
from nanochat.runs.names import plain_name

QUICKSTART = "quickstart"  # the command, and the name of its run
PROFILES = ("auto", *PROFILE_NAMES)


def _profile(name: str) -> str:
    if name not in PROFILES:
        raise ValueError(f"the profiles are {', '.join(PROFILES)}")
    return name


def _argument(text: str) -> str:
    """A value of an option: one line of visible characters that no program could take for an option."""
    if text.startswith("-"):
        raise ValueError("must not begin with -")
    if not text.isprintable():
        raise ValueError("must not contain control characters")
    return text


def _run_name(name: str) -> str:
    if name:
        try:
            plain_name(name)
        except NanochatError as error:
            raise ValueError("must be a plain name, as in my-first-run") from error
    if len(name.encode()) > 200:
        raise ValueError("is too long for a directory name")
    return name


class TrainingRequest(BaseModel):
    """The choices that the page has for a run. Everything else is the profile's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    quickstart: StrictBool = False  # `nanochat quickstart`; the other fields are then ignored
    profile: Annotated[Text, AfterValidator(_profile)] = "auto"
    hours: Annotated[float, Field(gt=0, lt=10_000, allow_inf_nan=False)] | None = None
    data: Annotated[Text, Field(max_length=4_096), AfterValidator(_argument)] = ""
    run: Annotated[Text, Field(max_length=200), AfterValidator(_argument), AfterValidator(_run_name)] = ""

    @property
    def arguments(self) -> list[str]:
        """The command of the terminal, after `nanochat`."""
        return [QUICKSTART] if self.quickstart else ["train", *self._options()]

    @property
    def plan_arguments(self) -> list[str]:
        """The command that plans the same run."""
        return ["plan", "--json", *(["--profile=cpu", f"--run={QUICKSTART}"] if self.quickstart else self._options())]

    @property
    def run_name(self) -> str:
        """The name that the run has."""
        named = self.run not in ("", "auto")
        profile = detect_profile() if self.profile == "auto" else self.profile
        return QUICKSTART if self.quickstart else self.run if named else profile

    @property
    def may_use_gpu(self) -> bool:
        """Whether the run uses a GPU if there is one."""
        return not self.quickstart and self.profile != "cpu"

    def require_text(self) -> None:
        """Raise ApiError unless the text is there: a file or a directory by its absolute path, with `:COLUMN` where it has columns."""
        if not self.data or self.quickstart:
            return
        try:
            places = [Path(text).expanduser() for text in (self.data, self.data.rpartition(":")[0]) if text]
            there = [place for place in places if place.is_absolute() and (place.is_file() or place.is_dir()) and not _of_kernel(place)]
        except (OSError, ValueError, RuntimeError):  # a name that is too long; a home directory that nobody has
            there = []
        if not there:
            message = f"{shown(self.data)} is no file or directory on the server's machine; give its absolute path"
            raise ApiError(400, message, "invalid_value", "data")

    def _options(self) -> list[str]:
        hours = "" if self.hours is None else f"{self.hours:.12g}"
        values = {"profile": self.profile, "hours": hours, "data": self.data, "run": self.run}
        return [f"--{name}={value}" for name, value in values.items() if value]


def _of_kernel(place: Path) -> bool:
    """Whether a path leads to the kernel's files, which describe processes and devices and are no text."""
    return place.resolve().parts[1:2] in (("proc",), ("sys",), ("dev",))
