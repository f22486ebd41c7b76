"""`graphtrace bench`: how long tracing takes on this machine, with this model."""

from typing import Annotated

import typer

from graphtrace.cli.app import app
from graphtrace.cli.output import Format, FormatOption, note, print_frame


@app.command()
def bench(
    model: Annotated[
        str, typer.Option(help="Hub id, local folder, or `demo`, the bundled model.")
    ] = "demo",
    tokens: Annotated[
        str, typer.Option(help="Comma-separated input lengths, in tokens.")
    ] = "24,48",
    rounds: Annotated[int, typer.Option(help="Rounds, of which the median counts.")] = 7,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Edges kept in order, as by extract: F, k:N or all [default: 1 %, at least 5,000]."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.")] = None,
    format: FormatOption = Format.table,
) -> None:
    """Time the parts of tracing against a plain forward pass of the same input.

    The parts take turns, so that ratios hold on a busy machine too. The machine is named on stderr.
    """
    lengths = _lengths(tokens)
    from graphtrace.errors import OptionError

    if rounds < 1:
        raise OptionError(f"--rounds {rounds} is not at least 1")
    from graphtrace.archive_write import parse_keep

    rule = parse_keep(keep)
    from graphtrace.loading import load_model
    from graphtrace.measuring import machine_facts, measure_parts

    loaded = load_model(model, device=device, dtype=dtype, revision=revision)
    for name, value in machine_facts(loaded).items():
        note(f"{name}: {value}")
    print_frame(measure_parts(loaded, lengths, rounds, rule, show_progress=True), format)
    note(
        f"medians of {rounds} rounds in turn; per_forward: over one plain forward of the same "
        "input; evaluation: the masked passes of all sizes together"
    )


def _lengths(text: str) -> list[int]:
    from graphtrace.errors import OptionError

    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise OptionError(f"--tokens {text!r} is not a list of numbers such as 24,48") from error
    for n in found:
        if n < 1:
            raise OptionError(f"--tokens {n}: an input has at least 1 token")
    return found
