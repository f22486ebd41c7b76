"""The report: one page that needs nothing else, whose sentences are those of its numbers."""

import base64
import re
import shutil
import subprocess

import pandas as pd
import pytest
from absent import absent
from builders import model_info, synthetic_trace
from builders_source import MemorySource, study
from typer.testing import CliRunner

import graphtrace as gt
from graphtrace import study_report
from graphtrace.cli.commands import app
from graphtrace.errors import OptionError
from graphtrace.report_page import Section, render, shown_value, table_html
from graphtrace.sizes import ShortTraceWarning
from graphtrace.study_report import report

ODD = '<img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def two_models():
    return study(6, models=("a", "b"), n=6)


@pytest.fixture(scope="module")
def page(two_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    found = report(two_models, folder / "report.html", size="k:40", figures=folder, draws=50)
    return found, found.path.read_text()


def test_the_page_needs_nothing_else(page):
    found, text = page
    assert "<script" not in text
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:image/svg\+xml;base64,)""", text)
    assert "default-src 'none'" in text
    images = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)
    assert len(images) == len(found.figures) > 5
    for image in images:
        assert b"<svg" in base64.b64decode(image)
    for path in found.figures:
        assert path.read_text().startswith("<?xml")


def test_sentences_are_those_of_the_tables(two_models, page):
    _, text = page
    summary = gt.core_stability(two_models, "k:40").summary
    assert len(summary) == 3  # two models of one shape, and both together
    for row in summary.to_dict("records"):
        phi = f"stability Φ is {row['stability']:.3g} [{row['stability_low']:.3g}, "
        assert phi in text
        assert f"share {row['jaccard']:.0%} of the components" in text
    rho = gt.agreement(two_models, draws=50).summary["rho_mean"].iloc[0]
    assert f"is {rho:.3g} on average over 1 pair(s)" in text
    assert "12 traces of 6 inputs and 2 model(s)" in text


def test_the_same_traces_give_the_same_bytes(two_models, page, tmp_path):
    again = report(two_models, tmp_path / "again.html", size="k:40", draws=50)
    assert again.path.read_text() == page[1]


def test_parts_that_cannot_be_drawn_say_why(tmp_path):
    found = report(study(4), tmp_path / "r.html", size="k:40", draws=20)
    assert "there is one model" in found.left_out["Agreement between models"]
    assert "Agreement between models (there is one model" in found.path.read_text()


def test_one_trace_makes_a_report(tmp_path):
    found = report(MemorySource([synthetic_trace(3, n=6)]), tmp_path / "r.html", size="k:40")
    text = found.path.read_text()
    assert "one input, so nothing can be said" in text
    assert "nan" not in re.sub(r"base64,[^\"]+", "", text)


def test_traces_without_an_edge_make_a_report(tmp_path):
    with pytest.warns(ShortTraceWarning):
        found = report(study(3), tmp_path / "r.html", size=1e-9, draws=20)
    assert "no trace has an edge" in found.left_out["Centrality"]
    text = re.sub(r"base64,[^\"]+", "", found.path.read_text())
    assert "nan" not in text
    assert "share no value of the components" in text


def test_every_text_is_escaped(tmp_path):
    model = model_info(name=ODD)
    traces = [synthetic_trace(i, n=6, model=model, labels={"group": ODD}) for i in range(4)]
    found = report(MemorySource(traces), tmp_path / "r.html", size="k:40", by=["group"], draws=20)
    text = found.path.read_text()
    assert "<img src=x" not in text
    assert "&lt;img src=x" in text


def test_nothing_is_half_written(tmp_path):
    out = tmp_path / "report.html"
    out.write_text("the last report")
    with pytest.raises(OptionError, match="no traces"):
        report(MemorySource([]), out)
    with pytest.raises(OptionError, match="no trace of model"):
        report(study(2), out, models=["c"])
    assert out.read_text() == "the last report"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_page_that_cannot_be_written_is_known_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(study_report, "SECTIONS", {"never": lambda study: pytest.fail("too late")})
    with pytest.raises(OptionError, match="cannot write"):
        report(study(2), tmp_path / "file" / "report.html")


def test_settings_are_not_pooled(tmp_path):
    import dataclasses

    traces = list(study(3).held.values())
    other = dataclasses.replace(traces[0].settings, scorer="l2")
    mixed = MemorySource([*traces, *(dataclasses.replace(t, settings=other) for t in traces)])
    with pytest.raises(OptionError, match="mix several settings"):
        report(mixed, tmp_path / "r.html", size="k:40")
    found = report(mixed, tmp_path / "r.html", size="k:40", settings=other.id, draws=20)
    assert "scorer l2" in found.path.read_text()


def test_values_and_tables():
    assert [shown_value(x) for x in (None, float("nan"), pd.NA, True, 12345, 0.00012345, "a")] == [
        *("", "", "", "yes", "12,345", "0.000123", "a")
    ]
    assert shown_value(" the") == "·the"
    frame = pd.DataFrame({"x": [0.5], "x_low": [0.25], "x_high": [float("nan")], "y": ["<i>"]})
    assert "<td class=n>0.5</td>" in table_html(frame)
    assert "&lt;i&gt;" in table_html(frame)
    assert "0.5 [0.25, 0.75]" in table_html(frame.assign(x_high=0.75))
    many = Section("m", "Many", "?", ["said"], table=pd.DataFrame({"a": range(40)}))
    assert "The first 15 of 40 rows" in render("t", [], pd.DataFrame({"b": [1]}), [many])
    whole = render("t", [], pd.DataFrame({"b": [1]}), [many._replace(rows=40)])
    assert "<td class=n>39</td>" in whole
    assert "The first" not in whole


def test_the_command(tmp_path):
    archive = tmp_path / "archive"
    gt.write_traces(archive, list(study(3, n=6).held.values()), keep="all")
    out = tmp_path / "report.html"
    arguments = ["report", "--archive", str(archive), "--out", str(out), "--size", "k:40"]
    result = CliRunner().invoke(app, [*arguments, "--workers", "1", "--figures", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "not drawn: Agreement between models: there is one model" in result.stderr
    assert f"report: {out}" in result.stderr
    assert (tmp_path / "core-stability.svg").exists()


def test_a_browser_shows_every_figure(page, tmp_path, browser):
    """Chromium loads the page; a script that only this copy has says how large the figures are."""
    found, text = page
    script = (
        "<script>window.onload = () => { document.title = "
        "[...document.images].map(i => i.complete ? i.naturalWidth : 0).join(' '); }</script>"
    )
    probed = re.sub(r"<meta http-equiv[^>]+>", "", text).replace("</body>", script + "</body>")
    assert probed != text
    (tmp_path / "page.html").write_text(probed)
    shown = subprocess.run(
        [*browser, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000",
         "--dump-dom", f"file://{tmp_path / 'page.html'}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search(r"<title>([^<]*)</title>", shown.stdout)
    assert title is not None
    widths = [int(width) for width in title[1].split()]
    assert len(widths) == len(found.figures)
    assert min(widths) > 100
    assert found.path.stat().st_size < 5_000_000


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium's command line; skips with a reason where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        absent("Chromium is not installed; a page cannot be seen")
    return [
        path, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
    ]  # fmt: skip
