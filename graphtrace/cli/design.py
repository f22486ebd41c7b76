"""`graphtrace design`: inputs chosen so that one thing varies and the rest is held."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from graphtrace.cli.analyze_correlates import EdgesOption, FrequenciesOption, parse_edges
from graphtrace.cli.analyze_options import open_run, selection
from graphtrace.cli.app import app
from graphtrace.cli.model_options import takes_options
from graphtrace.cli.output import note
from graphtrace.cli.source import ArchiveOption, StoreOption

design = typer.Typer(
    name="design", help="Choose inputs for a control: matched endings, or rare and frequent tokens."
)
app.add_typer(design)


class Unit(StrEnum):
    """How far the words before an ending may reach."""

    file = "file"
    paragraph = "paragraph"


@design.command()
def matched(
    files: Annotated[
        list[Path],
        typer.Argument(help="Plain text, UTF-8, paragraphs apart by an empty line."),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Corpus to write, such as matched.jsonl; the design goes beside it."),
    ],
    endings: Annotated[int, typer.Option(min=1, help="How many endings are drawn.")] = 100,
    contexts: Annotated[
        str, typer.Option(help="Lengths in words, the ending's among them.")
    ] = "6,12,24,48,96",
    ending_words: Annotated[
        int, typer.Option(min=1, help="Last words that the texts of an ending share.")
    ] = 6,
    continuation_words: Annotated[
        int, typer.Option(min=1, help="Words of the true continuation that are kept.")
    ] = 3,
    unit: Annotated[
        Unit, typer.Option(help="How far the words before an ending may reach.")
    ] = Unit.file,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 0,
) -> None:
    """Cut texts that end in the same words before the same continuation, with more and more of the
    true context before them. `analyze controls` then follows density along the lengths."""
    from graphtrace.designs import matched_continuations, write_matched
    from graphtrace.errors import OptionError

    parts = [part.strip() for part in contexts.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise OptionError(f"--contexts {contexts!r} is not a list of lengths such as 6,12,24,48,96")
    if out.suffix != ".jsonl":
        raise OptionError(f"--out {str(out)!r} must end in .jsonl")
    found = matched_continuations(
        files,
        endings,
        contexts=[int(part) for part in parts],
        ending_words=ending_words,
        continuation_words=continuation_words,
        unit=unit.value,
        seed=seed,
    )
    corpus, written = write_matched(found, out)
    note(f"{corpus}: {len(found.rows):,} texts of {found.design['n_endings']:,} endings")
    note(f"design: {written}")
    note(f"next: graphtrace extract {corpus} --model MODEL --label ending --label context")


@design.command()
@takes_options(selection)
def rarity(
    out: Annotated[Path, typer.Option(help="Design to write: a .json file.")],
    edges: EdgesOption = None,
    frequencies: FrequenciesOption = None,
    store: StoreOption = None,
    archive: ArchiveOption = None,
    **options: Any,
) -> None:
    """Put the inputs of a study into strata of context length, and in each into quartiles of how
    frequent the model's top token is, as `analyze controls` does; write which input is where."""
    from graphtrace.analysis.token_rarity import rarity_design, rarity_quartiles
    from graphtrace.designs import check_design_path, write_design

    check_design_path(out)
    strata = parse_edges(edges)
    with open_run({**options, "store": store, "archive": archive}) as run:
        found = rarity_quartiles(
            run.source, edges=strata, frequencies=frequencies, draws=1, **run.selection
        )
    held = rarity_design(found.inputs, strata, frequencies, run.selection)
    cells = found.inputs.groupby([*found.inputs.columns[:1], "stratum", "quartile"]).ngroups
    note(f"{write_design(held, out)}: {len(found.inputs):,} inputs in {cells:,} cells")
