"""Studies: resuming after every kind of end, failures on record, shards."""

import json
import os
import signal
import subprocess
import sys
import time

import command_line
import pytest
import torch
from tiny_models import save_tiny

import graphtrace as gt
from graphtrace.archive import open_archive
from graphtrace.study import extract
from graphtrace.traces import Input

WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "ran", "to", "the", "cat"]


def corpus_lines(n):
    return [
        {"id": f"line-{i}", "text": " ".join(WORDS[: 2 + i % 7]) + f" {i}", "group": "ab"[i % 2]}
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(
        tmp_path_factory.mktemp("models") / "tiny", hidden_size=16, num_hidden_layers=2
    )


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in corpus_lines(40)))
    return path


def run(*args, **popen):
    command = [sys.executable, "-m", "graphtrace", *map(str, args)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, **popen
    )


def finish(*args):
    process = run(*args)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def contents(archive, columns=("content", "n_kept")):
    """{trace id: values} of an archive that is whole."""
    with open_archive(archive) as opened:
        assert opened.verify().empty
        return {
            row["id"]: tuple(row[name] for name in columns)
            for table in opened.tables()
            for row in table.select(["id", *columns]).to_pylist()
        }


def test_python_extract_resumes_and_records_failures(folder, tmp_path):
    model = gt.load_model(folder)
    inputs = [
        Input("good", "the cat"),
        Input("long", "cat " * 40),
        Input("empty", " "),
        "the dog",
    ]
    archive = tmp_path / "archive"
    first = extract(model, inputs, archive)
    assert (len(first.traced), len(first.present), len(first.failed)) == (2, 0, 2)
    assert {name for name, _ in first.failed} == {"long", "empty"}
    second = extract(model, inputs, archive)
    assert (second.traced, sorted(second.present)) == ([], sorted(first.traced))
    assert len(second.failed) == 2
    with open_archive(archive) as opened:
        failures = opened.failures()
        assert set(failures["input"]) == {"long", "empty"}
        assert set(failures["error"]) == {"TextTooLongError", "EmptyTextError"}
    inputs[1] = Input("long", "the cat sat")  # another text, so another input
    third = extract(model, inputs, archive, retry_failed=True)
    assert len(third.traced) == 1
    assert {name for name, _ in third.failed} == {"empty"}


def test_a_larger_keep_traces_again_and_a_smaller_one_does_not(folder, tmp_path):
    model, archive = gt.load_model(folder), tmp_path / "archive"
    extract(model, ["the cat sat"], archive, keep="k:5")
    assert len(extract(model, ["the cat sat"], archive, keep="k:3").present) == 1
    assert len(extract(model, ["the cat sat"], archive, keep="all").traced) == 1
    with open_archive(archive) as opened:
        traces = opened.traces()
    assert traces["n_kept"].tolist() == traces["n_edges"].tolist()


def test_another_evaluation_adds_a_curve_and_keeps_the_first(folder, tmp_path):
    archive, texts = tmp_path / "archive", ["the cat sat", "the dog ran"]
    model = gt.load_model(str(folder))
    first = extract(model, texts, archive, sizes=(0.1,))
    for options in ({"mode": "necessity"}, {"ablate": "residual,mlp"}):
        more = extract(model, texts, archive, sizes=(0.1,), **options)
        assert (more.traced, more.present) == (first.traced, [])
        assert extract(model, texts, archive, sizes=(0.1,), **options).present == first.traced
    with gt.open_archive(archive) as opened:
        assert opened.verify().empty
        for trace in first.traced:
            kinds = [curve.kind for curve in opened[trace].curves]
            assert kinds == [
                "sufficiency:zero:residual,mlp,attention",
                "necessity:zero:residual,mlp,attention",
                "sufficiency:zero:residual,mlp",
            ]


def test_nan_in_the_weights_fails_the_input_and_the_run_goes_on(folder, tmp_path):
    model = gt.load_model(str(folder))
    texts = ["the cat sat", "the dog ran", "the mat sat"]
    ids = [set(model.tokenizer(text)["input_ids"]) for text in texts]
    (only_second, *_) = ids[1] - ids[0] - ids[2]
    with torch.no_grad():
        model.causal_lm.model.embed_tokens.weight[only_second] = float("nan")
    done = extract(model, texts, tmp_path / "archive", sizes=(0.1,))
    assert (len(done.traced), len(done.failed)) == (2, 1)
    assert "layer 0" in done.failed[0][1]
    with gt.open_archive(tmp_path / "archive") as opened:
        assert list(opened.failures()["error"]) == ["NonFiniteError"]


def test_kill_9_loses_nothing_and_repeats_nothing(folder, corpus, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    common = ("extract", corpus, "--model", folder, "--no-ingest", "--archive")
    code, _, err = finish(*common, whole)
    assert code == 0, err
    expected = contents(whole)
    assert len(expected) == 40
    made, kills = {}, 0  # when each trace was made: a trace that is made again has a later time
    for _ in range(12):
        process = run(*common, killed)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            done = len(list(killed.glob("loose/*.parquet"))) if killed.exists() else 0
            if done >= len(made) + 7:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        process.communicate()
        if process.returncode == 0:
            break
        kills += 1
        found = contents(killed)
        assert found.items() <= expected.items()
        before, made = made, contents(killed, ("created",))
        assert before.items() <= made.items()
        assert len(made) >= len(before) + 7
    print(f"killed {kills} times")
    assert kills >= 3
    code, out, err = finish(*common, killed, "--format", "json")
    assert code == 0, err
    assert contents(killed) == expected
    assert made.items() <= contents(killed, ("created",)).items()
    assert len(json.loads(out)) == 40


def test_sigterm_ends_after_the_input_at_hand(folder, corpus, tmp_path):
    archive = tmp_path / "archive"
    process = run("extract", corpus, "--model", folder, "--no-ingest", "--archive", archive)
    deadline = time.monotonic() + 60
    while len(list(archive.glob("loose/*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "the same command goes on" in err
    n_done = len(contents(archive))
    assert 3 <= n_done < 40
    code, _, err = finish("extract", corpus, "--model", folder, "--no-ingest", "--archive", archive)
    assert code == 0
    assert f"{n_done} were there already" in err
    assert len(contents(archive)) == 40


def test_shards_share_one_archive(folder, corpus, tmp_path):
    archive = tmp_path / "archive"
    common = ("extract", corpus, "--model", folder, "--archive", archive)
    processes = [run(*common, "--shard", f"{i}/3") for i in (1, 2, 3)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "next: graphtrace ingest" in err
    assert len(contents(archive)) == 40


def test_the_command_line_says_what_is_wrong_in_one_line(folder, corpus, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\nnot json\n')
    latin = tmp_path / "latin.txt"
    latin.write_bytes("caf\xe9\n".encode("latin-1"))
    archive = ("--archive", tmp_path / "a")
    cases = [
        (("extract", corpus, "--model", tmp_path / "nowhere", *archive), "no model folder"),
        (("extract", bad, "--model", folder, *archive), "bad.jsonl"),
        (("extract", latin, "--model", folder, *archive), "UTF-8"),
        (("extract", tmp_path / "corpse.jsonl", "--model", folder, *archive), "corpse.jsonl"),
        (("extract", "--model", folder, *archive), "either a corpus file or"),
        (("extract", "--model", folder, "--text", "", *archive), "text"),
        (("extract", corpus, "--model", folder, "--scorer", "l9", *archive), "none of l1, l2"),
        (("extract", corpus, "--model", folder, "--sizes", "0.1,x", *archive), "--sizes"),
        (("extract", corpus, "--model", folder, "--keep", "lots", *archive), "--keep"),
        (("extract", corpus, "--model", folder, "--shard", "4/3", *archive), "4/3"),
    ]
    for args, expected in cases:
        code, out, err = command_line.run(*args)
        assert code not in (0, None), args
        assert expected in err, err
        assert len(err.strip().splitlines()) == 1, err
        assert "Traceback" not in err
        assert out == b""
    code, _, err = finish("--debug", "extract", bad, "--model", folder)
    assert "Traceback" in err


def test_some_failed_is_exit_3(folder, tmp_path):
    corpus = tmp_path / "mixed.txt"
    corpus.write_text("the cat\n" + "cat " * 50 + "\n")
    args = ("extract", corpus, "--model", folder, "--no-ingest", "--archive", tmp_path / "a")
    code, out, err = finish(*args)
    assert code == 3
    assert "mixed-1" in out
    assert "failed: mixed-2" in err
    assert "context of tiny holds 32" in err
