"""One measure over many traces: the same in processes as without, and resumed where it stopped."""

import warnings
from itertools import islice

import numpy as np
import pytest
from builders_source import MemorySource, study

import graphtrace as gt
from graphtrace.analysis import measure_cache, passes
from graphtrace.analysis.core import CORE_MEASURE
from graphtrace.analysis.measure_cache import MeasureCache
from graphtrace.analysis.passes import Measure, measured
from graphtrace.analysis.reading import chosen_traces
from graphtrace.errors import OptionError
from graphtrace.files import cache_folder
from graphtrace.sizes import ShortTraceWarning

seen: list[str] = []


def counted(subgraph, factor=1):
    """Which sub-graph was measured is noted; its ranks and scores come back."""
    seen.append(subgraph.trace)
    return {"rank": subgraph.rank * factor, "score": subgraph.edges.score.astype(np.float64)}


MEASURE = Measure("counted", 1, counted, {"factor": 2})


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder for what is measured, written to after every trace."""
    monkeypatch.setenv("GRAPHTRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measure_cache, "FLUSH_SECONDS", 0.0)
    seen.clear()
    return tmp_path / "cache" / "measures"


def chosen(source, **selection):
    return chosen_traces(source, selection)


def results(source, size="k:25", measure=MEASURE, **options):
    found = measured(source, chosen(source), size, measure, **options)
    return [(row["id"], {name: x.tolist() for name, x in values.items()}) for row, values in found]


def expected(source, k, factor=2):
    rows = []
    for trace in chosen(source)["id"]:
        subgraph = source.subgraph(trace, f"k:{k}")
        score = subgraph.edges.score.astype(np.float64).tolist()
        rows.append((trace, {"rank": (factor * subgraph.rank).tolist(), "score": score}))
    return [(trace, values | {"trace_edges": [k]}) for trace, values in rows]


def test_values_come_in_the_order_of_the_traces():
    source = study(5)
    assert results(source) == expected(source, 25)


def test_processes_give_what_one_gives(monkeypatch):
    source = study(5, n=4)
    monkeypatch.setattr(passes, "FEW", 2)
    monkeypatch.setattr(passes, "CHUNK", 2)
    alone = results(source, 0.3, CORE_MEASURE)
    assert results(source, 0.3, CORE_MEASURE, workers=2) == alone


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_a_pass_that_stopped_measures_only_what_is_missing(kept, stop):
    source = study(6)
    for _ in islice(measured(source, chosen(source), "k:25", MEASURE), stop):
        pass
    first = list(seen)
    assert len(first) == stop
    seen.clear()
    assert results(source) == expected(source, 25)
    assert len(seen) == 6 - stop
    seen.clear()
    assert results(source) == expected(source, 25)
    assert seen == []


def test_an_error_in_the_middle_keeps_what_was_measured(kept):
    source = study(6)
    broken = chosen(source)["id"].tolist()[3]

    class Failing(MemorySource):
        def subgraph(self, trace, size=1.0):
            if trace == broken:
                raise RuntimeError("the disk went away")
            return super().subgraph(trace, size)

    with pytest.raises(RuntimeError, match="disk went away"):
        results(Failing(list(source.held.values())))
    assert len(seen) == 3
    assert results(source) == expected(source, 25)
    assert len(seen) == 6


def test_other_sizes_parameters_versions_and_traces_are_other_values(kept):
    source = study(3)
    results(source)
    seen.clear()
    for size, measure in (
        ("k:20", MEASURE),
        ("k:25", MEASURE._replace(params={"factor": 3})),
        ("k:25", MEASURE._replace(version=2)),
        ("k:25", MEASURE._replace(name="other")),
    ):
        factor = (measure.params or {})["factor"]
        assert results(source, size, measure) == expected(source, int(size[2:]), factor)
        assert len(seen) == 3
        seen.clear()
    results(source, exclude_special=True)
    assert len(seen) == 3
    seen.clear()
    # The same ids extracted again may have other scores.
    again = MemorySource(list(source.held.values()))
    for trace in again.held.values():
        object.__setattr__(trace, "created", trace.created.replace(year=2001))
    results(again)
    assert len(seen) == 3


def test_a_block_that_cannot_be_read_is_measured_again(kept):
    source = study(3)
    results(source)
    (folder,) = kept.iterdir()
    blocks = sorted(folder.glob("*.parquet"))
    blocks[0].write_bytes(b"PAR1 and nothing more")
    seen.clear()
    with pytest.warns(UserWarning, match="cannot be read"):
        assert results(source) == expected(source, 25)
    assert len(seen) == 1
    assert '"measure": "counted"' in (folder / "about.json").read_text()


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRAPHTRACE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(measure_cache, "FLUSH_SECONDS", 0.0)
    source = study(4)
    with pytest.warns(UserWarning, match="not kept") as found:
        assert results(source) == expected(source, 25)
    assert len(found) == 1


def test_short_passes_leave_nothing(kept, monkeypatch):
    monkeypatch.setattr(measure_cache, "FLUSH_SECONDS", 100.0)
    results(study(3))
    assert not kept.exists()


def test_where_measures_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("GRAPHTRACE_CACHE", "")
    assert cache_folder() is None
    assert MeasureCache({"measure": "x"}).find(["t1"]) == {}
    monkeypatch.delenv("GRAPHTRACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "graphtrace"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "graphtrace"


def test_short_traces_are_counted_once_also_when_they_were_kept(kept):
    source = study(4)
    for _ in range(2):
        with pytest.warns(ShortTraceWarning, match="4 of 4") as found:
            results(source, "k:2")
        assert len(found) == 1


def test_special_tokens_are_left_out():
    source = study(3, n=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShortTraceWarning)
        found = results(source, 1.0, exclude_special=True)
    for trace, values in found:
        subgraph = source.subgraph(trace)
        special = subgraph.special
        inside = ~(special[subgraph.edges.source] | special[subgraph.edges.target])
        assert 0 < inside.sum() < len(subgraph)
        assert values["rank"] == (2 * subgraph.rank[inside]).tolist()


def test_analyses_without_special_tokens():
    source = study(4)
    every = gt.centrality(source, "k:40", workers=1).set_index("component")
    without = gt.centrality(source, "k:40", exclude_special=True).set_index("component")
    assert (without["n_edges"].sum()) < every["n_edges"].sum()
    assert (without["trace_edges"] < every["trace_edges"].iloc[0]).all()
    traces = chosen(source, exclude_special=True)
    assert (traces["n_tokens"] == chosen(source)["n_tokens"] - 1).all()


def test_traces_at_special_positions_are_left_out():
    source = study(4)
    odd = list(source.held)[1]
    source.held[odd].special[-1] = True
    assert odd not in set(chosen(source, exclude_special=True)["id"])
    for trace in source.held.values():
        trace.special[-1] = True
    with pytest.raises(OptionError, match="special token's position"):
        chosen(source, exclude_special=True)


def test_bad_options():
    source = study(2)
    with pytest.raises(OptionError, match="0 workers"):
        results(source, workers=0)
    with pytest.raises(OptionError, match="did you mean 'where'"):
        gt.centrality(source, wher=["group=clean"])  # type: ignore[call-arg]
