"""`graphtrace archive`: what an archive holds, whether it is whole, and several made into one."""

from pathlib import Path
from typing import Annotated

import typer

from graphtrace.cli.app import app
from graphtrace.cli.output import Format, FormatOption, note, print_frame

archive_app = typer.Typer(
    help="Look at, check and merge archives of traces.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(archive_app, name="archive")

ArchiveArgument = Annotated[Path, typer.Argument(help="Archive folder.", show_default=True)]
DEFAULT_ARCHIVE = Path("traces/archive")


@archive_app.command()
def info(archive: ArchiveArgument = DEFAULT_ARCHIVE, format: FormatOption = Format.table) -> None:
    """Show what an archive holds: traces, models, settings, size, failures."""
    import pandas as pd

    from graphtrace.archive import open_archive

    with open_archive(archive) as found:
        facts = found.info()
        failures = found.failures()
    for column in ("models", "settings"):
        facts[column] = ", ".join(f"{name}: {count:,}" for name, count in facts[column].items())
    if format is Format.table:
        rows = pd.DataFrame({"fact": list(facts), "value": [_shown(x) for x in facts.values()]})
        print_frame(rows, format)
        if len(failures):
            print_frame(failures[["input", "model", "error", "message"]], format, "failures")
    else:
        print_frame(pd.DataFrame([facts]), format)


@archive_app.command()
def verify(
    archive: ArchiveArgument = DEFAULT_ARCHIVE,
    set_aside: Annotated[
        bool,
        typer.Option(
            "--set-aside",
            help="Move damaged files into damaged/, keep every whole trace of theirs.",
        ),
    ] = False,
    format: FormatOption = Format.table,
) -> None:
    """Check every file and every trace of an archive; exit code 1 where something is wrong."""
    from graphtrace.archive_verify import set_aside_damaged, verify_archive

    problems = verify_archive(archive)
    if set_aside and len(problems):
        problems = set_aside_damaged(archive)
    if len(problems) == 0 and format is Format.table:
        note(f"{archive} is whole")
        return
    print_frame(problems, format)
    if len(problems) == 0:
        return
    n_files = problems["file"].nunique()
    if set_aside:
        note(
            f"{n_files} damaged files moved to {archive / 'damaged'}; run `graphtrace extract` "
            "again to trace what is missing"
        )
    else:
        note(
            f"{n_files} damaged files; restore them from a copy, or take them out with "
            f"`graphtrace archive verify {archive} --set-aside`"
        )
    raise typer.Exit(1)


@archive_app.command()
def merge(
    archives: Annotated[list[Path], typer.Argument(help="Archives to read.")],
    into: Annotated[Path, typer.Option("--into", help="Archive to add to; made if absent.")],
) -> None:
    """Add the traces of archives to one: graphtrace archive merge A B --into C."""
    from graphtrace.archive_write import merge_archives

    counts = merge_archives(archives, into)
    note(f"{counts['added']:,} traces added to {into}, {counts['present']:,} were there already")


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
