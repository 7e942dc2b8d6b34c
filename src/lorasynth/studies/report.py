"""The report on claims: Markdown for people, JSON for programs, and the images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorasynth.core.atomic import write_json, write_text
from lorasynth.core.figures import save_figure
from lorasynth.studies.config import ReproduceConfig
from lorasynth.studies.finding import Claim, Finding, in_words

SMOKE = "Smoke: every measurement was made once, as small as can be, so there are no verdicts."


def write_report(
    found: Sequence[tuple[Claim, Finding]],
    folder: Path,
    config: ReproduceConfig,
    *,
    command: str,
    note: str | None = None,
) -> None:
    """Write `report.md`, `report.json` (a list, one object a claim) and a PNG for each figure.

    Args:
        found: of each claim, in their order.
        folder: to write into.
        config: how much was measured.
        command: that made it.
        note: on the circumstances, in words.

    Raises:
        LorasynthError: the folder cannot be written.
    """
    for _, finding in found:
        for name, figure in finding.figures.items():
            save_figure(figure, folder / f"{name}.png")
    facts = [
        {
            "claim": claim.says,
            "section": claim.section,
            "verdict": "smoke, no verdict" if config.smoke else finding.verdict,
            "why": in_words(finding.why),
            "rule": claim.rule,
            "seeds": list(config.seeds) if claim.seeded else [],
            "values": {"decided": dict(finding.why), **finding.tables},
        }
        for claim, finding in found
    ]
    write_json(folder / "report.json", facts)
    lines = ["# The paper's claims on the avatar domain", "", f"Made by `{command}`.", ""]
    for paragraph in (SMOKE if config.smoke else None, _how(config), note):
        lines += [paragraph, ""] if paragraph else []
    lines += [*_table([{n: row[n] for n in ("claim", "section", "verdict")} for row in facts]), ""]
    for row, (_, finding) in zip(facts, found, strict=True):
        lines += [f"## {row['claim']} ({row['section']})", ""]
        lines += [f"**{row['verdict']}.** {row['why']}", "", f"*Rule.* {row['rule']}", ""]
        for title, rows in finding.tables.items():
            lines += [f"*{title}*", "", *_table(rows), ""]
        for name in finding.figures:
            lines += [f"![{name}]({name}.png)", ""]
    write_text(folder / "report.md", "\n".join(lines))


def _how(config: ReproduceConfig) -> str:
    """What all claims share, in a paragraph."""
    test, curve = config.test, config.curve
    return (
        f"The same {test.drawn} test subjects, which no part has seen, judge all claims, with "
        f"{test.images} images of each; {curve.drawn} validation subjects make choices and "
        f"the curves of training. What is trained to be compared is trained {len(config.seeds)} "
        "times, from other seeds; the optimisations of the claim on cost are not, as each of their "
        "subjects has noise of its own. In brackets are 95 % intervals, by a bootstrap over "
        "subjects and seeds. Identity similarity is the mean cosine between embeddings of images "
        "made and of other images of the subject. FVU is the fraction of variance unexplained: "
        "the squared error as a fraction of that of the library's mean."
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of equal keys; lists, such as figures by subject, are left out."""
    heads = [head for head, value in rows[0].items() if not isinstance(value, list)]
    lines = ["| " + " | ".join(head.replace("_", " ") for head in heads) + " |"]
    lines.append("|" + "---|" * len(heads))
    return lines + ["| " + " | ".join(in_words(row[h]) for h in heads) + " |" for row in rows]
