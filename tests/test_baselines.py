"""Baselines beside the trace's curve, against plain loops."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from builders import model_info, synthetic_trace, with_curves
from builders_source import MemorySource

from graphtrace.analysis.baselines import baselines
from graphtrace.analysis.curves import interpolate
from graphtrace.analysis.stats import bootstrap_mean
from graphtrace.errors import OptionError

ZERO = "sufficiency:zero:residual,mlp,attention"
NECESSITY = "necessity:zero:residual,mlp,attention"
BLOCKS = "sufficiency:zero:mlp,attention"


def trace_of(i, kinds, lift=0.0, seed=0, **settings):
    trace = synthetic_trace(
        seed + i,
        n=3 + i % 4,
        model=model_info(3, 2),
        name=f"line-{i}",
        text=f"text {i}",
        labels={"group": "ab"[i % 2]},
    )
    trace = with_curves(trace, *kinds, lift=lift + 0.01 * (i % 3))
    return dataclasses.replace(trace, settings=dataclasses.replace(trace.settings, **settings))


@pytest.fixture
def traces():
    """8 inputs with a trace and necessity, a random trace of 6 of them and one more."""
    own = [trace_of(i, (ZERO, NECESSITY)) for i in range(8)]
    random = [trace_of(i, (BLOCKS,), lift=0.2, scorer="random", seed=3) for i in (0, 1, 2, 3, 4, 5)]
    return [*own, *random, trace_of(9, (BLOCKS,), scorer="random", seed=3)]


def curves_of(traces, scorer, kind):
    found = {}
    for trace in traces:
        if trace.settings.scorer == scorer:
            for curve in trace.curves:
                if curve.kind == kind:
                    found[trace.input.id] = trace, curve
    return found


def with_left(trace, curve):
    """The curve with log10 of the edges left over |E| for its TV."""
    left = trace.edges_left(curve) / trace.n_edges
    return dataclasses.replace(curve, tv=np.log10(np.maximum(left, 1e-9)))


LINES = {
    "l1 sufficiency:zero": ("l1", ZERO),
    "l1 necessity:zero": ("l1", NECESSITY),
    "random sufficiency:zero:mlp,attention": ("random", BLOCKS),
}


def test_lines_against_plain_python(traces):
    found = baselines(MemorySource(traces), points=30, draws=300)
    assert found.summary["what"].tolist() == list(LINES)
    reference = curves_of(traces, "l1", ZERO)
    size = found.curve.loc[found.curve["what"] == "l1 sufficiency:zero", "size"].to_numpy()
    for row in found.summary.to_dict("records"):
        scorer, kind = LINES[row["what"]]
        own = {k: v for k, v in curves_of(traces, scorer, kind).items() if k in reference}
        assert row["n_inputs"] == len(own)
        assert row["kind"] == kind
        normalised = np.array([c.density_normalised for _, c in own.values()])
        differences = np.array([
            c.density_normalised - reference[x][1].density_normalised for x, (_, c) in own.items()
        ])  # fmt: skip
        assert row["density"] == pytest.approx(np.mean([c.density for _, c in own.values()]))
        assert row["density_normalised"] == pytest.approx(normalised.mean())
        assert row["difference"] == pytest.approx(differences.mean(), abs=1e-12)
        interval = bootstrap_mean(differences[:, None], 300, 0)
        np.testing.assert_allclose(
            [row["difference_low"], row["difference_high"]], np.concatenate(interval), atol=1e-12
        )
        rows = found.curve.loc[found.curve["what"] == row["what"]]
        np.testing.assert_array_equal(rows["size"], size)
        table = pd.DataFrame([interpolate(c, size) for _, c in own.values()])
        np.testing.assert_allclose(rows["mean"], table.mean(), atol=1e-12)
        np.testing.assert_allclose(rows["q75"], table.quantile(0.75), atol=1e-12)
        left = [10 ** interpolate(with_left(t, c), size) for t, c in own.values()]
        np.testing.assert_allclose(rows["effective_size"], pd.DataFrame(left).mean(), atol=1e-12)
        assert rows["n_inputs"].tolist() == table.notna().sum().tolist()
    own = found.curve.loc[found.curve["what"] == "l1 sufficiency:zero"]
    np.testing.assert_allclose(own["effective_size"], size)
    random = found.curve.loc[found.curve["what"].str.startswith("random")]
    assert (random["effective_size"] > random["size"]).iloc[:-1].all()


def test_counts_are_read_a_few_traces_at_a_time(traces, monkeypatch):
    whole = baselines(MemorySource(traces), points=10, draws=50)
    monkeypatch.setattr("graphtrace.analysis.baselines._AT_ONCE", 2)
    found = baselines(MemorySource(traces), points=10, draws=50)
    pd.testing.assert_frame_equal(found.curve, whole.curve)


@pytest.mark.parametrize("name", ["random sufficiency:zero:mlp,attention", BLOCKS])
def test_another_reference(traces, name):
    found = baselines(MemorySource(traces), reference=name, points=10, draws=50)
    assert found.summary["what"].iloc[0] == "random sufficiency:zero:mlp,attention"
    assert found.summary["n_inputs"].tolist() == [7, 6, 6]
    assert found.summary["difference"].iloc[0] == 0
    assert (found.summary["difference"].iloc[1:] < 0).all()


def test_a_reference_by_settings(traces):
    source = MemorySource(traces)
    settings = traces[-1].settings.id
    found = baselines(source, reference=settings, points=10, draws=50)
    assert found.summary["settings"].iloc[0] == settings
    own = baselines(source, reference=traces[0].settings.id, points=10, draws=50)
    assert own.summary["what"].iloc[0] == "l1 sufficiency:zero"
    with pytest.raises(OptionError, match=r"reference 'x' is not one of .*'l1 necessity:zero'"):
        baselines(source, reference="x")


def test_groups_and_one_settings(traces):
    source = MemorySource(traces)
    found = baselines(source, by=["group"], points=10, draws=50)
    assert found.summary.groupby("group")["n_inputs"].apply(list).to_dict() == {
        "a": [4, 4, 3],
        "b": [4, 4, 3],
    }
    alone = baselines(source, where=["group=b"], points=10, draws=50)
    own = found.summary[found.summary["group"] == "b"].drop(columns="group")
    pd.testing.assert_frame_equal(own.reset_index(drop=True), alone.summary)
    one = baselines(source, settings=traces[0].settings.id, points=10, draws=50)
    assert one.summary["what"].tolist() == ["l1 sufficiency:zero", "l1 necessity:zero"]


def test_settings_are_named_by_what_differs(traces):
    other = [dataclasses.replace(t.settings, search="flow", dtype="bfloat16") for t in traces[:3]]
    more = [dataclasses.replace(t, settings=s) for t, s in zip(traces[:3], other, strict=True)]
    found = baselines(MemorySource([*traces[:8], *more]), points=10, draws=50)
    assert found.summary["what"].tolist() == [
        "l1, best-first, dtype float32 sufficiency:zero",
        "l1, best-first, dtype float32 necessity:zero",
        "l1, flow, dtype bfloat16 sufficiency:zero",
        "l1, flow, dtype bfloat16 necessity:zero",
    ]


def test_a_line_without_an_input_of_the_references_is_empty(traces):
    found = baselines(MemorySource([*traces[:8], traces[-1]]), points=10, draws=50)
    assert found.summary["n_inputs"].tolist() == [8, 8, 0]
    assert found.summary.iloc[2][["density", "difference", "difference_low"]].isna().all()
    assert set(found.curve["what"]) == set(list(LINES)[:2])


def test_positions_are_compared_with_themselves(traces):
    """Two positions of one input; the baseline has only one of them."""
    own = [dataclasses.replace(t, input=traces[0].input) for t in traces[:3]]
    assert len({t.position for t in own}) == 3
    random = dataclasses.replace(traces[8], input=own[1].input)
    random = dataclasses.replace(
        random, position=own[0].position, token_ids=own[0].token_ids, tokens=own[0].tokens
    )
    found = baselines(MemorySource([*own, random]), points=10, draws=50)
    row = found.summary.set_index("kind").loc[BLOCKS]
    assert row["n_inputs"] == 1
    assert np.isnan(row["difference_low"])


def test_a_source_that_has_not_counted_leaves_the_effective_size_open(traces):
    source = MemorySource(traces)
    source.component_counts = lambda ids: pd.DataFrame({"trace": [], "n_edges": [], "counts": []})
    found = baselines(source, points=10, draws=50)
    by = found.curve.groupby("what")["effective_size"]
    known = by.apply(lambda x: x.notna().all()).to_dict()
    assert known == {name: name == "l1 sufficiency:zero" for name in LINES}
