"""The page that shows how far a recipe is."""

import html
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorasynth.core.atomic import write_text
from lorasynth.core.config import read_json
from lorasynth.core.errors import LorasynthError
from lorasynth.core.stages import StagedRun

#: Seconds between two versions of the page while something runs.
_EVERY = 20.0

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8">{refresh}
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem; max-width: 60rem; color: #222;
        background: #fff }}
table {{ border-collapse: collapse }} td, th {{ padding: .2rem .8rem; text-align: left }}
tr + tr td {{ border-top: 1px solid #ddd }}
img {{ max-width: 100% }}
@media (prefers-color-scheme: dark) {{ body {{ color: #ddd; background: #181818 }}
  tr + tr td {{ border-color: #444 }} img {{ background: #fff }} }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def write_page(run: Path, stages: StagedRun, running: bool) -> None:
    """Write `index.html` into the folder of a run, from what is in it."""
    missing, seconds = stages.missing(), stages.seconds()
    rows = []
    for name in stages.makers:
        state = "done" if name not in missing else "to do"
        if running and missing and name == missing[0]:
            state = "running"
        took = "" if name not in seconds else f"{seconds[name] / 60:.1f} min"
        rows.append([name, state, took])
    parts = [_table(["stage", "state", "took"], rows)]
    if (report := stages.path("check") / "report.txt").is_file():
        parts.append(f"<h2>Images</h2>\n<pre>{html.escape(report.read_text())}</pre>")
        parts.append(_image(run, stages.path("check") / "sheet.png", "images as they are cut"))
    for name in ("predictor", "synthesizer"):
        parts += _training(run, name)
    if (table := stages.path("benchmark.json")).is_file():
        parts.append("<h2>Subjects that nothing has learned from</h2>")
        parts.append(_measured(read_json(table)["rows"]))
        sheets = sorted(stages.path("benchmark").glob("*.png"))
        parts += [_image(run, sheet, sheet.stem) for sheet in sheets]
    text = _PAGE.format(
        title=html.escape(run.resolve().name),
        refresh='<meta http-equiv="refresh" content="20">' if running else "",
        body="\n".join(filter(None, parts)),
    )
    write_text(run / "index.html", text)


@contextmanager
def kept_page(run: Path, stages: StagedRun) -> Iterator[None]:
    """Write the page again and again while something runs, and once after."""
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(_EVERY):
            try:
                write_page(run, stages, running=True)
            except (LorasynthError, OSError, ValueError):
                continue  # a file was just being replaced

    thread = threading.Thread(target=write, daemon=True)
    write_page(run, stages, running=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        write_page(run, stages, running=False)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], kind: str) -> str:
        return f"<tr>{''.join(f'<{kind}>{html.escape(c)}</{kind}>' for c in cells)}</tr>"

    return "\n".join(["<table>", row(heads, "th"), *(row(r, "td") for r in rows), "</table>"])


def _image(run: Path, path: Path, text: str) -> str:
    if not path.is_file():
        return ""
    place = html.escape(path.relative_to(run).as_posix(), quote=True)
    said = html.escape(text, quote=True)
    return f'<p>{said}<br><img src="{place}" alt="{said}"></p>'


def _measured(rows: Sequence[Mapping[str, Any]]) -> str:
    from lorasynth.evaluation.bootstrap import in_words

    names = [name for name, value in rows[-1].items() if isinstance(value, Mapping)]
    cells = [
        [str(row["method"]), *(in_words(row[n]) if n in row else "" for n in names)] for row in rows
    ]
    return _table(["", *(name.replace("_", " ") for name in names)], cells)


def _training(run: Path, name: str) -> list[str]:
    """Curves and the last samples of a training."""
    from lorasynth.core.figures import Line, curves, save_figure

    folder = run / "work" / name
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # cut off by a kill
    told = {key for row in rows for key in row} - {"training", "step", "rate", "seconds"}
    panels = {}
    for key in sorted(told):
        found = [(row["step"], row[key]) for row in rows if key in row]
        panels[key] = [Line("", [step for step, _ in found], [value for _, value in found])]
    parts = [f"<h2>Training of the {name}</h2>"]
    if panels:
        save_figure(curves(panels, "step"), folder / "curves.png")
        parts.append(_image(run, folder / "curves.png", f"curves of the {name}"))
    samples = sorted((folder / "samples").glob("*.png"))
    return parts + [_image(run, one, f"samples after step {one.stem}") for one in samples[-1:]]
