"""`graphtrace demo`: the whole way, offline, on the bundled model."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from graphtrace.cli.app import app
from graphtrace.cli.output import note, print_frame

SHOWN_SIZES = (1e-3, 2e-3, 1e-2, 2e-2, 0.1)
COMPONENT_COLUMNS = ["component", "presence", "n_edges", "path_flow", "strength", "pagerank"]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path(
        "graphtrace-demo"
    ),
) -> None:
    """Extract, store, query, analyse, plot and export 24 sentences with the bundled model.

    Needs no network. A second run finds the traces there and goes on from them.
    """
    start = time.monotonic()
    archive, store = out / "archive", out / "store"
    _extract(archive, out / "random")
    with _step("ingest"):
        from graphtrace.ingestion import ingest

        ingest(archive, store)
    _show_curves(archive, out)
    _analyse(store, out)
    _query_and_export(store, out)
    note(f"\neverything in {time.monotonic() - start:.1f} s; figures and tables in {out}")
    note(f"next: graphtrace queries; graphtrace traces --store {store}")


@contextmanager
def _step(name: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    note(f"{name}: {time.monotonic() - start:.1f} s")


def _extract(archive: Path, random: Path) -> None:
    with _step("load the model"):
        from graphtrace.loading import demo_folder, load_model
        from graphtrace.study import extract

        model = load_model("demo")
    sentences = demo_folder() / "sentences.jsonl"
    with _step("extract"):
        done = extract(model, sentences, archive, show_progress=True)
        note(f"  {len(done.traced)} traced, {len(done.present)} were there already")
    with _step("the random baseline"):
        extract(model, sentences, random, scorer="random", show_progress=True)


def _show_curves(archive: Path, out: Path) -> None:
    import pandas as pd

    from graphtrace.archive import open_archive
    from graphtrace.plots import plot_reconstruction, save_figure

    curves = {}
    for name, folder in (("l1", archive), ("random", out / "random")):
        with open_archive(folder) as opened:
            curves[name] = [opened[trace].curve for trace in opened.ids()]
    rows = []
    for size in SHOWN_SIZES:
        row = {"size": size}
        for name, found in curves.items():
            row[name] = sum(c.tv[c.grid == size].item() for c in found) / len(found)
        rows.append(row)
    title = "How well the top-ranked edges reproduce the full prediction (mean TV, 0 is exactly)"
    print_frame(pd.DataFrame(rows), title=title)
    save_figure(plot_reconstruction(curves), out / "reconstruction.svg")


def _analyse(store: Path, out: Path) -> None:
    from graphtrace.analysis.centrality import centrality
    from graphtrace.analysis.core import core_stability
    from graphtrace.analysis.modularity import modularity
    from graphtrace.plots import (
        plot_centrality,
        plot_core_stability,
        plot_modularity,
        save_figure,
    )
    from graphtrace.stores.base import open_store

    with _step("analyse"), open_store(store) as opened:
        components = centrality(opened, size=0.01)
        modules = modularity(opened, size=0.01)
        cores = core_stability(opened, size=0.01)
    print_frame(
        components[COMPONENT_COLUMNS].head(10),
        title="Components by path flow, at 1 % of the edges (means over inputs)",
    )
    columns = ["n_inputs", "core_size", "jaccard", "jaccard_chance", "stability"]
    print_frame(cores.summary[columns], title="Do the inputs share their cores?")
    with _step("plots"):
        save_figure(plot_centrality(components), out / "centrality.svg")
        save_figure(plot_modularity(modules), out / "modularity.svg")
        save_figure(plot_core_stability(cores), out / "core-stability.svg")


def _query_and_export(store: Path, out: Path) -> None:
    from graphtrace.export import export_gephi
    from graphtrace.stores.base import open_store

    with open_store(store) as opened:
        traces = opened.traces().sort_values("density", ascending=False)
        densest = traces.iloc[0]
        with _step("query"):
            tokens = opened.query("token-dependence", trace=densest["id"], size=0.02)
        print_frame(tokens.head(8), title=f"What {densest['name']!r} depends on, at 2 %")
        with _step("export"):
            export_gephi(opened.subgraph(densest["id"], 0.02), out / "trace.gexf")
