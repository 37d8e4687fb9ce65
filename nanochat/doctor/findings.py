"""A finding of a check: its result, the reason why it matters, and a fix; and findings as text and JSON."""

import dataclasses
from typing import Any

from nanochat.doctor.troubleshooting import explained

OK, WARNING, ERROR = "ok", "warning", "error"


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of a check. `fix` is a command or a setting; `why` and `fix` are empty if nothing is wrong."""

    id: str
    level: str
    what: str
    why: str = ""
    fix: str = ""

    @property
    def means(self) -> str:
        """The explanation of this kind of finding; empty if nothing is wrong."""
        return explained(self.id) if self.level != OK else ""


def healthy(findings: list[Finding]) -> bool:
    """Whether no finding is an error."""
    return all(finding.level != ERROR for finding in findings)


def to_json(findings: list[Finding]) -> dict[str, Any]:
    """The output of `doctor --json`."""
    return {"ok": healthy(findings), "findings": [dataclasses.asdict(finding) | {"means": finding.means} for finding in findings]}


def describe(findings: list[Finding]) -> str:
    """The findings as text: a line for each, and up to three more for its meaning, reason and fix."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<8}{finding.id}: {finding.what}")
        lines += [f"        means: {finding.means}"] if finding.means else []
        lines += [f"        why: {finding.why}"] if finding.why else []
        lines += [f"        fix: {finding.fix}"] if finding.fix else []
    return "\n".join(lines)
