"""`graphtrace bench` and what it measures with: the right table, whatever the machine's speed."""

import io
import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import tiny_model
from typer.testing import CliRunner

import graphtrace.cli.bench  # noqa: F401  registers its command
from graphtrace.cli import app as app_module
from graphtrace.cli.app import app
from graphtrace.errors import InputError, OptionError, TextTooLongError
from graphtrace.layout import GraphLayout
from graphtrace.loading import demo_folder, load_model
from graphtrace.measuring import (
    N_PARTS,
    machine_facts,
    measure_parts,
    pipeline_parts,
    sample_tokens,
    take_turns,
)
from graphtrace.scoring import score_edges
from graphtrace.tracing import trace

COLUMNS = ["n_tokens", "part", "ms", "per_forward", "n_edges", "ns_per_edge"]
PARTS = [
    "plain forward",
    "scoring",
    "ranking",
    "evaluation of 26 sizes",
    "assembling",
    "whole trace",
]


def run(*arguments):
    result = CliRunner().invoke(app, ["bench", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def demo():
    return load_model("demo", device="cpu")


@pytest.fixture(scope="module")
def as_json():
    return run("--tokens", "5,9", "--rounds", "1", "--format", "json", "--device", "cpu")


def test_a_row_per_length_and_part(as_json):
    frame = pd.DataFrame(json.loads(as_json.stdout))
    assert list(frame.columns) == COLUMNS
    assert frame["part"].tolist() == 2 * PARTS
    assert frame["n_tokens"].tolist() == 6 * [5] + 6 * [9]
    assert frame["n_edges"].tolist() == [
        GraphLayout(n, 6, 8).n_edges for n in (5, 9) for _ in PARTS
    ]
    assert (frame["ms"] > 0).all()
    forward_ms = frame["n_tokens"].map(frame[frame["part"] == PARTS[0]].set_index("n_tokens")["ms"])
    np.testing.assert_allclose(frame["per_forward"], frame["ms"] / forward_ms)
    edges = frame["part"].isin(["scoring", "ranking", "whole trace"])
    np.testing.assert_allclose(
        frame["ns_per_edge"][edges], (1e6 * frame["ms"] / frame["n_edges"])[edges]
    )
    assert frame["ns_per_edge"][~edges].isna().all()


def test_the_machine_is_named_on_stderr(as_json):
    for fact in ("machine: ", "cores", f"torch: {torch.__version__}", "threads", "device: cpu"):
        assert fact in as_json.stderr
    assert "model: demo, L = 6, H = 8, d = 256, float32, sdpa attention" in as_json.stderr
    assert "medians of 1 rounds in turn" in as_json.stderr


@pytest.mark.parametrize("format", ["table", "csv", "parquet"])
def test_forms(format):
    found = run("--tokens", "3", "--rounds", "1", "--format", format, "--device", "cpu")
    if format == "table":
        assert "plain forward" in found.stdout
        assert "per_forward" in found.stdout
        return
    read = pd.read_csv if format == "csv" else pd.read_parquet
    assert read(io.BytesIO(found.stdout_bytes))["part"].tolist() == PARTS


def test_a_local_folder(tmp_path):
    hf = tiny_model("llama")
    hf.save_pretrained(tmp_path / "own")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "own" / name).write_bytes((demo_folder() / name).read_bytes())
    with pytest.raises(InputError, match="token id"):  # 31 words: the tokenizer is not its own
        run("--model", str(tmp_path / "own"), "--tokens", "4", "--rounds", "1", "--device", "cpu")
    found = run("--model", str(demo_folder()), "--tokens", "4", "--rounds", "1", "--device", "cpu")
    assert "model: " in found.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "a,b"], "--tokens 'a,b' is not a list of numbers"),
        (["--tokens", ""], "--tokens '' is not a list of numbers"),
        (["--tokens", "24,0"], "--tokens 0: an input has at least 1 token"),
        (["--keep", "tv:0.1"], "--keep 'tv:0.1' is none of"),
        (["--rounds", "0"], "--rounds 0 is not at least 1"),
        (["--device", "abacus"], "device 'abacus' is none of"),
        (["--dtype", "int3"], "dtype 'int3' is none of"),
        (["--model", "/no/such/folder"], "/no/such/folder"),
        (["--tokens", "257"], "--tokens 257: the context of demo holds 256 tokens"),
    ],
)
def test_bad_options_are_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["graphtrace", "bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        app_module.main()
    assert ended.value.code in (1, 2)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("graphtrace: ")
    assert message in last


@pytest.mark.parametrize("n_kept", [None, 100])
def test_the_parts_are_those_of_a_trace(demo, n_kept):
    tokens = sample_tokens(demo, 7)
    parts = pipeline_parts(demo, tokens, n_kept=n_kept)
    assert list(parts) == PARTS
    assert len(parts) == N_PARTS
    expected = trace(demo, tokens.token_ids.tolist())
    assert len(expected.ranked.score) == GraphLayout(7, 6, 8).n_edges
    for name in ("assembling", "whole trace"):
        found = parts[name]()
        assert found.id == expected.id
        first = slice(n_kept)
        for own, other in zip(found.ranked, expected.ranked.take(first), strict=True):
            np.testing.assert_array_equal(own, other)
        np.testing.assert_allclose(found.curve.tv, expected.curve.tv, atol=1e-6)
    ids = torch.as_tensor(tokens.token_ids.astype(np.int64))
    scores = score_edges(demo, ids).scores
    np.testing.assert_array_equal(parts["scoring"]().scores.mlp_LT, scores.mlp_LT)
    assert len(parts["ranking"]().ranked.score) == (n_kept or len(expected.ranked.score))
    p, q = (x.double().softmax(-1) for x in (parts["plain forward"]()[0], parts[PARTS[3]]()))
    tv = 0.5 * (p - q).abs().sum(-1)
    place = np.unique(expected.curve.k[:-1], return_inverse=True)[1]
    np.testing.assert_allclose(tv[place], expected.curve.tv[:-1], atol=1e-4)


def test_parts_take_turns_and_the_first_round_does_not_count():
    calls, waits, steps = [], [], []
    parts = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = take_turns(parts, 2, lambda: waits.append(len(calls)), lambda n=1: steps.append(n))
    assert calls == ["a", "b"] * 3
    assert waits == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    assert steps == [1] * 6
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}
    assert all(value >= 0 for values in times.values() for value in values)


def test_sample_inputs_have_the_length_asked_for(demo):
    assert len(sample_tokens(demo, 1).token_ids) == 1
    long = sample_tokens(demo, 256).token_ids
    assert len(long) == 256
    np.testing.assert_array_equal(sample_tokens(demo, 20).token_ids, long[:20])
    tiny = load_model(tiny_model("llama"))
    ids = sample_tokens(tiny, 20).token_ids
    assert len(ids) == 20
    assert ids.max() < tiny.config.vocab_size
    assert len(set(ids.tolist())) > 5
    with pytest.raises(OptionError, match="at least 1 token"):
        sample_tokens(demo, 0)
    with pytest.raises(TextTooLongError, match="holds 32 tokens"):
        sample_tokens(tiny, 33)


def test_no_length_is_an_error(demo):
    with pytest.raises(OptionError, match="no input length"):
        measure_parts(demo, [])


def test_facts_name_the_model(demo):
    facts = machine_facts(demo)
    assert set(facts) == {"machine", "python", "torch", "device", "model"}
    assert all(facts.values())
