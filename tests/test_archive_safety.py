"""What may go wrong with an archive: kills, company, damaged files, a full disk."""

import errno
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from absent import absent
from builders import synthetic_trace

from graphtrace import archive, archive_files, archive_pack
from graphtrace.archive import open_archive
from graphtrace.archive_verify import set_aside_damaged, verify_archive
from graphtrace.archive_write import ArchiveWriter, write_traces
from graphtrace.errors import ArchiveDamagedError, ArchiveError, StorageFullError

PROCESSES = Path(__file__).with_name("archive_processes.py")


def start(*args: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(PROCESSES), *map(str, args)]
    return subprocess.Popen(command, text=True, **options)


def read_everything(folder: Path) -> dict[str, list]:
    """The rows of every trace by id; each must be there once."""
    with open_archive(folder) as found:
        rows = [row for table in found.tables(batch=7) for row in table.to_pylist()]
        assert sorted(row["id"] for row in rows) == sorted(found.traces()["id"])
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


@pytest.fixture
def made():
    return [synthetic_trace(i, n=3) for i in range(6)]


@pytest.fixture
def packed(tmp_path, made):
    """An archive of one pack with five traces, and a loose one."""
    with ArchiveWriter(tmp_path / "a") as writer:
        for trace in made[:5]:
            writer.write(trace)
        writer.pack()
        writer.write(made[5])
    return tmp_path / "a"


# -------------------------------------------------------------------------- kills and company


def test_a_writer_killed_at_any_moment_loses_nothing(tmp_path):
    """W1, W4: twenty SIGKILLs; every commit that returned is whole, none is lost or doubled."""
    folder, log, signals = tmp_path / "a", tmp_path / "log", []
    pipe = subprocess.PIPE
    with start("kill", folder, log, stdin=pipe, stdout=pipe) as process:
        assert process.stdin
        assert process.stdout
        for _ in range(20):
            process.stdin.write("go\n")
            process.stdin.flush()
            signals.append(int(process.stdout.readline()))
            if (folder / "manifest.json").exists():
                with open_archive(folder) as found:
                    here = found.ids()
                assert len(set(here)) == len(here)
                committed = log.read_text().split() if log.exists() else []
                assert set(committed) <= set(here)
        process.stdin.close()
    assert signals == [9] * 20
    assert len(committed) > 20
    rows = read_everything(folder)
    assert set(committed) <= set(rows)
    # A trace can be committed and not logged: at most the one that each kill interrupted.
    assert len(set(rows) - set(committed)) <= 20
    assert len(verify_archive(folder)) == 0
    with ArchiveWriter(folder) as writer:
        writer.pack()
    names = [path.name for path in folder.rglob("*")]
    assert not [name for name in names if archive_files.is_temporary(name)]
    assert set(read_everything(folder)) == set(rows)


def test_two_writers_and_a_reader(tmp_path):
    """W3, W5: overlapping halves; the reader sees the archive grow and never a hole."""
    folder = tmp_path / "a"
    ArchiveWriter(folder)
    seen: set[str] = set()
    reads = 0
    with start("write", folder, 0, 40) as one, start("write", folder, 20, 60) as two:
        while one.poll() is None or two.poll() is None:
            now = set(read_everything(folder))
            assert seen <= now
            seen, reads = now, reads + 1
    assert (one.returncode, two.returncode) == (0, 0)
    assert reads > 3
    wanted = {synthetic_trace(seed, n=3).id for seed in range(60)}
    assert set(read_everything(folder)) == wanted
    assert len(verify_archive(folder)) == 0
    with open_archive(folder) as found:
        assert found.info()["packs"] > 1  # how many is a matter of who came first


@pytest.mark.parametrize("step", ["write_manifest", "_inode", "sync_folder"])
def test_packing_stopped_between_two_steps(tmp_path, made, monkeypatch, step):
    """W4, M3: after the pack, after the manifest, while the loose files go."""
    folder = tmp_path / "a"
    with ArchiveWriter(folder) as writer:
        for trace in made:
            writer.write(trace)
        calls = iter(range(100))
        real = getattr(archive_pack, step)
        stop_at = len(made) + 2 if step == "_inode" else 0

        def stop(*args):
            if next(calls) == stop_at:
                raise KeyboardInterrupt
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(archive_pack, step, stop)
            with pytest.raises(KeyboardInterrupt):
                writer.pack()
        assert (folder / "packs" / "00001.parquet").exists()
        assert set(read_everything(folder)) == {trace.id for trace in made}
        assert len(verify_archive(folder)) == 0
        assert writer.pack()
    with open_archive(folder) as found:
        info = found.info()
        assert (info["traces"], info["packs"], info["loose"]) == (6, 1, 0)
        assert found.manifest.packs[0].traces == 6
    assert len(verify_archive(folder)) == 0


def test_only_one_packs(packed):
    """W3"""
    with ArchiveWriter(packed) as writer:
        with archive_files.archive_lock(packed, wait=False) as held:
            assert held
            assert not writer.pack()
        assert writer.pack()


def test_a_loose_file_replaced_while_packing_stays(packed, made, monkeypatch):
    """W4, W6: what another process commits in between is not deleted."""
    bigger = made[5]
    with ArchiveWriter(packed) as other:
        other.write(bigger, 3)
        real = archive_pack.write_manifest

        def meanwhile(*args):
            real(*args)
            other.write(bigger)

        monkeypatch.setattr(archive_pack, "write_manifest", meanwhile)
        assert other.pack()
    with open_archive(packed) as found:
        assert found[bigger.id].n_kept == bigger.n_edges


def test_temporary_files_go_when_their_owner_is_gone(packed):
    """W2, F4"""
    host = socket.gethostname()
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    folder = packed / "loose"

    def file(host, pid):
        path = folder / f"t000000000000.parquet.tmp-{host}-{pid}-0"
        path.write_bytes(b"half")
        return path

    dead = file(host, gone.pid)
    alive = file(host, os.getpid())
    foreign = file("elsewhere", gone.pid)
    old = file("elsewhere.old", gone.pid)
    os.utime(old, (0, 0))
    locked = file(host, f"{gone.pid}0000")
    with locked.open("rb") as held:
        assert archive_files.lock(held.fileno())
        ArchiveWriter(packed)
        assert locked.exists()
    assert [path.exists() for path in (dead, alive, foreign, old)] == [False, True, True, False]
    assert len(read_everything(packed)) == 6
    assert len(verify_archive(packed)) == 0


# ---------------------------------------------------------------------------- damaged files


def read_or_refuse(folder: Path, name: str, whole: dict[str, list]) -> None:
    """Every trace reads as it was, or as damage that names the file."""
    for trace in whole:
        try:
            with open_archive(folder) as found:
                (table,) = found.tables([trace])
        except ArchiveDamagedError as error:
            problem = str(error)
        else:
            problem = f"{name} --set-aside"
            assert repr(table.to_pylist()) == repr([whole[trace]])
        assert name in problem
        assert "--set-aside" in problem


@pytest.mark.parametrize("kind", ["packs", "loose"])
def test_every_flipped_bit_is_found(packed, kind):
    """P3, P4, M2, T2: anywhere in the file, the footer included."""
    whole = read_everything(packed)
    (path,) = (packed / kind).iterdir()
    good, rng = path.read_bytes(), random.Random(1)
    tail = int.from_bytes(good[-8:-4], "little") + 8
    places = [rng.randrange(len(good)) for _ in range(40)]
    places += [len(good) - 1 - rng.randrange(tail) for _ in range(25)]
    for place in [*places, 0, len(good) - 1, len(good) - 5]:
        bad = bytearray(good)
        bad[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        problems = verify_archive(packed)
        assert set(problems["file"]) == {f"{kind}/{path.name}"}, place
        read_or_refuse(packed, path.name, whole)
    path.write_bytes(good)
    assert len(verify_archive(packed)) == 0


@pytest.mark.parametrize("kind", ["packs", "loose"])
def test_every_truncation_is_found(packed, kind):
    """M2, P4"""
    whole = read_everything(packed)
    (path,) = (packed / kind).iterdir()
    good, rng = path.read_bytes(), random.Random(2)
    for size in [0, 1, 7, 8, 11, len(good) - 1, *(rng.randrange(len(good)) for _ in range(25))]:
        path.write_bytes(good[:size])
        assert set(verify_archive(packed)["file"]) == {f"{kind}/{path.name}"}, size
        with pytest.raises(ArchiveDamagedError, match=path.name), open_archive(packed) as found:
            list(found.tables(whole))
        with pytest.raises(ArchiveDamagedError, match=path.name), ArchiveWriter(packed) as writer:
            writer.pack()


def test_a_missing_pack_is_never_skipped(packed):
    """M2"""
    (packed / "packs" / "00001.parquet").unlink()
    for use in (open_archive, ArchiveWriter):
        with pytest.raises(ArchiveDamagedError, match=r"00001.parquet .*missing.* --set-aside"):
            use(packed)
    assert verify_archive(packed)["file"].tolist() == ["packs/00001.parquet"]


def test_an_unlisted_pack_counts_if_it_is_whole(packed):
    """M3"""
    path = packed / "packs" / "00009.parquet"
    good = (packed / "packs" / "00001.parquet").read_bytes()
    path.write_bytes(good)
    assert len(read_everything(packed)) == 6
    path.write_bytes(good[:-100])
    with pytest.raises(ArchiveDamagedError, match="00009"):
        open_archive(packed)


def test_setting_aside_keeps_every_whole_trace(packed, made):
    path = packed / "packs" / "00001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    problems = set_aside_damaged(packed)
    assert set(problems["file"]) == {"packs/00001.parquet"}
    assert (packed / "damaged" / "00001.parquet").read_bytes() == data
    assert len(verify_archive(packed)) == 0
    left = read_everything(packed)
    assert 5 <= len(left) < 6
    assert write_traces(packed, made) == 1  # extract again: only what is missing
    assert len(read_everything(packed)) == 6


def test_a_lost_manifest_comes_back_from_the_packs(packed):
    """F1, P4"""
    for text in ("", "{", "[]", '{"graphtrace": "archive"}'):
        (packed / "manifest.json").write_text(text)
        with pytest.raises(ArchiveDamagedError, match=r"manifest.json.*delete it"):
            open_archive(packed)
    (packed / "manifest.json").unlink()
    with pytest.raises(ArchiveDamagedError, match=r"manifest\.json"):
        open_archive(packed)
    ArchiveWriter(packed)
    assert len(read_everything(packed)) == 6
    with open_archive(packed) as found:
        assert [pack.traces for pack in found.manifest.packs] == [5]


def test_a_bad_failure_file_is_named(packed):
    path = packed / "failed" / "x.json"
    path.write_text("{")
    with open_archive(packed) as found, pytest.raises(ArchiveDamagedError, match=r"x.json"):
        found.failures()
    assert verify_archive(packed)["file"].tolist() == ["failed/x.json"]


# ------------------------------------------------------------------------------- a full disk


def write_until_full(folder: Path) -> list[str]:
    done: list[str] = []

    def write_on() -> None:
        with ArchiveWriter(folder) as writer:
            for seed in range(10_000):
                trace = synthetic_trace(seed, n=3)
                writer.write(trace)
                done.append(trace.id)

    with pytest.raises(StorageFullError) as caught:
        write_on()
    assert "\n" not in str(caught.value)
    assert "free some space" in str(caught.value)
    return done


def test_a_disk_that_is_really_full(tmp_path):
    """W1, on a tmpfs of 1 MB where the system lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
    )
    if not mounted or mounted.returncode:
        absent("mounting a tmpfs needs root; test_a_disk_that_says_it_is_full ran instead")
    try:
        done = write_until_full(disk / "a")
        assert len(done) > 20
        assert set(read_everything(disk / "a")) == set(done)
        assert not [p for p in disk.rglob("*") if archive_files.is_temporary(p.name)]
        writer = ArchiveWriter(disk / "a")
        with pytest.raises(StorageFullError):  # no room for a pack either
            writer.pack()
        with pytest.raises(StorageFullError):
            writer.fail("x", "x", "x", ValueError("y" * 100_000))
        assert set(read_everything(disk / "a")) == set(done)
        assert len(verify_archive(disk / "a")) == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_says_it_is_full(packed, made, monkeypatch, code):
    """W1: the error at the sync, when all has been written."""
    before = read_everything(packed)

    def full(handle):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageFullError, match="no room left"):
            write_traces(packed, [synthetic_trace(99)])
        with ArchiveWriter(packed) as writer, pytest.raises(StorageFullError):
            writer.pack()
    assert read_everything(packed) == before
    assert not [p for p in packed.rglob("*") if archive_files.is_temporary(p.name)]


def test_a_file_size_limit(packed):
    """W1, with the system's own limit on the size of a file."""
    before = read_everything(packed)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageFullError):
            write_traces(packed, [synthetic_trace(99)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_everything(packed) == before


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_not_be_written(packed, monkeypatch, code):
    """The refusal is made up: as root, permissions refuse nothing."""
    real = Path.open

    def refuse(path, mode="r", **options):
        if mode == "rb":
            return real(path, mode, **options)
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch, ArchiveWriter(packed) as writer:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(ArchiveError, match=r"cannot be written .*--archive"):
            writer.write(synthetic_trace(99))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(ArchiveError, match="cannot be written"):
            ArchiveWriter(packed.parent / "new")


def test_files_that_keep_vanishing_end_in_an_error(packed, monkeypatch):
    """W5: no endless loop."""
    with open_archive(packed) as found:
        ids = found.ids()

        def gone(*args):
            raise FileNotFoundError

        monkeypatch.setattr(archive.Archive, "_read_at", gone)
        with pytest.raises(ArchiveError, match="keep changing"):
            list(found.tables(ids))
