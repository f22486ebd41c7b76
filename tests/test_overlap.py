"""Archives that overlap, made on different machines: the same graph in whatever order they come."""

import dataclasses
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import neo4j_server
import numpy as np
import pytest
from builders import model_info, synthetic_trace, with_curves
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_dump import dump

from graphtrace.archive_write import write_traces
from graphtrace.errors import StoreError
from graphtrace.ingestion import ingest
from graphtrace.neo4j_import import export_neo4j_import
from graphtrace.sizes import ShortTraceWarning
from graphtrace.stores.base import open_store
from graphtrace.stores.copying import copy_store
from graphtrace.stores.maintenance import rebuild_store
from graphtrace.stores.verify import verify_store

pytestmark = pytest.mark.filterwarnings(f"ignore::{ShortTraceWarning.__module__}.ShortTraceWarning")
EARLY = datetime(2026, 1, 1, tzinfo=UTC)
SUFFICIENCY, NECESSITY = "sufficiency:zero:mlp", "necessity:zero:residual,mlp,attention"


@pytest.fixture(params=["embedded", "neo4j"])
def new_url(request, tmp_path_factory):
    """A function that gives the URL of an empty store; the one before may be gone then."""
    if request.param == "embedded":
        return lambda: str(tmp_path_factory.mktemp("store") / "store")
    server = request.getfixturevalue("server")

    def make():
        neo4j_server.empty(server)
        return server

    return make


def variant(seed=1, labels=None, keep=None, later=0, kinds=(), noise=False, meta=None, lift=0.0):
    """One making of a trace. later: ms after the first; noise: as other hardware scores it."""
    trace = synthetic_trace(seed=seed, n=4)
    if kinds:
        trace = with_curves(trace, trace.curve.kind, *kinds, lift=lift)
    if noise:
        score = trace.ranked.score * np.float32(1.0001)
        trace = dataclasses.replace(trace, ranked=trace.ranked._replace(score=score))
    input_ = dataclasses.replace(trace.input, labels=labels or {}, meta=meta or {"d": 1})
    trace = dataclasses.replace(
        trace, input=input_, created=EARLY + timedelta(milliseconds=later), version=f"0.{later}"
    )
    return trace, "all" if keep is None else keep


def write(folder, variants):
    for trace, keep in variants:
        write_traces(folder, [trace], keep=keep)
    return folder


def stored(new_url, *archives):
    """(url, what the store of these archives holds, results of the ingests)."""
    url = new_url()
    results = [ingest(archive, url) for archive in archives]
    with open_store(url) as store:
        assert verify_store(store, store.archives)["problem"].tolist() == []
        assert store.loose_ends() == []
        return url, dump(store), results


def both_orders(new_url, one, two):
    """What both orders come to, which must be the same; the results of the second ingests."""
    _, found, first = stored(new_url, one, two)
    url, other, second = stored(new_url, two, one)
    assert found == other
    again = [ingest(archive, url) for archive in (one, two, one)]
    assert [(r.n_new, r.n_changed) for r in again] == [(0, 0)] * 3
    with open_store(url) as store:
        assert dump(store) == found
    rebuild_store(url)
    with open_store(url) as store:
        assert dump(store) == found
    return found, (first[1], second[1])


def test_labels_the_newest_value_counts(new_url, tmp_path):
    here = [variant(1, {"a": "1", "c": "x"}), variant(2, {"a": "1"}, later=9)]
    there = [variant(1, {"a": "2", "b": "3"}, later=5), variant(2, {"a": "2"}, later=4)]
    one, two = write(tmp_path / "one", here), write(tmp_path / "two", there)
    found, results = both_orders(new_url, one, two)
    assert [row.split("'")[1] for row in found["Label"]] == ["a=1", "a=2", "b=3", "c=x"]
    url, *_ = stored(new_url, one, two)
    with open_store(url) as store:
        labels = store.traces().set_index("name")["labels"].to_dict()
    assert labels == {"line-1": {"a": "2", "b": "3", "c": "x"}, "line-2": {"a": "1"}}
    assert {r.n_conflicts for r in results} == {0}


def test_a_label_that_no_input_has_any_more_goes(new_url, tmp_path):
    one = write(tmp_path / "one", [variant(1, {"a": "old"})])
    two = write(tmp_path / "two", [variant(1, {"a": "new"}, later=1)])
    found, _ = both_orders(new_url, one, two)
    assert [row.split("'")[1] for row in found["Label"]] == ["a=new"]


def test_curves_are_the_union_of_kinds(new_url, tmp_path):
    one = write(tmp_path / "one", [variant(1, kinds=[NECESSITY]), variant(2)])
    two = write(tmp_path / "two", [variant(1, kinds=[SUFFICIENCY]), variant(2)])
    _, results = both_orders(new_url, one, two)
    assert [(r.n_new, r.n_changed, r.n_conflicts) for r in results] == [(0, 1, 0)] * 2
    url, *_ = stored(new_url, one, two)
    with open_store(url) as store:
        found = store.traces().set_index("name")
        trace, _ = variant(1)
        assert found["curves"]["line-1"] == [trace.curve.kind, NECESSITY, SUFFICIENCY]
        assert found["curve"]["line-1"] == trace.curve.kind
        assert found["density"]["line-1"] == trace.density
        points = store.query("reconstruction-curve", trace="line-1")
    for number, curve in enumerate(with_curves(trace, trace.curve.kind, NECESSITY).curves):
        assert points.loc[points["curve"] == number, "tv"].tolist() == curve.tv.tolist()


def test_the_longer_trace_counts(new_url, tmp_path):
    trace, _ = variant(1)
    one = write(tmp_path / "one", [variant(1, keep="k:20", later=5, kinds=[SUFFICIENCY])])
    two = write(tmp_path / "two", [variant(1)])
    _, results = both_orders(new_url, one, two)
    assert [(r.n_changed, r.n_conflicts) for r in results] == [(1, 0), (1, 0)]
    url, *_ = stored(new_url, one, two)
    with open_store(url) as store:
        assert len(store.subgraph(trace.id, 1.0)) == trace.n_edges
        assert len(store.traces()["curves"].iloc[0]) == 2


def test_other_hardware_is_said_and_the_newer_copy_counts(new_url, tmp_path):
    one = write(tmp_path / "one", [variant(1), variant(2)])
    two = write(tmp_path / "two", [variant(1, noise=True, later=7), variant(2)])
    _, results = both_orders(new_url, one, two)
    assert [r.n_conflicts for r in results] == [1, 1]
    assert [r.n_changed for r in results] == [1, 0]
    url, *_ = stored(new_url, two, one)
    with open_store(url) as store:
        score = store.subgraph(variant(1)[0].id, 1.0).edges.score
    np.testing.assert_array_equal(score, variant(1, noise=True)[0].ranked.score)


def test_models_and_inputs_do_not_depend_on_the_order(new_url, tmp_path):
    half = dataclasses.replace(model_info(), dtype="bfloat16")
    first, second = synthetic_trace(seed=1, n=4), synthetic_trace(seed=1, n=4, model=half)
    second = dataclasses.replace(
        second,
        settings=dataclasses.replace(second.settings, dtype="bfloat16"),
        input=dataclasses.replace(second.input, meta={"other": 2}, corpus="elsewhere"),
        created=first.created + timedelta(seconds=1),
    )
    one, two = (write(tmp_path / str(i), [(t, "all")]) for i, t in enumerate((first, second)))
    found, _ = both_orders(new_url, one, two)
    assert len(found["Model"]) == len(found["Input"]) == 1
    assert "bfloat16" in found["Model"][0]
    assert "elsewhere" in found["Input"][0]


def test_two_models_of_one_id_are_refused(new_url, tmp_path):
    """Traces of one of them could not be read back. The store stays as it was."""
    one = write(tmp_path / "one", [variant()])
    other = synthetic_trace(seed=2, n=6, model=model_info(4, 3))
    two = write(tmp_path / "two", [(other, "all")])
    url, found, _ = stored(new_url, one)
    with pytest.raises(StoreError, match=r"two models with the id toy@.*2 layers.*4 layers of 3"):
        ingest(two, url)
    with open_store(url) as store:
        assert dump(store) == found
    copied = str(tmp_path / "copied")
    ingest(two, copied)
    with pytest.raises(StoreError, match="two models with the id toy@"):
        copy_store(copied, url)
    with open_store(url) as store:
        assert dump(store) == found
        assert store.loose_ends() == []


@pytest.mark.parametrize("traces", [1, 1000])
def test_two_models_of_one_id_in_one_archive(new_url, tmp_path, traces, monkeypatch):
    """The importer's files are refused too, with both in one batch or not."""
    monkeypatch.setattr("graphtrace.neo4j_import.BATCH_TRACES", traces)
    other = synthetic_trace(seed=2, n=6, model=model_info(4, 3))
    folder = write(tmp_path / "one", [variant(), (other, "all")])
    with pytest.raises(StoreError, match="two models with the id toy@"):
        ingest(folder, new_url())
    with pytest.raises(StoreError, match="two models with the id toy@"):
        export_neo4j_import(folder, tmp_path / "files")
    assert not (tmp_path / "files").exists()


def test_an_archive_that_is_not_at_hand(new_url, tmp_path):
    one = write(tmp_path / "one", [variant(1, {"a": "1"}, kinds=[NECESSITY]), variant(2)])
    two = write(tmp_path / "two", [variant(1, {"b": "1"}, keep="k:20", later=3), variant(3)])
    _, expected, _ = stored(new_url, one, two)
    for first, second in ((one, two), (two, one)):
        url = new_url()
        ingest(first, url)
        first.rename(tmp_path / "away")
        ingest(second, url)
        (tmp_path / "away").rename(first)
        with open_store(url) as store:
            assert dump(store) == expected


def test_an_archive_that_was_evaluated_again(new_url, tmp_path):
    archive = write(tmp_path / "one", [variant(1), variant(2)])
    url = new_url()
    ingest(archive, url)
    write(archive, [variant(1, kinds=[SUFFICIENCY])])
    result = ingest(archive, url)
    assert (result.n_new, result.n_changed, result.n_conflicts) == (0, 1, 0)
    # The same kind anew: what the archive says now counts, not what it said.
    trace, _ = variant(1, kinds=[SUFFICIENCY], lift=0.3)
    from graphtrace.archive_write import ArchiveWriter

    with ArchiveWriter(archive) as writer:
        writer.write(trace)
    result = ingest(archive, url)
    assert (result.n_changed, result.n_conflicts) == (1, 0)
    with open_store(url) as store:
        assert verify_store(store, store.archives)["problem"].tolist() == []
        assert store.traces().set_index("id")["density"][trace.id] == trace.density


def test_copies_between_stores_keep_what_labels_and_inputs_say(tmp_path):
    one = write(tmp_path / "one", [variant(1, {"a": "1"}, later=5)])
    two = write(tmp_path / "two", [variant(1, {"a": "2"}), variant(2, {"a": "2"})])
    ingest(one, tmp_path / "a")
    copy_store(tmp_path / "a", tmp_path / "b")
    ingest(two, tmp_path / "a")
    ingest(two, tmp_path / "b")
    with open_store(tmp_path / "a") as first, open_store(tmp_path / "b") as second:
        assert dump(first) == dump(second)


AGAIN = """
import sys, warnings
from graphtrace.ingestion import ingest
warnings.simplefilter("ignore")
import graphtrace.stores.embedded, graphtrace.stores.overlap
print("go", flush=True)
ingest(sys.argv[1], sys.argv[2])
"""


def test_killed_while_traces_change(tmp_path):
    """Each trace is the old or the new one, whole, and the same call goes on from there."""
    here = [variant(i, {"a": "1"}) for i in range(1, 7)]
    there = [variant(i, {"a": "2"}, later=5, kinds=[SUFFICIENCY]) for i in range(1, 4)]
    there += [variant(i, {"a": "2"}, later=5, noise=True) for i in range(4, 7)]
    one, two = write(tmp_path / "one", here), write(tmp_path / "two", there)
    url, expected, _ = stored(lambda: str(tmp_path / "whole"), one, two)
    url = str(tmp_path / "killed")
    ingest(one, url)
    for delay in np.linspace(0.1, 1.2, 6):
        command = [sys.executable, "-c", AGAIN, str(two), url]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"go\n"
            time.sleep(delay)
            process.kill()
        with open_store(url, wait=20) as store:
            assert len(store.traces()) == 6
            for trace, _ in here:
                assert len(store.subgraph(trace.id)) == trace.n_edges
            assert store.query(
                "MATCH (t:Trace) WHERE NOT EXISTS { MATCH (t)-[:AT]->(:Checkpoint) } "
                "RETURN count(t) AS n"
            )["n"].tolist() == [0]
    ingest(two, url)
    with open_store(url) as store:
        assert dump(store) == expected
        assert verify_store(store, store.archives)["problem"].tolist() == []


VARIANTS = st.fixed_dictionaries(
    {
        "seed": st.integers(1, 3),
        "labels": st.dictionaries(st.sampled_from("ab"), st.sampled_from("12")),
        "keep": st.sampled_from([None, "k:9", "k:20"]),
        "later": st.integers(0, 3),
        "kinds": st.sets(st.sampled_from([SUFFICIENCY, NECESSITY])).map(sorted),
        "noise": st.booleans(),
        "meta": st.sampled_from([{"d": 1}, {"d": 2}]),
        "lift": st.sampled_from([0.0, 0.1]),
    }
)
ARCHIVES = st.lists(VARIANTS, min_size=1, max_size=3, unique_by=lambda v: v["seed"])


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(here=ARCHIVES, there=ARCHIVES)
def test_any_two_archives_in_either_order(tmp_path_factory, here, there):
    folder = tmp_path_factory.mktemp("any")
    one = write(folder / "one", [variant(**v) for v in here])
    two = write(folder / "two", [variant(**v) for v in there])
    both_orders(lambda: str(tmp_path_factory.mktemp("store") / "s"), one, two)
