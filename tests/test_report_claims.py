"""The published values beside a study's own: what holds, what fails, what stays open."""

import dataclasses

import pytest
from builders import model_info, synthetic_trace
from builders_source import MemorySource

from graphtrace.analysis.reading import SELECTION, chosen_traces
from graphtrace.report_claims import claims, range_verdict, sign_verdict
from graphtrace.report_parts import Study
from graphtrace.sizes import parse_size

NAN = float("nan")


def study_of(traces) -> Study:
    source = MemorySource(traces)
    chosen = chosen_traces(source, SELECTION)
    return Study(source, chosen, dict(SELECTION), parse_size(0.01), 200, 0, 1, False)


def with_density(trace, level):
    """The trace with a curve that is `level` higher."""
    curve = trace.curves[0]
    tv = curve.tv.copy()
    tv[:-1] = 0.2 + level
    return dataclasses.replace(trace, curves=(dataclasses.replace(curve, tv=tv),))


def traces_of(name, sign, n=12):
    found = []
    for i in range(n):
        trace = synthetic_trace(i, n=5, model=model_info(name=name), name=f"x{i}", text=f"text {i}")
        found.append(dataclasses.replace(with_density(trace, 0.02 * i), entropy=3 + sign * 0.1 * i))
    return found


@pytest.mark.parametrize(("sign", "verdict"), [(1, "holds"), (-1, "fails"), (0, "no value")])
def test_a_sign_is_judged_by_its_interval(sign, verdict):
    frame = claims(study_of(traces_of("a", sign))).set_index("claim")
    row = frame.loc["Density rises with entropy"]
    assert row["verdict"] == verdict
    assert row["n_inputs"] == 12
    if sign:
        assert row["value"] == pytest.approx(sign)


def test_models_are_compared_where_there_are_two():
    assert not claims(study_of(traces_of("a", 1)))["claim"].str.contains("Models").any()
    frame = claims(study_of([*traces_of("a", 1), *traces_of("b", 1)]))
    (row,) = frame[frame["claim"].str.contains("Models")].to_dict("records")
    assert row["of"] == "a and b"
    assert row["value"] == pytest.approx(1)
    assert row["verdict"] == "holds; outside the range"


def test_verdicts():
    assert sign_verdict(0.1, 0.2, 1) == sign_verdict(-0.2, -0.1, -1) == "holds"
    assert sign_verdict(0.1, 0.2, -1) == sign_verdict(-0.2, -0.1, 1) == "fails"
    assert sign_verdict(-0.1, 0.2, 1) == sign_verdict(0.0, 0.2, 1) == "open"
    assert sign_verdict(NAN, NAN, 1) == range_verdict(NAN, (0, 1)) == "no value"
    assert range_verdict(1e-4, (1e-4, 1e-2)) == "inside"
    assert range_verdict(2e-2, (1e-4, 1e-2)) == "outside"
