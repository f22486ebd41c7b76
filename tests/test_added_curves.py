"""Several curves from one ranking, and curves added to traces that are in an archive already."""

import json
import threading

import command_line
import numpy as np
import pytest
import torch
from tiny_models import tiny_model

import graphtrace as gt
from graphtrace import pipeline, selecting, stages
from graphtrace.archive_write import ArchiveWriter
from graphtrace.curve import pooled_kind
from graphtrace.errors import OptionError
from graphtrace.evaluation import Evaluation, masked_logits
from graphtrace.loading import load_model
from graphtrace.pairing import pair_id
from graphtrace.reference_means import reference_means
from graphtrace.selection import check_kinds
from graphtrace.traces import Input

ALL = "residual,mlp,attention"
TEXTS = [[3, 17, 5, 5, 29, 11, 8], [8, 2, 30, 9, 9], [1, 1, 4, 12, 7, 7, 20, 3]]
PAIR = [3, 9, 5, 30, 29, 2, 11]
SIZES = (0.02, 0.1, 0.3, 0.6)
EVALUATE = ("necessity:zero", "sufficiency:renormalise:mlp,attention", "necessity:mean:attention")


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_model("llama"))


@pytest.fixture(scope="module")
def means(model):
    return reference_means(model, TEXTS)


@pytest.fixture(scope="module")
def words():
    return gt.load_model("demo")


def kinds(trace):
    return [curve.kind for curve in trace.curves]


def same_curve(mine, theirs, atol=0.0):
    assert mine.kind == theirs.kind
    np.testing.assert_array_equal(mine.k, theirs.k)
    for name in ("tv", "kl", "p_predicted", "top_probs"):
        np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), rtol=0, atol=atol)


def unlike(a, b):
    return np.abs(a.tv - b.tv).max() > 1e-3


@pytest.mark.parametrize("scorer", ["l1", "random"])
def test_several_curves_are_those_of_one_evaluation_each(model, means, scorer):
    options = {"sizes": SIZES, "scorer": scorer}
    together = gt.trace(model, TEXTS[0], evaluate=EVALUATE, means=means, **options)
    assert kinds(together) == [
        f"sufficiency:zero:{ALL}",
        f"necessity:zero:{ALL}",
        "sufficiency:renormalise:mlp,attention",
        f"necessity:mean@{means.id}:attention",
    ]
    for curve in together.curves:
        own = {"mode": curve.mode, "ablation": curve.ablation, "ablate": curve.ablate}
        own["means"] = means if curve.ablation == "mean" else None
        alone = gt.trace(model, TEXTS[0], **own, **options)
        same_curve(curve, alone.curve, 1e-6)
        assert alone.to_row()["content"] == together.to_row()["content"]
        np.testing.assert_array_equal(alone.component_counts, together.component_counts)
    assert unlike(together.curves[0], together.curves[1])


def test_an_evaluation_that_is_asked_for_twice_is_one_curve(model):
    trace = gt.trace(model, TEXTS[1], sizes=SIZES, evaluate=["sufficiency:zero", "necessity:zero"])
    assert kinds(trace) == [f"sufficiency:zero:{ALL}", f"necessity:zero:{ALL}"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluate": "necessity"}, "mode:ablation"),
        ({"evaluate": ["a:b:c:d"]}, "mode:ablation"),
        ({"evaluate": "necessary:zero"}, "sufficiency, necessity"),
        ({"evaluate": "necessity:mean"}, "reference-means"),
        ({"evaluate": "necessity:zero:heads"}, "residual,mlp,attention"),
        ({"evaluate": "necessity:zero", "sizes": np.linspace(0.1, 1, 255)}, "at most 254"),
        ({"mode": "necessity", "sizes": np.linspace(0.1, 1, 255)}, "at most 254"),
        ({"evaluate": "necessity:zero", "pair": PAIR}, "only counterfactual takes one"),
    ],
)
def test_evaluations_that_mean_nothing(model, options, message):
    with pytest.raises(OptionError, match=message):
        gt.trace(model, TEXTS[0], **options)


@pytest.mark.parametrize("keep", [0.05, "all"])
def test_curves_are_added_to_what_is_there(model, means, tmp_path, monkeypatch, keep):
    """Ranks, content and the curves that were there stay bit for bit; a new curve is that of a
    fresh extraction; where the kept edges tell all, no edge is scored."""
    inputs = [Input(name=f"{i}", text="", meta={"ids": ids}) for i, ids in enumerate(TEXTS)]
    monkeypatch.setattr("graphtrace.study.tokenize", by_ids)
    options = {"sizes": SIZES, "keep": keep}
    first = gt.extract(model, inputs, tmp_path / "a", **options)
    fresh = {"evaluate": EVALUATE, "means": means}
    gt.extract(model, inputs, tmp_path / "b", **options, **fresh)
    with gt.open_archive(tmp_path / "a") as archive:
        before = {trace: archive[trace].to_row() for trace in first.traced}
    scored = []
    own = stages.TextScores.of
    monkeypatch.setattr(stages.TextScores, "of", lambda self, x: scored.append(x) or own(self, x))
    added = gt.extract(model, inputs, tmp_path / "a", **options, **fresh)
    assert added.traced == first.traced
    assert len(scored) == (0 if keep == "all" else len(TEXTS))
    with gt.open_archive(tmp_path / "a") as one, gt.open_archive(tmp_path / "b") as two:
        assert len(one.verify()) == 0
        assert one.traces()["curves"].tolist() == two.traces()["curves"].tolist()
        for trace, old in before.items():
            row, other = one[trace].to_row(), two[trace]
            assert row["content"] == old["content"] == other.to_row()["content"]
            assert row["curves"][0] == old["curves"][0]
            for name in ("component_counts", "edge_score", "top_probs"):
                np.testing.assert_array_equal(row[name], old[name])
            for mine, theirs in zip(one[trace].curves, other.curves, strict=True):
                same_curve(mine, theirs, 1e-6)
    again = gt.extract(model, inputs, tmp_path / "a", **options, **fresh)
    assert (again.traced, again.present) == ([], first.traced)
    forecast = gt.forecast(model, [], tmp_path / "a", **options, **fresh)
    assert forecast.totals["n_problems"] == 0


def by_ids(model, input_, options):
    """Inputs whose tokens are given: a tiny model has no tokenizer."""
    return stages.Tokenized(input_, np.array(input_.meta["ids"], np.int32), None)


def test_another_ranking_gets_no_curves(model, tmp_path, monkeypatch):
    inputs = [Input(name="a", text="", meta={"ids": TEXTS[0]})]
    monkeypatch.setattr("graphtrace.study.tokenize", by_ids)
    gt.extract(model, inputs, tmp_path / "a", sizes=SIZES, keep=0.05)
    before = contents(tmp_path / "a")
    select = pipeline.select_edges

    def otherwise(*args):
        found = select(*args)
        turned = np.arange(len(found.ranked.kind))
        turned[:2] = [1, 0]
        return found._replace(ranked=found.ranked.take(turned))

    monkeypatch.setattr(pipeline, "select_edges", otherwise)
    options = {"sizes": SIZES, "keep": 0.05, "evaluate": "necessity:zero"}
    done = gt.extract(model, inputs, tmp_path / "a", **options)
    ((name, message),) = done.failed
    assert name == "a"
    assert "its ranking is not the one of trace t" in message
    assert contents(tmp_path / "a") == before
    monkeypatch.undo()
    monkeypatch.setattr("graphtrace.study.tokenize", by_ids)
    assert len(gt.extract(model, inputs, tmp_path / "a", **options).traced) == 1


def contents(folder):
    with gt.open_archive(folder) as archive:
        frame = archive.traces()
        return [(archive[t].to_row()["content"], kinds(archive[t])) for t in frame["id"]]


def test_adding_goes_on_where_it_was_stopped(model, tmp_path, monkeypatch):
    n = 9  # more than are read ahead
    ids = [TEXTS[i % len(TEXTS)] for i in range(n)]
    inputs = [Input(name=f"{i}", text="", meta={"ids": ids[i]}) for i in range(n)]
    monkeypatch.setattr("graphtrace.study.tokenize", by_ids)
    gt.extract(model, inputs, tmp_path / "a", sizes=SIZES, keep=0.05)
    stop, write = threading.Event(), ArchiveWriter.write
    monkeypatch.setattr(ArchiveWriter, "write", lambda *args: (stop.set(), write(*args))[1])
    options = {"sizes": SIZES, "keep": 0.05, "evaluate": "necessity:zero", "batch_size": 1}
    done = gt.extract(model, inputs, tmp_path / "a", **options, stop=stop)
    assert done.stopped
    assert 0 < len(done.traced) < n
    done = gt.extract(model, inputs, tmp_path / "a", **options)
    assert len(done.traced) + len(done.present) == n
    assert len(done.present) > 0
    assert all(len(found) == 2 for _, found in contents(tmp_path / "a"))


# Counterfactual curves


def test_a_counterfactual_curve_is_that_of_its_masked_passes(model):
    trace = gt.trace(model, TEXTS[0], sizes=SIZES, ablation="counterfactual", pair=PAIR)
    assert trace.curve.reference == pair_id(np.array(PAIR))
    assert trace.curve.kind == f"sufficiency:counterfactual@{trace.curve.reference}:{ALL}"
    assert pooled_kind(trace.curve.kind) == f"sufficiency:counterfactual:{ALL}"
    rank_E = np.empty(trace.n_edges, np.int64)
    rank_E[selecting.edge_numbers(trace.layout, trace.ranked)[0]] = np.arange(trace.n_edges)
    ids, pair = torch.tensor(TEXTS[0]), torch.tensor(PAIR)
    how = Evaluation(ablation="counterfactual")
    logits_PV = masked_logits(model, ids, trace.layout, rank_E, trace.curve.k, how, pair)
    p_PV = torch.softmax(logits_PV.double(), -1).numpy()
    top = trace.curve.top_ids
    np.testing.assert_allclose(trace.curve.top_probs, np.take_along_axis(p_PV, top, 1), atol=1e-5)
    assert unlike(trace.curve, gt.trace(model, TEXTS[0], sizes=SIZES).curve)


def test_another_pair_is_another_curve(model, tmp_path):
    options = {"sizes": SIZES, "ablation": "counterfactual"}
    one = gt.trace(model, TEXTS[0], pair=PAIR, **options)
    two = gt.trace(model, TEXTS[0], pair=PAIR[::-1], **options)
    assert one.id == two.id
    assert unlike(one.curve, two.curve)
    gt.write_traces(tmp_path / "a", [one])
    with ArchiveWriter(tmp_path / "a") as writer:
        assert writer.has(one.id, 0, kinds(one))
        assert not writer.has(two.id, 0, kinds(two))
        writer.write(two)
    with gt.open_archive(tmp_path / "a") as archive:
        assert kinds(archive[one.id]) == [*kinds(one), *kinds(two)]
        assert archive.traces()["curve"].tolist() == [f"sufficiency:counterfactual:{ALL}"]
        assert len(archive.verify()) == 0
    check_kinds(kinds(one) + kinds(two))  # pooled over inputs
    with pytest.raises(OptionError, match="of several kinds"):
        check_kinds([*kinds(one), f"sufficiency:zero:{ALL}"])


def test_pairs_of_a_corpus(words, tmp_path):
    """Each line with its own; one without, or of another length, fails and says so."""
    lines = [
        {"id": "a", "text": "The cat sat on the mat", "pair": "The dog sat on the bed"},
        {"id": "b", "text": "One day a girl", "pair": "One day a boy"},
        {"id": "none", "text": "The cat sat"},
        {"id": "long", "text": "The cat sat", "pair": "The cat sat down"},
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    options = {"sizes": (0.01, 0.1), "ablation": "counterfactual"}
    dry = gt.forecast(words, tmp_path / "c.jsonl", tmp_path / "a", **options)
    assert dry.totals["n_problems"] == 2
    done = gt.extract(words, tmp_path / "c.jsonl", tmp_path / "a", **options)
    assert len(done.traced) == 2
    failed = dict(done.failed)
    assert "has no pair" in failed["none"]
    assert "The|·cat|·sat" in failed["long"]
    assert "The|·cat|·sat|·down" in failed["long"]
    assert (
        gt.forecast(words, tmp_path / "c.jsonl", tmp_path / "a", **options).totals["n_present"] == 2
    )
    with gt.open_archive(tmp_path / "a") as archive:
        assert len(set(map(str, archive.traces()["curves"]))) == 2
        assert set(archive.traces()["curve"]) == {f"sufficiency:counterfactual:{ALL}"}
        gt.density(archive)  # pooled
        for line in lines[:2]:
            alone = gt.trace(words, line["text"], pair=line["pair"], **options)
            same_curve(archive[line["id"]].curve, alone.curve, 1e-5)
            other = {"pair": line["text"], **options}
            mine = gt.trace(words, line["text"], **other)
            assert mine.curve.tv.max() < 1e-4  # paired with itself
    # Where no pair is needed, those lines are traced, in the same archive too; and with a pair.
    done = gt.extract(words, tmp_path / "c.jsonl", tmp_path / "a", sizes=(0.1,))
    assert len(done.traced) == 4
    again = gt.extract(words, tmp_path / "c.jsonl", tmp_path / "a", **options)
    assert [message for _, message in again.failed] == [
        "failed in an earlier run; see --retry-failed"
    ] * 2
    lines[2]["pair"] = "The dog sat"
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert len(gt.extract(words, tmp_path / "c.jsonl", tmp_path / "a", **options).failed) == 1


def test_positions_of_a_text_take_their_part_of_the_pair(words):
    text, pair = "The cat sat on the mat", "The dog sat on the bed"
    options = {"sizes": (0.05, 0.3), "ablation": "counterfactual"}
    found = list(gt.trace_many(words, [text], position="-3:", pair=pair, **options))
    assert len(found) == 3
    for trace in found:
        ids = words.tokenizer(pair)["input_ids"][: trace.position + 1]
        alone = gt.trace(words, trace.token_ids.tolist(), pair=ids, **options)
        same_curve(trace.curve, alone.curve, 1e-4)


# Commands


def test_the_commands(tmp_path):
    extract = ["extract", "--model", "demo", "--text", "The cat sat on", "--no-ingest"]
    extract += ["--sizes", "0.02,0.2", "--format", "json"]
    done = command_line.run(*extract, cwd=tmp_path)
    assert done.code == 0, done.err
    more = ["--evaluate", "necessity:zero", "--evaluate", "sufficiency:counterfactual:mlp"]
    done = command_line.run(*extract, *more, "--pair", "The dog sat on", cwd=tmp_path)
    assert done.code == 0, done.err
    with gt.open_archive(tmp_path / "traces" / "archive") as archive:
        (found,) = archive.traces()["curves"]
        trace = archive["last"]
        trace.edges("k:40").to_csv(tmp_path / "edges.csv", index=False)
    assert [pooled_kind(kind) for kind in found] == [
        f"sufficiency:zero:{ALL}",
        f"necessity:zero:{ALL}",
        "sufficiency:counterfactual:mlp",
    ]
    evaluate = ("evaluate", "demo", "The cat sat on")
    done = command_line.run(*evaluate, "--edges", "edges.csv", "--format", "json", cwd=tmp_path)
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)
    expected = gt.evaluate("demo", "The cat sat on", trace.edges("k:40"))
    assert row["tv"] == pytest.approx(expected[0].tv, abs=1e-5)
    assert row["n_edges"] == 40
    assert "the full model predicts" in done.err
    for given, message in [
        (["--components", "L99H1"], "6 layers"),
        ([], "--components or --edges"),
        (["--edges", "absent.csv"], "absent.csv cannot be read"),
        (["--components", "0.0", "--edges", "edges.csv"], "not both"),
        (["--components", "0.0", "--target", "a cat"], "tokens"),
    ]:
        done = command_line.run(*evaluate, *given, cwd=tmp_path)
        assert done.code in (1, 2), given
        assert message in done.err
        assert len(done.err.splitlines()) == 1
