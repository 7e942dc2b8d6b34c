"""The report: Markdown for people, JSON for programs, and the images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorasynth.core.atomic import atomic_file, write_json
from lorasynth.core.figures import save_figure
from lorasynth.studies.reproduce.finding import Finding
from lorasynth.studies.reproduce.study import ReproduceConfig

SMOKE = "Smoke: every cell was run once, as small as can be, so there are no verdicts."


def write_report(
    findings: Sequence[Finding],
    folder: Path,
    config: ReproduceConfig,
    *,
    command: str,
    note: str | None = None,
) -> None:
    """Write `report.md`, `report.json` (a list, one object a claim) and a PNG for each figure.

    Args:
        findings: in their order.
        folder: to write into.
        config: how much was measured.
        command: that made it.
        note: on the circumstances, in words.

    Raises:
        LorasynthError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for finding in findings:
        for name, figure in finding.figures.items():
            save_figure(figure, folder / f"{name}.png")
    write_json(folder / "report.json", [_facts(finding, config.smoke) for finding in findings])
    lines = ["# The paper's claims on the avatar domain", "", f"Made by `{command}`.", ""]
    for paragraph in (SMOKE if config.smoke else None, _how(config), note):
        lines += [paragraph, ""] if paragraph else []
    lines += _verdicts(findings, config.smoke)
    for finding in findings:
        lines += _section(finding, config.smoke)
    with atomic_file(folder / "report.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def _how(config: ReproduceConfig) -> str:
    """What all claims share, in a paragraph."""
    trial, curve = config.trial, config.curve
    return (
        f"The same {trial.subjects} test subjects, which no part has seen, judge all claims, with "
        f"{trial.images} images of each; {curve.subjects} validation subjects make choices and "
        f"the curves of training. What is trained to be compared is trained {len(config.seeds)} "
        "times, from other seeds; the optimisations of the claim on cost are not, as each of their "
        "subjects has noise of its own. In brackets are 95 % intervals, by a bootstrap over "
        "subjects and seeds. Likeness is the mean cosine between embeddings of images made and "
        "of other images of the subject. What is missed is a squared error, as a share of that "
        "of the library's mean."
    )


def _facts(finding: Finding, smoke: bool) -> dict[str, Any]:
    return {
        "claim": finding.claim,
        "section": finding.section,
        "verdict": "smoke, no verdict" if smoke else finding.verdict,
        "why": finding.why,
        "rule": finding.rule,
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
    lines += [f"*Rule.* {finding.rule}", ""] if finding.rule else []
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
