"""docs/format.md and the code say the same."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import synthetic_trace

from graphtrace import archive_files, schema
from graphtrace.archive import FAILURE_COLUMNS, open_archive
from graphtrace.archive_parquet import SEAL, check_seal, damaged, seal, table_of, write_parquet
from graphtrace.archive_verify import NULLABLE, verify_archive
from graphtrace.archive_write import PACK_AT, PACK_AT_END, ArchiveWriter
from graphtrace.errors import ArchiveDamagedError, ArchiveError
from graphtrace.traces import content_hash

TESTS = Path(__file__).parent
N_EDGES = 2 * (2 * 3 * 4 // 2 + 3 * 3) - 3 * 2 - 2 * 3 * 2 // 2  # method: L = H = 2, n = 3
DOCUMENT = (TESTS.parent / "docs" / "format.md").read_text()


def documented(heading: str) -> dict[str, str]:
    """The first table after a heading or sentence: field -> meaning."""
    rows = DOCUMENT[DOCUMENT.index(heading) :].split("\n|", 1)[1].split("\n\n")[0]
    cells = (re.split(r"(?<!\\)\|", row) for row in rows.split("\n")[2:])
    return {cell[1].strip(" `"): cell[2].strip() for cell in cells}


@pytest.fixture
def folder(tmp_path):
    with ArchiveWriter(tmp_path / "a") as writer:
        for seed in range(3):
            writer.write(synthetic_trace(seed, n=3))
        writer.pack()
        writer.write(synthetic_trace(3, n=3))
        writer.fail("some-key", "line", "toy", ValueError("no"))
    return tmp_path / "a"


def rewrite(folder: Path, trace: str, **changes) -> None:
    """Replace fields of a loose trace and seal the file again: only the content is wrong."""
    path = folder / "loose" / f"{trace}.parquet"
    table = pq.read_table(path)
    for name, value in changes.items():
        at = table.schema.get_field_index(name)
        array = pa.array([value], schema.TRACE.field(name).type)
        table = table.set_column(at, schema.TRACE.field(name), array)
    with path.open("w+b") as file:
        write_parquet(file, [table])
    with path.open("r+b") as file:
        seal(file)


def test_every_rule_has_a_test():
    rules = set(re.findall(r"^- ([A-Z]\d+)\. ", DOCUMENT, re.MULTILINE))
    sources = "".join(path.read_text() for path in TESTS.glob("test_*.py"))
    tested = {
        rule
        for text in re.findall(r'def test_\w+\(.*?\):\n    """(.*?)"""', sources, re.DOTALL)
        for rule in re.findall(r"\b[A-Z]\d+\b", text)
    }
    assert rules - tested == set()
    assert len(rules) >= 20


def test_every_field_is_documented():
    """P1"""
    assert list(documented("### One trace")) == schema.TRACE.names
    curve = schema.TRACE.field("curves").type.value_type
    assert list(documented("An entry of `curves`")) == [x.name for x in curve]


def test_null_is_documented_for_the_fields_that_may_be():
    """P1"""
    fields = documented("### One trace")
    assert {name for name, text in fields.items() if "null" in text} == NULLABLE


def test_the_manifest_is_as_documented(folder):
    """F1, M2"""
    found = json.loads((folder / "manifest.json").read_text())
    assert set(found) == set(documented("### manifest.json"))
    assert (found["graphtrace"], found["format"]) == ("archive", schema.FORMAT)
    (pack,) = found["packs"]
    data = (folder / "packs" / pack["file"]).read_bytes()
    assert pack == {
        "file": "00001.parquet",
        "traces": 3,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def test_failures_are_as_documented(folder):
    path = folder / "failed" / "some-key.json"
    assert set(json.loads(path.read_text())) == set(FAILURE_COLUMNS)
    paragraph = DOCUMENT[DOCUMENT.index("### failed/") :].split("\n\n")[1]
    assert set(re.findall(r"`(\w+)`", paragraph)) == set(FAILURE_COLUMNS)


def test_names(folder):
    """F2, F3"""
    (loose,) = (folder / "loose").iterdir()
    assert re.fullmatch(r"t[0-9a-f]{12}\.parquet", loose.name)
    assert pq.read_table(loose)["id"].to_pylist() == [loose.stem]
    assert [path.name for path in (folder / "packs").iterdir()] == ["00001.parquet"]
    other = loose.with_name("t0123456789ab.parquet")
    loose.rename(other)
    with pytest.raises(ArchiveDamagedError, match=r"t0123456789ab\.parquet"):
        open_archive(folder).traces()
    assert set(verify_archive(folder)["file"]) == {"loose/t0123456789ab.parquet"}


def test_other_files_are_ignored_when_reading(folder):
    """F4: and verify names what does not belong in `loose/`."""
    (folder / "notes.txt").write_text("mine")
    (folder / "packs" / "copy of 00001.parquet").write_text("x")
    (folder / "loose" / "x.parquet").write_text("x")
    (folder / "damaged").mkdir()
    (folder / "damaged" / "00007.parquet").write_text("x")
    with open_archive(folder) as found:
        assert len(found) == 4
    assert verify_archive(folder)["file"].tolist() == ["loose/x.parquet"]


def test_an_archive_can_be_moved_and_empty_folders_left_out(folder, tmp_path):
    """F1, F5"""
    for path in (folder / "failed").iterdir():
        path.unlink()
    (folder / "failed").rmdir()
    moved = folder.rename(tmp_path / "elsewhere")
    with open_archive(moved) as found:
        assert len(found) == 4
        assert len(found.failures()) == 0
        assert len(found.verify()) == 0
    for path in moved.rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()


def test_a_later_format_is_refused(folder):
    """M1"""
    path = folder / "manifest.json"
    text = path.read_text().replace('"format": 2', '"format": 3')
    path.write_text(text.replace('"packs": [', '"new": 1, "packs": ['))
    for use in (open_archive, ArchiveWriter, verify_archive):
        with pytest.raises(ArchiveError, match=r"format 3.*reads formats up to 2.*newer") as caught:
            use(folder)
        assert not isinstance(caught.value, ArchiveDamagedError)


def test_files_are_as_documented(folder):
    """P1, P2, P4, P5"""
    (loose,) = (folder / "loose").iterdir()
    for path, rows in ((folder / "packs" / "00001.parquet", 3), (loose, 1)):
        data = pq.read_metadata(path)
        assert pq.read_schema(path).equals(schema.TRACE)
        assert data.num_rows == data.num_row_groups == rows
        stored = data.metadata[SEAL.encode()].decode()
        blank = path.read_bytes().replace(stored.encode(), b"0" * 64)
        assert hashlib.sha256(blank).hexdigest() == stored
        for group in range(rows):
            for column in range(data.num_columns):
                chunk = data.row_group(group).column(column)
                assert chunk.compression == "ZSTD"
                assert chunk.statistics is None


def test_pages_carry_checksums(folder):
    """P3: a flipped bit inside a page is found by any reader that verifies checksums."""
    (path,) = (folder / "loose").iterdir()
    data = pq.read_metadata(path).row_group(0)
    names = [data.column(i).path_in_schema for i in range(data.num_columns)]
    chunk = data.column(names.index("edge_score.list.element"))
    good = path.read_bytes()
    bad = bytearray(good)
    bad[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 1
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(pa.BufferReader(bytes(bad)), page_checksum_verification=True).read()


def test_columns_are_checked(folder):
    """P1"""
    (path,) = (folder / "loose").iterdir()
    table = pq.read_table(path)
    for changed, name in (
        (table.drop_columns(["loss"]), "loss"),
        (table.append_column("extra", pa.array([1])), "extra"),
        (table.select(table.column_names[::-1]), "their order"),
    ):
        pq.write_table(changed, path)
        with pytest.raises(ArchiveDamagedError, match=rf"{path.name}.*\({name}\)"):
            open_archive(folder).traces()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"input_text": "another"}, "input_id is not the i"),
        ({"input_name": "another"}, "id is not the t"),
        ({"token_ids": [1, 2, 3]}, "id is not the t"),
        ({"model_id": "other@0"}, "id is not the t"),
        ({"foil_id": 3}, "id is not the t"),
        ({"scorer": "l2"}, "settings is not the s"),
        ({"n_edges": 5}, f"n_edges is not the {N_EDGES} that"),
        ({"n_nodes": 5}, "n_nodes is not the 11 that"),
        ({"tokens": ["a"]}, "differ in length"),
        ({"n_kept": 3}, "have lengths"),
        ({"edge_score": [0.0] * N_EDGES}, "not those that were written"),
        ({"content": "0" * 16}, "not those that were written"),
        ({"id": "t000000000000"}, "it holds t000000000000"),
        ({"entropy": None}, "entropy is null"),
        ({"format": 1}, "has format 1, not 2"),
        ({"format": 3}, "has format 3, not 2"),
        ({"density": 0.25}, "density is not that of the first curve"),
        ({"experts": [1, 2, 3]}, "cannot be a trace"),
        ({"component_counts": [0] * 27}, "component_counts is not of 10 components"),
        ({"input_meta": "{"}, "cannot be a trace"),
        ({"curves": []}, "cannot be a trace"),
    ],
)
def test_verify_recomputes_a_trace_from_its_fields(folder, changes, problem):
    """T1, T2, T3, T4, T7: even where every checksum is right."""
    (path,) = (folder / "loose").iterdir()
    rewrite(folder, path.stem, **changes)
    with path.open("rb") as file:
        check_seal(file, path.name)
    found = verify_archive(folder)
    assert set(found["file"]) == {f"loose/{path.name}"}
    assert found["problem"].str.contains(problem, regex=False).any(), found["problem"].tolist()


def test_copies_that_differ_are_found(folder):
    """T5: a longer copy must begin as the shorter one does."""
    whole = synthetic_trace(0, n=3)
    with ArchiveWriter(folder) as writer:
        writer.write(whole, 10)
        assert len(verify_archive(folder)) == 0
        other = whole.ranked.take(np.r_[1, 0, 2 : whole.n_kept])
        rewrite(
            folder,
            whole.id,
            n_kept=whole.n_kept,
            content=content_hash(other),
            **{f"edge_{name}": value.tolist() for name, value in other._asdict().items()},
        )
    problems = verify_archive(folder)
    assert problems["trace"].tolist() == [whole.id]
    assert "another ranking" in problems["problem"][0]


def test_a_rule_is_applied_before_a_pack_is_sealed(folder):
    """W7"""
    (path,) = (folder / "loose").iterdir()
    rewrite(folder, path.stem, content="0" * 16)
    with ArchiveWriter(folder) as writer, pytest.raises(ArchiveDamagedError, match=path.name):
        writer.pack()
    assert path.exists()
    assert len(list((folder / "packs").iterdir())) == 1


def test_numbers_in_the_text(folder):
    """W3: the thresholds; and the layout of the folder."""
    assert f"when there are {PACK_AT}, and" in DOCUMENT
    assert f"closed and there are {PACK_AT_END}." in DOCUMENT
    tree = DOCUMENT.split("```")[1]
    for name in (archive_files.MANIFEST, archive_files.LOCK, archive_files.WRITE_LOCK, "loose/"):
        assert name in tree
    written = {path.name for path in folder.iterdir()}
    assert written == {"manifest.json", "archive.lock", "write.lock", "loose", "packs", "failed"}
    assert f"{archive_files.ASIDE}/" in tree


def test_content_is_the_documented_hash():
    """T2"""
    trace = synthetic_trace(0, n=3)
    edges = trace.ranked
    data = b"".join(
        column.astype(kind).tobytes()
        for column, kind in zip(edges, ("<i1", "<i2", "<i2", "<i4", "<i4", "<f4"), strict=True)
    )
    stored = table_of(trace.to_row())["content"][0].as_py()
    assert stored == hashlib.sha256(data).hexdigest()[:16]


def test_a_message_says_what_to_do():
    message = str(damaged("packs/00001.parquet", "it ends early"))
    assert "packs/00001.parquet is damaged: it ends early" in message
    assert "graphtrace archive verify --set-aside" in message
    assert "\n" not in message
