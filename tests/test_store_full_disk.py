"""A disk that is full while a store is written: one line, nothing lost, and it goes on."""

import shutil
import subprocess

import pytest
from absent import absent
from builders import model_info, synthetic_trace

from graphtrace.archive_write import write_traces
from graphtrace.errors import StorageFullError
from graphtrace.ingestion import ingest
from graphtrace.stores.base import open_store
from graphtrace.stores.verify import verify_store


@pytest.fixture
def disk(tmp_path):
    """A tmpfs whose size can be changed: the function that does so, and its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size, *options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={size}"]), "tmpfs"]
        return subprocess.run([*command, str(folder)], capture_output=True).returncode == 0

    if not shutil.which("mount") or not mount("64m"):
        absent("mounting a tmpfs needs root")
    yield folder, lambda size: mount(size, "remount")
    subprocess.run(["umount", str(folder)], check=True)


def test_ingest_onto_a_full_disk_and_on_when_there_is_room(disk, tmp_path):
    folder, resize = disk
    model = model_info(4, 4)
    first = [synthetic_trace(i, 6, model) for i in range(2)]
    write_traces(tmp_path / "first", first, keep="all")
    rest = [synthetic_trace(i, 24, model, keep=None) for i in range(2, 26)]
    write_traces(tmp_path / "rest", rest, keep="all")
    ingest(tmp_path / "first", folder / "store")

    used = subprocess.run(["du", "-sk", str(folder)], capture_output=True, text=True).stdout
    assert resize(f"{int(used.split()[0]) + 700}k")
    with pytest.raises(StorageFullError, match="no room left"):
        ingest(tmp_path / "rest", folder / "store")

    assert resize("64m")
    with open_store(folder / "store") as store:
        assert set(store.traces()["id"]) == {trace.id for trace in first}
        known = {str(tmp_path / "first")}
        assert verify_store(store, known).empty
    assert ingest(tmp_path / "rest", folder / "store").n_new == len(rest)
    with open_store(folder / "store") as store:
        assert set(store.traces()["id"]) == {trace.id for trace in (*first, *rest)}
        assert verify_store(store, [str(tmp_path / name) for name in ("first", "rest")]).empty
