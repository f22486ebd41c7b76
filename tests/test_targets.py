"""Targets and foils: as people write them, on every point of a curve, and as gradient's m."""

import command_line
import numpy as np
import pytest
import torch
from oracle_forward import OracleModel
from tiny_models import TINY, save_tiny, tiny_model

import graphtrace as gt
from graphtrace import schema
from graphtrace.analysis.curves import curve_band, interpolate
from graphtrace.edges import flatten_edges
from graphtrace.errors import InputError, OptionError
from graphtrace.evaluation import masked_logits
from graphtrace.gradients import Aim
from graphtrace.plots import plot_reconstruction
from graphtrace.scoring import score_edges
from graphtrace.targets import Targets, token_id
from graphtrace.traces import Input, Trace

IDS = [3, 17, 5, 5, 29, 11, 8]
SIZES = (0.02, 0.2, 0.6)
TARGET, FOIL = 12, 4


@pytest.fixture(scope="module")
def demo():
    return gt.load_model("demo")


# ------------------------------------------------------------------------------------- tokens


def test_a_token_is_its_text_or_its_id(demo):
    vocabulary = demo.tokenizer.get_vocab()
    assert token_id(demo, " Tom", "target") == vocabulary["ĠTom"]
    assert token_id(demo, ".", "target") == vocabulary["."]
    assert token_id(demo, 17, "target") == 17


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (4096, "no token id of demo; they are 0 ... 4095"),
        (-1, "no token id of demo"),
        ("", "0 tokens for demo, not one: nothing"),
        ("elephant", "5 tokens for demo, not one: 'e' + 'le' + 'p' + 'han' + 't'"),
        (" Tom Tom", "2 tokens for demo, not one: ' Tom' + ' Tom'"),
    ],
)
def test_what_is_not_one_token_shows_how_it_splits(demo, token, said):
    with pytest.raises(InputError) as found:
        token_id(demo, token, "target")
    assert said in str(found.value)
    with pytest.raises(OptionError) as found:
        gt.trace(demo, "A text", target=token, sizes=SIZES)
    assert said in str(found.value)


def test_the_form_with_a_leading_space_is_suggested_where_it_is_one_token(demo):
    vocabulary = demo.tokenizer.get_vocab()
    word = next(
        piece[1:]
        for piece in sorted(vocabulary)
        if piece.startswith("Ġ") and len(piece) > 4 and piece[1:] not in vocabulary
    )
    with pytest.raises(InputError, match=rf"tokens .*; ' {word}' is one token"):
        token_id(demo, word, "target")
    assert token_id(demo, f" {word}", "target") == vocabulary[f"Ġ{word}"]
    # And the other way round.
    bare = next(
        piece for piece in sorted(vocabulary) if piece.isalpha() and f"Ġ{piece}" not in vocabulary
    )
    with pytest.raises(InputError, match=rf"; '{bare}' is one token"):
        token_id(demo, f" {bare}", "target")


def test_an_unknown_token_was_never_in_the_vocabulary(demo):
    class Words:
        unk_token_id, unk_token, backend_tokenizer = 1, "<unk>", None

        def __call__(self, text, **_):
            return {"input_ids": [7] if text.strip() == "cat" else [1]}

    from dataclasses import replace

    words = replace(demo, tokenizer=Words())
    assert token_id(words, "cat", "target") == 7
    assert token_id(words, "<unk>", "target") == 1
    with pytest.raises(InputError, match="'dog' is not in the vocabulary"):
        token_id(words, "dog", "target")
    with pytest.raises(InputError, match="without a tokenizer"):
        token_id(replace(demo, tokenizer=None), "cat", "target")


def test_what_makes_no_pair_is_refused(demo):
    with pytest.raises(OptionError, match="add --target"):
        Targets(foil=" Tom")
    for wrong in (True, 1.5, [" Tom"]):
        with pytest.raises(OptionError, match="neither a token's text nor its id"):
            Targets(target=wrong)
    with pytest.raises(OptionError, match="are one token"):
        gt.trace(demo, "A text", target=" the", foil=token_id(demo, " the", "x"), sizes=SIZES)


# ------------------------------------------------------------------------------------ columns


def test_columns_name_each_inputs_own(demo, tmp_path):
    corpus = tmp_path / "names.jsonl"
    corpus.write_text(
        '{"id": "a", "text": "Tom saw Ben.", "target": " Tom", "foil": " Ben"}\n'
        '{"id": "b", "text": "Tom saw Ben.", "target": " Ben"}\n'
        '{"id": "c", "text": "Tom saw Ben.", "target": "", "foil": null}\n'
        '{"id": "d", "text": "Tom saw Ben.", "foil": " Ben"}\n'
        '{"id": "e", "text": "Tom saw Ben.", "target": 3}\n'
        '{"id": "f", "text": "Tom saw Ben.", "target": "no such word"}\n'
    )
    done = gt.extract(demo, corpus, tmp_path / "archive", sizes=SIZES)
    assert len(done.traced) == 3
    failed = dict(done.failed)
    assert "has a foil, ' Ben', and no target" in failed["d"]
    assert "int 3" in failed["e"]
    assert "rename it" in failed["e"]
    assert "input 'f': target 'no such word' is" in failed["f"]
    with gt.open_archive(tmp_path / "archive") as opened:
        traces = {opened[trace].name: opened[trace] for trace in done.traced}
    assert (traces["a"].target, traces["a"].foil) == (" Tom", " Ben")
    assert (traces["b"].target, traces["b"].foil) == (" Ben", None)
    assert (traces["c"].target, traces["c"].settings.target_rule) == (None, "top")
    assert traces["a"].settings.target_rule == traces["b"].settings.target_rule == "column"
    assert traces["b"].curve.logit_diff is None
    assert traces["c"].curve.p_target is None
    assert gt.extract(demo, corpus, tmp_path / "archive", sizes=SIZES).present == done.traced
    with pytest.raises(OptionError, match="input 'a' has a target of its own, ' Tom'"):
        gt.extract(demo, corpus, tmp_path / "archive", target=" Ben")
    with pytest.raises(OptionError, match="a target of its own"):
        gt.forecast(demo, corpus, tmp_path / "archive", target=" Ben")


def test_nothing_is_traced_before_a_target_that_is_given_twice_is_seen(demo, tmp_path):
    inputs = [Input("a", "Tom."), Input("b", "Ben.", meta={"target": " Tom"})]
    with pytest.raises(OptionError, match="'b' has a target of its own"):
        gt.extract(demo, inputs, tmp_path / "archive", target=" Ben")
    with pytest.raises(OptionError, match="not one: "):
        gt.extract(demo, inputs[:1], tmp_path / "archive", target="no such word")
    assert not (tmp_path / "archive").exists()


# ------------------------------------------------------------------------------------- curves


@pytest.mark.parametrize("mode", ["sufficiency", "necessity"])
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2"])
def test_every_point_has_the_targets_probability_and_the_logit_difference(name, mode):
    model = gt.load_model(tiny_model(name))
    how = {"mode": mode, "sizes": SIZES}
    trace = gt.trace(model, IDS, target=TARGET, foil=FOIL, **how)
    rank, at = np.empty(trace.n_edges, np.int64), {}
    for i, edge in enumerate(zip(*trace.layout.columns[:5], strict=True)):
        at[edge] = i
    rank[[at[edge] for edge in zip(*trace.ranked[:5], strict=True)]] = np.arange(trace.n_edges)
    evaluation = gt.evaluation.Evaluation(mode=mode)
    logits = masked_logits(model, torch.tensor(IDS), trace.layout, rank, trace.curve.k, evaluation)
    p = logits.double().softmax(-1)
    np.testing.assert_allclose(trace.curve.p_target, p[:, TARGET], atol=1e-6)
    difference = logits[:, TARGET] - logits[:, FOIL]
    np.testing.assert_allclose(trace.curve.logit_diff, difference, atol=1e-5)
    if mode == "sufficiency":  # the last point is the full model
        with torch.no_grad():
            own = model.causal_lm(input_ids=torch.tensor([IDS])).logits[0, -1].double()
        assert trace.curve.p_target[-1] == pytest.approx(float(own.softmax(-1)[TARGET]), abs=1e-6)
        assert trace.curve.logit_diff[-1] == pytest.approx(float(own[TARGET] - own[FOIL]), abs=1e-5)
    plain = gt.trace(model, IDS, **how)
    assert (plain.curve.p_target, plain.curve.logit_diff) == (None, None)
    # l1 does not look at the output's tokens.
    np.testing.assert_array_equal(plain.ranked.source, trace.ranked.source)
    assert plain.id != trace.id
    assert set(trace.curve.frame()) - set(plain.curve.frame()) == {"p_target", "logit_diff"}


# ----------------------------------------------------------------------------------- gradient


MEASURES = {
    Aim(): None,
    Aim(TARGET): lambda logits: logits.log_softmax(-1)[TARGET],
    Aim(TARGET, FOIL): lambda logits: logits[TARGET] - logits[FOIL],
}


@pytest.mark.parametrize("aim", MEASURES)
@pytest.mark.parametrize("name", TINY)
def test_gradient_looks_back_from_the_target(name, aim):
    hf = tiny_model(name)
    model = gt.load_model(hf)
    scored = score_edges(model, torch.tensor(IDS), "gradient", shares=False, aim=aim)
    expected = OracleModel(hf).weights(IDS, "gradient", measure=MEASURES[aim])
    layout = gt.trace(model, IDS, sizes=SIZES).layout
    edges = zip(*layout.columns[:5], strict=True)
    wanted = [expected[schema.KINDS[kind], *map(int, rest)] for kind, *rest in edges]
    found = flatten_edges(layout, scored.scores)
    np.testing.assert_allclose(found, wanted, rtol=5e-4, atol=5e-5 * max(wanted))


def test_the_targets_gradient_changes_the_ranking():
    model = gt.load_model(tiny_model("llama"))
    how = {"scorer": "gradient", "sizes": SIZES}
    top = gt.trace(model, IDS, **how)
    same = gt.trace(model, IDS, target=top.predicted_id, **how)
    np.testing.assert_array_equal(top.ranked.score, same.ranked.score)
    other = gt.trace(model, IDS, target=TARGET, **how)
    pair = gt.trace(model, IDS, target=TARGET, foil=FOIL, **how)
    assert len({tuple(x.ranked.source) for x in (top, other, pair)}) == 3
    assert len({x.id for x in (top, same, other, pair)}) == 4


@pytest.mark.parametrize("scorer", ["l1", "gradient"])
def test_one_target_at_every_position(scorer):
    model = gt.load_model(tiny_model("olmo2"))
    how = {"target": TARGET, "foil": FOIL, "scorer": scorer, "sizes": SIZES}
    for trace in gt.trace_many(model, [IDS], position=":", **how):
        alone = gt.trace(model, trace.token_ids.tolist(), **how)
        assert (trace.target_id, trace.foil_id) == (TARGET, FOIL)
        np.testing.assert_allclose(
            np.sort(trace.ranked.score), np.sort(alone.ranked.score), rtol=2e-4, atol=1e-5
        )
        # Whatever the order of near ties, the whole model is the whole model.
        assert trace.curve.p_target[-1] == pytest.approx(alone.curve.p_target[-1], abs=1e-6)
        assert trace.curve.logit_diff[-1] == pytest.approx(alone.curve.logit_diff[-1], abs=1e-5)


# ------------------------------------------------------------------------- kept, stored, drawn


def test_archive_and_store_keep_them(demo, tmp_path):
    inputs = [Input("a", "Tom saw Ben."), Input("b", "Ben went home.")]
    how = {"target": " Tom", "foil": " Ben", "position": "1:", "sizes": SIZES}
    done = gt.extract(demo, inputs, tmp_path / "archive", **how)
    gt.ingest(tmp_path / "archive", tmp_path / "store")
    with gt.open_archive(tmp_path / "archive") as archive:
        traces = {trace: archive[trace] for trace in done.traced}
    with gt.open_store(tmp_path / "store") as store:
        listed = store.traces().set_index("id")
        points = store.query(
            "MATCH (t:Trace)-[:AT]->(c:Checkpoint) RETURN t.id AS trace, t.position AS position, "
            "t.target AS target, t.foil AS foil, c.n_edges AS n_edges, c.p_target AS p_target, "
            "c.logit_diff AS logit_diff"
        )
    assert set(listed["target"]) == {" Tom"}
    assert set(listed["foil"]) == {" Ben"}
    assert set(listed["position_rule"]) == {"1:"}
    for trace, rows in points.groupby("trace"):
        expected = traces[trace]
        again = Trace.from_row(expected.to_row())
        np.testing.assert_array_equal(again.curve.p_target, expected.curve.p_target)
        assert set(rows["position"]) == {expected.position}
        k, first = np.unique(expected.curve.k, return_index=True)
        found = rows.drop_duplicates("n_edges").sort_values("n_edges")
        np.testing.assert_array_equal(found["n_edges"], k)
        np.testing.assert_allclose(found["p_target"], expected.curve.p_target[first])
        np.testing.assert_allclose(found["logit_diff"], expected.curve.logit_diff[first])


def test_a_dry_run_knows_which_targets_are_there(tmp_path):
    folder = save_tiny(tmp_path / "tiny", hidden_size=16, num_hidden_layers=2)
    how = {"inputs": ["the cat sat"], "archive": tmp_path / "a", "sizes": SIZES}
    gt.extract(folder, target=" the", position=":", **how)
    for other in ({}, {"target": " cat"}, {"target": " the", "foil": " cat"}):
        assert not gt.forecast(folder, position=":", **how, **other).inputs.present.any()
    assert gt.forecast(folder, position=":", target=" the", **how).inputs.present.all()


def test_their_curves_are_averaged_and_drawn(demo):
    texts = ["Tom saw Ben and", "Ben saw Tom and then"]
    curves = [
        trace.curve for trace in gt.trace_many(demo, texts, target=" Tom", foil=" Ben", sizes=SIZES)
    ]
    for measure in ("p_target", "logit_diff"):
        band = curve_band(curves, measure=measure)
        expected = np.mean([interpolate(curve, band.size, measure) for curve in curves], axis=0)
        np.testing.assert_allclose(band.mean[-1], expected[-1])
        assert band.mean[-1] == pytest.approx(np.mean([getattr(c, measure)[-1] for c in curves]))
        (axis,) = plot_reconstruction({"demo": curves}, measure).axes
        assert "target" in axis.get_ylabel()
        np.testing.assert_allclose(axis.lines[0].get_ydata(), band.mean)
    plain = gt.trace(demo, texts[0], sizes=SIZES).curve
    with pytest.raises(OptionError, match="had no target and foil"):
        plot_reconstruction({"demo": [plain]}, "logit_diff")
    with pytest.raises(OptionError, match="none of tv, kl"):
        curve_band([plain], measure="nucleus")


# ------------------------------------------------------------------------------- command line


def run(*args):
    code, out, err = command_line.run(*args)
    return code, out.decode(), err


def test_the_command_line_takes_positions_targets_and_foils(tmp_path):
    model = save_tiny(tmp_path / "tiny", hidden_size=16, num_hidden_layers=2)
    text = ("--text", "the cat sat on the mat", "--model", model, "--archive", tmp_path / "a")
    more = ("--position=-2:", "--target", " the", "--foil", " cat", "--no-ingest")
    code, out, err = run("extract", *text, *more, "--format", "csv")
    assert code == 0, err
    lines = out.strip().splitlines()
    assert len(lines) == 3
    assert lines[0].endswith("target,foil")
    code, out, err = run("extract", *text, *more, "--dry-run", "--format", "csv")
    assert code == 0, err
    assert [line.split(",")[-2] for line in out.strip().splitlines()[1:]] == ["True", "True"]
    cases = [
        (("--position", "x"), "position 'x'"),
        (("--position", "9:5"), "empty range"),
        (("--target", "the cat"), "target 'the cat' is"),
        (("--target", " the", "--foil", " the"), "are one token"),
        (("--foil", " the"), "add --target"),
    ]
    for options, said in cases:
        code, out, err = run("extract", *text, "--no-ingest", *options)
        assert (code, out) == (2, ""), err
        assert said in err
        assert len(err.strip().splitlines()) == 1, err
    code, _, err = run("extract", *text, "--no-ingest", "--position", "40")
    assert code == 3
    assert "positions 0 to" in err
