"""Reports that are kept as files, so that nothing is measured twice."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lorasynth.core.atomic import write_json
from lorasynth.core.config import read_json
from lorasynth.core.progress import console


def kept_report(
    path: Path, asked: Mapping[str, Any], title: str, measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The report in a file if it answers what is asked; else measure it and write it there.

    Args:
        path: of the report.
        asked: JSON values that decide the report, and are part of it.
        title: said before measuring.
        measure: returns the rest of the report.
    """
    report = read_json(path) if path.is_file() else {}
    if not asked.items() <= report.items():
        console.print(title)
        report = {**asked, **measure()}
        write_json(path, report)
    return report
