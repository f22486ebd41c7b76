"""What a run will need, said before it: held to what it then takes."""

import io
import json
import os
import shutil
import subprocess
import sys

import command_line
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from fake_hub import commit_of, fake_hub
from tiny_models import save_tiny

import graphtrace as gt
from graphtrace.archive_parquet import encode, table_of
from graphtrace.errors import ArchiveError, OptionError
from graphtrace.forecasting import COLUMNS
from graphtrace.loading import load_outline
from graphtrace.model_files import demo_folder

SENTENCES = demo_folder() / "sentences.jsonl"


@pytest.fixture(scope="module")
def demo():
    return gt.load_model("demo")


@pytest.fixture(scope="module")
def long_ids(demo):
    text = " ".join(x.text for x in gt.read_corpus(SENTENCES))
    return demo.tokenizer(text, verbose=False)["input_ids"]


def inside(*arguments, cwd, rc=0):
    """(stdout, stderr) of a command line."""
    code, out, err = command_line.run(*arguments, cwd=cwd)
    assert code == rc, err
    return out, err


def cli(*arguments, cwd, rc=0, **env):
    """The same in a process of its own, with an environment of its own."""
    command = [sys.executable, "-m", "graphtrace", *map(str, arguments)]
    env = os.environ | {"OMP_NUM_THREADS": "1", **env}
    done = subprocess.run(command, capture_output=True, cwd=cwd, env=env, timeout=120)
    assert done.returncode == rc, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    return done.stdout, done.stderr.decode()


def files_of(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


# ------------------------------------------------------------------------------------ as it is


def test_tokens_edges_and_what_is_there_are_those_of_the_run(tmp_path):
    archive = tmp_path / "archive"
    inputs = gt.read_corpus(SENTENCES, limit=4)
    before = gt.forecast("demo", inputs, archive)
    assert not archive.exists()
    assert tuple(before.inputs.columns) == COLUMNS
    assert not before.inputs.present.any()
    assert before.inputs.id.isna().all()
    gt.extract("demo", inputs[:3], archive)
    held = files_of(archive)
    with gt.open_archive(archive) as opened:
        traces = opened.traces().set_index("name")
    for row in before.inputs.to_dict("records")[:3]:
        found = traces.loc[row["name"]]
        for key in ("n_tokens", "n_edges", "n_kept"):
            assert row[key] == found[key], key
    after = gt.forecast("demo", inputs, archive)
    assert after.inputs.present.tolist() == [True] * 3 + [False]
    assert after.inputs.archive_mb.tolist()[:3] == [0] * 3
    assert (after.totals["n_traces"], after.totals["n_present"]) == (1, 3)
    assert after.totals["n_tokens"] == before.inputs.n_tokens[3]
    assert after.totals["archive_mb"] == before.inputs.archive_mb[3]
    assert after.totals["memory_mb"] == before.inputs.memory_mb[3]
    # What would be traced again is not there.
    for asked in (
        {"keep": "all"},
        {"scorer": "l2"},
        {"mode": "necessity"},
        {"search": "flow"},
        {"bos": "no"},
    ):
        assert not gt.forecast("demo", inputs, archive, **asked).inputs.present.any(), asked
    assert gt.forecast("demo", inputs, archive, keep="k:10").inputs.present.sum() == 3
    half = load_outline("demo", dtype="bfloat16")
    assert not gt.forecast(half, inputs, archive).inputs.present.any()
    assert files_of(archive) == held


def test_a_model_in_memory_knows_its_own_ids(demo, tmp_path):
    inputs = gt.read_corpus(SENTENCES, limit=2)
    found = gt.forecast(demo, inputs, tmp_path / "archive")
    result = gt.extract(demo, inputs, tmp_path / "archive")
    assert found.inputs.id.tolist() == result.traced
    assert gt.forecast(demo, inputs, tmp_path / "archive").inputs.present.all()


def test_the_weights_are_those_that_would_be_held(demo):
    parameters = demo.causal_lm.parameters()
    held = sum(p.numel() * p.element_size() for p in parameters) / 1e6
    assert gt.forecast("demo", ["the cat"]).weights_mb == held
    half = gt.forecast(load_outline("demo", dtype="float16"), ["the cat"])
    assert half.weights_mb == held / 2
    assert half.dtype == "float16"


def test_what_cannot_be_traced_is_said_and_not_counted(tmp_path):
    folder = save_tiny(tmp_path / "tiny", max_position_embeddings=16)
    texts = ["the cat sat", "the cat sat on the mat and " * 9]
    found = gt.forecast(folder, texts, tmp_path / "archive")
    assert found.inputs.problem.isna().tolist() == [True, False]
    assert "the context of tiny holds 16" in found.inputs.problem[1]
    assert pd.isna(found.inputs.n_edges[1])
    totals = found.totals
    assert (totals["n_traces"], totals["n_problems"]) == (1, 1)
    assert totals["n_edges"] == found.inputs.n_edges[0]


def test_options_mean_what_they_mean_to_a_run(tmp_path):
    with pytest.raises(OptionError, match="scorer"):
        gt.forecast("demo", ["a"], scorer="l9")
    with pytest.raises(OptionError, match="no chat template"):
        gt.forecast("demo", ["a"], chat=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ArchiveError):
        gt.forecast("demo", ["a"], tmp_path / "full")
    (tmp_path / "empty").mkdir()
    assert not gt.forecast("demo", ["the cat"], tmp_path / "empty").inputs.present.any()
    plain, bare = (gt.forecast("demo", ["the cat"], bos=bos).inputs for bos in ("auto", "no"))
    assert plain.n_tokens[0] == bare.n_tokens[0] + 1


# ---------------------------------------------------------------------------------- estimates


@pytest.mark.parametrize("n", [8, 24, 120])
def test_bytes_of_the_archive(demo, long_ids, n):
    """Within 1.5 either way, whatever is kept and whatever the sizes of the curve."""
    from graphtrace.forecasting import archive_bytes
    from graphtrace.options import TraceOptions

    for sizes in ((), (0.001, 0.01, 0.1), TraceOptions().sizes):
        trace = gt.trace(demo, long_ids[:n], sizes=sizes)
        for n_kept in {min(k, trace.n_edges) for k in (1, 1000, 5000, trace.n_edges)}:
            real = len(encode(table_of(trace.to_row(n_kept))))
            options = TraceOptions(sizes=sizes)
            said = archive_bytes(demo, trace.layout, n_kept, options, trace.input)
            print(n, len(sizes), n_kept, real, said, round(said / real, 2))
            assert real / 1.5 < said < real * 1.5, (n, sizes, n_kept)


PEAK_SCRIPT = """
import json, sys, threading, time
import graphtrace as gt
model, ids = gt.load_model(sys.argv[1]), json.loads(sys.argv[2])
options = json.loads(sys.argv[3])
gt.trace(model, ids[:6], **options)  # what is imported and compiled on the way is there
def resident():
    with open("/proc/self/status") as lines:
        return next(int(x.split()[1]) for x in lines if x.startswith("VmRSS")) * 1024
peak, stop = [0], threading.Event()
def watch():
    while not stop.is_set():
        peak[0] = max(peak[0], resident())
        time.sleep(0.001)
watcher = threading.Thread(target=watch, daemon=True)
before = resident()
watcher.start()
gt.trace(model, ids, **options)
stop.set()
watcher.join()
print(peak[0] - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("n", "options"),
    [(24, {}), (100, {"scorer": "gradient"}), (100, {"search": "path"}), (250, {})],
)
def test_memory(demo, long_ids, n, options):
    """Resident memory while one input is traced: within 2 either way, give or take 5 MB."""
    from graphtrace.forecasting import memory_bytes
    from graphtrace.layout import GraphLayout
    from graphtrace.options import TraceOptions

    command = [sys.executable, "-c", PEAK_SCRIPT, "demo", json.dumps(long_ids[:n])]
    done = subprocess.run(
        [*command, json.dumps(options)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    real = int(done.stdout)
    layout = GraphLayout(n, demo.n_layers, demo.n_heads)
    said = memory_bytes(demo, layout, TraceOptions(**options))
    print(n, options, f"{real / 1e6:.1f} MB, said {said / 1e6:.1f} MB")
    assert real / 2 - 5e6 < said < real * 2 + 5e6


POSITIONS_SCRIPT = (
    PEAK_SCRIPT.replace("gt.trace(model, ids[:6]", "gt.extract(model, [ids[:6]], sys.argv[4]")
    .replace(
        "gt.trace(model, ids, ", "gt.extract(model, [gt.Input('a', sys.argv[5])], sys.argv[4], "
    )
    .replace("ids[:6]]", "'the cat']")
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("options", [{"keep": "k:1000"}, {"keep": "all"}])
def test_memory_of_many_positions(demo, long_ids, tmp_path, options):
    """Within 2.5 either way: how many positions are on their way at once is a matter of chance."""
    text = demo.tokenizer.decode(long_ids[1:160])
    options = {"position": ":", "sizes": [1.0], **options}
    arguments = ["demo", json.dumps([]), json.dumps(options), str(tmp_path / "a"), text]
    done = subprocess.run(
        [sys.executable, "-c", POSITIONS_SCRIPT, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    real = int(done.stdout)
    inputs = [gt.Input("a", text)]
    said = 1e6 * gt.forecast(demo, inputs, tmp_path / "b", **options).totals["memory_mb"]
    print(options, f"{real / 1e6:.1f} MB, said {said / 1e6:.1f} MB")
    assert real / 2.5 < said < real * 2.5


def test_the_estimates_grow_with_what_costs(demo):
    ids = np.arange(5, 45).tolist()
    short, long = (gt.forecast(demo, [demo.tokenizer.decode(ids[:n])]) for n in (10, 40))
    assert long.inputs.memory_mb[0] > short.inputs.memory_mb[0]
    assert long.inputs.archive_mb[0] > short.inputs.archive_mb[0]


# --------------------------------------------------------------------------- nothing is fetched


def test_no_weight_file_is_needed_or_fetched(tmp_path):
    folder = save_tiny(tmp_path / "tiny")
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    assert gt.forecast(bare, ["the cat sat"]).inputs.n_edges[0] > 100
    corpus = tmp_path / "texts.txt"
    corpus.write_text("the cat sat\nthe dog\n")
    with fake_hub({"org/tiny": {"main": folder}}) as (url, asked):
        place = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
        place |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        run = ("extract", corpus, "--model", "org/tiny", "--format", "json")
        out, _ = cli(*run, "--dry-run", cwd=tmp_path, **place)
        assert any("config.json" in line for line in asked)
        assert not [line for line in asked if "safetensors" in line]
        assert not (tmp_path / "traces").exists()
        rows = json.loads(out)
        done, _ = cli(*run, "--no-ingest", cwd=tmp_path, **place)
        assert [row["id"] for row in json.loads(done)] == [row["id"] for row in rows]
        again, notes = cli(*run, "--dry-run", cwd=tmp_path, **place)
    assert [row["present"] for row in json.loads(again)] == [True, True]
    assert "2 are in the archive already" in notes
    with gt.open_archive(tmp_path / "traces/archive") as opened:
        assert opened.traces().model[0] == f"org/tiny@{commit_of('main')}"


# -------------------------------------------------------------------------------- command line


def test_the_command(tmp_path):
    run = ("extract", SENTENCES, "--model", "demo", "--dry-run", "--limit", "4")
    out, notes = inside(*run, cwd=tmp_path)
    assert "clean-01" in out.decode()
    assert "memory_mb" in out.decode()
    assert "to trace: 4 inputs" in notes
    assert "22.3 MB of float32 weights" in notes
    assert "nothing was computed or written" in notes
    assert list(tmp_path.iterdir()) == []
    rows = json.loads(inside(*run, "--format", "json", "--keep", "all", cwd=tmp_path)[0])
    assert [row["n_kept"] for row in rows] == [row["n_edges"] for row in rows]
    shard = inside(*run, "--format", "csv", "--shard", "2/2", "--sizes", "0.1", cwd=tmp_path)[0]
    assert pd.read_csv(io.BytesIO(shard)).name.tolist() == [row["name"] for row in rows[1::2]]
    half = inside(*run, "--format", "parquet", "--dtype", "bfloat16", cwd=tmp_path)
    assert tuple(pq.read_table(io.BytesIO(half[0])).column_names) == COLUMNS
    assert "11.1 MB of bfloat16 weights" in half[1]
    wrong = inside(*run, "--label", "nothing", cwd=tmp_path, rc=1)[1]
    assert "nothing" in wrong
    assert len(wrong.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
