"""What a check found, as lines of a table. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "problem", "not checked"]


@dataclass(frozen=True)
class Finding:
    """`what` is what was seen, or why it could not be; `fix` what to do about a problem. `where`: a host, or `all`."""

    check: str
    where: str
    status: Status
    what: str
    fix: str = ""


def ok(check: str, where: str, what: str) -> Finding:
    return Finding(check, where, "ok", what)


def problem(check: str, where: str, what: str, fix: str) -> Finding:
    return Finding(check, where, "problem", what, fix)


def not_checked(check: str, where: str, why: str) -> Finding:
    return Finding(check, where, "not checked", why)


def problems(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.status == "problem"]


def format_findings(findings: Sequence[Finding]) -> str:
    """A line a finding, the fix below it, and a last line that counts."""
    width = max((len(finding.check) for finding in findings), default=0)
    where_width = max((len(finding.where) for finding in findings), default=0)
    lines = []
    for finding in findings:
        mark = {"ok": "ok", "problem": "PROBLEM", "not checked": "not checked"}[finding.status]
        lines.append(f"{mark:<12}{finding.check:<{width}}  {finding.where:<{where_width}}  {finding.what}")
        if finding.fix:
            lines.append(f"{'':<{12 + width + 2 + where_width}}  fix: {finding.fix}")
    unchecked = sum(finding.status == "not checked" for finding in findings)
    found = len(problems(findings))
    lines.append(f"{found} problem{'s' * (found != 1)}, {unchecked} not checked, {len(findings)} lines")
    return "\n".join(lines)
