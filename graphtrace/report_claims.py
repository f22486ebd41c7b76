"""The paper's published values (method.md section 6) beside those of a study's own traces.

A claim about a sign holds where the whole 95 % interval has that sign, fails where it has the
other, and is open in between. A published range is of full-size models: whether a value lies in it
is said, and nothing is concluded from that.
"""

from typing import Any

import pandas as pd

from graphtrace.analysis.agreement import agreement
from graphtrace.analysis.correlates import correlates
from graphtrace.analysis.reconstruction import reconstruction
from graphtrace.report_page import Section
from graphtrace.report_parts import Study, keys_of, name_of

CORE, CONSTRUCTION = (3e-4, 3e-3), (1e-4, 1e-2)
"""Published: a minimal core near 1e-3 (we read that as within half a decade), and the construction
phase."""

AGREEMENT = (0.26, 0.71)
_COLUMNS = ["claim", "of", "published", "verdict", "value", "value_low", "value_high", "n_inputs"]


def sign_verdict(low: float, high: float, sign: int) -> str:
    """`holds`, `fails` or `open` (`no value` without an interval) for a claim about a sign."""
    if low != low or high != high:
        return "no value"
    if min(low * sign, high * sign) > 0:
        return "holds"
    return "fails" if max(low * sign, high * sign) < 0 else "open"


def range_verdict(value: float, published: tuple[float, float]) -> str:
    """Whether a value lies in a published range."""
    if value != value:
        return "no value"
    return "inside" if published[0] <= value <= published[1] else "outside"


def claims(study: Study) -> pd.DataFrame:
    """One row per claim and model (or two models): claim, of, published, verdict, value, value_low,
    value_high, n_inputs."""
    rows: list[dict[str, Any]] = []
    found = study.once(correlates)
    keys = keys_of(found, "measure")
    signs = {
        "entropy": ("Density rises with entropy", 1, "positive"),
        "top1_log_frequency": (
            "Density falls with the predicted token's frequency",
            -1,
            "negative",
        ),
    }
    for row in found[found["measure"] == "density_normalised"].to_dict("records"):
        if row["correlate"] in signs:
            claim, sign, published = signs[row["correlate"]]
            verdict = sign_verdict(row["rho_low"], row["rho_high"], sign)
            rows.append(_row(claim, published, name_of(row, keys), row, "rho", verdict))
    if len(set(study.traces["model"])) > 1:
        pairs = study.once(agreement).pairs
        keys = keys_of(pairs, "other_model")
        for row in pairs.to_dict("records"):
            named = f"{name_of(row, keys)} and {str(row['other_model']).partition('@')[0]}"
            claim = "Models find the same inputs dense (ρ)"
            verdict = sign_verdict(row["rho_low"], row["rho_high"], 1)
            inside = range_verdict(row["rho"], AGREEMENT)
            verdict = f"{verdict}; {inside} the range" if verdict == "holds" else verdict
            rows.append(_row(claim, "0.26 to 0.71", named, row, "rho", verdict))
    phases = study.once(reconstruction).phases
    keys = keys_of(phases, "measure")
    ranges = (
        ("The curve is steepest near 1e-3 of the edges", "core_size", CORE, "near 1e-3"),
        ("Construction begins within 1e-4 to 1e-2", "construction_start", CONSTRUCTION, "1e-4"),
        ("Construction ends within 1e-4 to 1e-2", "construction_end", CONSTRUCTION, "1e-2"),
    )
    for claim, name, published, shown in ranges:
        for row in phases.to_dict("records"):
            verdict = range_verdict(row[name], published)
            rows.append(_row(claim, shown, name_of(row, keys), row, name, verdict))
    return pd.DataFrame(rows, columns=_COLUMNS)


def _row(claim: str, published: str, of: str, row: dict[str, Any], name: str, verdict: str):
    values = {f"value{end}": row[f"{name}{end}"] for end in ("", "_low", "_high")}
    about = {"claim": claim, "published": published, "of": of, "n_inputs": row["n_inputs"]}
    return about | values | {"verdict": verdict}


def claims_section(study: Study) -> Section:
    """Which of the paper's published values these traces show."""
    frame = claims(study)
    counts = frame["verdict"].value_counts()
    listed = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
    return Section(
        "claims",
        "The paper's claims",
        "Which published values do these traces show? A sign holds where the whole 95 % interval "
        "has it; published sizes are of models with far more edges, where smaller shares exist.",
        [f"Of {len(frame)} rows: {listed}."],
        table=frame,
        rows=len(frame),
    )
