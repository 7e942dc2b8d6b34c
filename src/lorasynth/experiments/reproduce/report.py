"""The report: Markdown for people, JSON for programs, and the pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorasynth.atomic import atomic_file, write_json
from lorasynth.experiments.figures import save_figure
from lorasynth.experiments.reproduce.finding import Finding

SMOKE = "Smoke: every cell was run once, as small as can be, so there are no verdicts."


def write_report(findings: Sequence[Finding], folder: Path, *, smoke: bool, command: str) -> None:
    """Write `report.md`, `report.json` (a list, one object a claim) and a PNG for each figure.

    Raises:
        LorasynthError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for finding in findings:
        for name, figure in finding.figures.items():
            save_figure(figure, folder / f"{name}.png")
    write_json(folder / "report.json", [_facts(finding, smoke) for finding in findings])
    lines = ["# The paper's claims on the avatar domain", "", f"Made by `{command}`.", ""]
    lines += [SMOKE, ""] if smoke else []
    lines += _verdicts(findings, smoke)
    for finding in findings:
        lines += _section(finding, smoke)
    with atomic_file(folder / "report.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def _facts(finding: Finding, smoke: bool) -> dict[str, Any]:
    return {
        "claim": finding.claim,
        "section": finding.section,
        "verdict": "smoke, no verdict" if smoke else finding.verdict,
        "why": finding.why,
        "seeds": list(finding.seeds),
        "values": dict(finding.values),
    }


def _verdicts(findings: Sequence[Finding], smoke: bool) -> list[str]:
    rows = [
        {"claim": f.claim, "section": f.section, "verdict": "smoke" if smoke else f.verdict}
        for f in findings
    ]
    return [*_table(rows), ""]


def _section(finding: Finding, smoke: bool) -> list[str]:
    verdict = "smoke, no verdict" if smoke else finding.verdict
    lines = [f"## {finding.claim} ({finding.section})", "", f"**{verdict}.** {finding.why}", ""]
    for title, rows in finding.tables.items():
        lines += [f"*{title}*", "", *_table(rows), ""]
    for name in finding.figures:
        lines += [f"![{name}]({name}.png)", ""]
    return lines


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    heads = list(rows[0])
    lines = ["| " + " | ".join(head.replace("_", " ") for head in heads) + " |"]
    lines.append("|" + "---|" * len(heads))
    lines += ["| " + " | ".join(_shown(row[head]) for head in heads) + " |" for row in rows]
    return lines


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    return str(value)
