"""`graphtrace report`: every analysis on one page."""

from pathlib import Path
from typing import Annotated, Any

import typer

from graphtrace.cli.analyze_options import SizeOption, open_run, passes, selection
from graphtrace.cli.app import app
from graphtrace.cli.model_options import takes_options
from graphtrace.cli.output import note
from graphtrace.cli.source import ArchiveOption, StoreOption


@app.command()
@takes_options(selection, passes)
def report(
    out: Annotated[Path, typer.Option("--out", help="The page, such as report.html.")],
    size: SizeOption = "0.01",
    figures: Annotated[
        Path | None, typer.Option("--figures", help="A folder that also gets every figure as SVG.")
    ] = None,
    store: StoreOption = None,
    archive: ArchiveOption = None,
    **options: Any,
) -> None:
    """Draw every analysis of the traces on one self-contained HTML page: reconstruction, nucleus,
    make-up, core stability, centrality, modularity, density and what goes with it, agreement of
    models, baselines; each figure with n, settings, intervals and a sentence that says what it
    shows."""
    from graphtrace.study_report import report as write_report

    with open_run(options | {"store": store, "archive": archive}) as run:
        found = write_report(
            run.source, out, size=size, figures=figures, **run.passes, **run.selection
        )
    for title, why in found.left_out.items():
        note(f"not drawn: {title}: {why}")
    if figures is not None:
        note(f"figures: {len(found.figures)} in {figures}")
    note(f"report: {found.path}")
