"""`graphtrace reference-means`: what edges contribute on average, for the `mean` ablation."""

from pathlib import Path
from typing import Annotated

import typer

from graphtrace.cli.app import app
from graphtrace.cli.output import Format, FormatOption, note, print_frame


@app.command("reference-means")
def reference_means(
    corpus: Annotated[
        Path, typer.Argument(help="A corpus: .txt, .jsonl, .json, .csv, .tsv or .parquet.")
    ],
    model: Annotated[str, typer.Option(help="Hub id, local folder, or `demo`.")],
    out: Annotated[Path, typer.Option(help="Safetensors file to write.")],
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many inputs.")] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column that holds the text, or with --chat the messages.")
    ] = None,
    bos: Annotated[
        str,
        typer.Option(
            help="Token that begins a text: auto (as the tokenizer does), yes (put in front where "
            "it is not), no (taken out where the tokenizer puts it)."
        ),
    ] = "auto",
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Read each line's messages, or its text as the user's, through the model's chat "
            "template.",
        ),
    ] = False,
    system: Annotated[
        str | None, typer.Option(help="System message in front of every chat; with --chat.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.")] = None,
    format: FormatOption = Format.table,
) -> None:
    """Average what every head's edges and every MLP add, over a reference corpus.

    The file carries where it comes from; `graphtrace extract --ablation mean --means FILE` uses it.
    """
    import pandas as pd

    from graphtrace.corpus import read_corpus
    from graphtrace.loading import load_model
    from graphtrace.reference_means import reference_means as average
    from graphtrace.reference_means import save_means
    from graphtrace.tokenizing import TextOptions

    TextOptions(bos, chat, system)
    inputs = list(read_corpus(corpus, limit=limit, text_column=text_column, chat=chat))
    loaded = load_model(model, device=device, dtype=dtype, revision=revision)
    found = average(
        loaded,
        inputs,
        corpus=corpus.name,
        show_progress=True,
        bos=bos,
        chat=chat,
        system=system,
    )
    save_means(found, out)
    print_frame(pd.DataFrame([{"id": found.id, **vars(found.provenance)}]), format)
    note(f"next: graphtrace extract … --model {model} --ablation mean --means {out}")
