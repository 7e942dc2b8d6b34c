"""`lorasynth reproduce`: the paper's claims, one by one."""

from pathlib import Path
from typing import Annotated

import typer

from lorasynth.commands.options import Device, Run, Settings, as_typed, override

BUNDLE = Path("bundle")


def reproduce(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder of the report; docs/report, but report in --run for --smoke and --claim.",
        ),
    ] = None,
    claim: Annotated[
        list[str] | None, typer.Option(help="Look into this claim alone; may be repeated.")
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="As little as can be: minutes, and no verdicts.")
    ] = False,
    bundle: Annotated[Path, typer.Option(help="Bundle to study.")] = BUNDLE,
    library: Annotated[
        Path | None,
        typer.Option(
            help="Library of the bundle's kind to study, such as the one it is made from"
            " (runs/out/library); without it one is collected."
        ),
    ] = None,
    run: Run = Path("runs/reproduce"),
    note: Annotated[
        str | None,
        typer.Option(help="What the report says of its circumstances, such as the machine."),
    ] = None,
    settings: Settings = None,
    device: Device = "auto",
) -> None:
    """Look into each claim of the paper and write a report; run again to resume.

    Example: lorasynth reproduce --smoke -o runs/smoke-report
    """
    from lorasynth.avatars.bundle import Bundle
    from lorasynth.core.device import pick_device
    from lorasynth.core.progress import console
    from lorasynth.library import Library
    from lorasynth.studies.reproduce import (
        CLAIMS,
        ReproduceConfig,
        Study,
        in_order,
        look_into,
        write_report,
    )
    from lorasynth.studies.reproduce import smoke as as_small_as_can_be

    config = override(as_small_as_can_be() if smoke else ReproduceConfig(), settings)
    chosen = [(name, CLAIMS.get(name)) for name in claim or in_order()]
    folder = run / "smoke" if smoke else run
    ours = None if library is None else Library.open(library)
    study, findings = Study(Bundle.open(bundle, pick_device(device)), config, folder, ours), []
    if out is None:
        out = folder / "report" if smoke or claim else Path("docs/report")
    for name, asked in chosen:
        console.print(f"claim: {name}", highlight=False)
        findings.append(look_into(asked, study))
    words = ["lorasynth", "reproduce", *(["--smoke"] if smoke else [])]
    words += [word for name in claim or () for word in ("--claim", name)]
    words += [] if bundle == BUNDLE else ["--bundle", str(bundle)]
    words += [] if library is None else ["--library", str(library)]
    write_report(findings, out, config, command=as_typed(words, settings), note=note)
    typer.echo(out / "report.md")
