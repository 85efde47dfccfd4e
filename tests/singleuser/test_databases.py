"""DuckDB keeps to the server's limit, and a package that was loaded before is given out as if it were imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from marimohub import snapshot

pytestmark = pytest.mark.unit

SETTINGS = "SELECT current_setting('memory_limit'), current_setting('temp_directory')"


def test_a_snapshot_is_opened_within_the_limit_and_spills_to_the_temp_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "warehouse.duckdb"
    duckdb.connect(str(file)).close()
    monkeypatch.setenv("MARIMOHUB_SNAPSHOT", str(file))
    monkeypatch.setenv("MARIMOHUB_MEMORY_LIMIT", str(1 << 30))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "it's mine"))
    with snapshot.connect() as connection, snapshot.connect() as second:
        memory, folder = connection.execute(SETTINGS).fetchone()
        assert memory == "614.3 MiB" and folder.startswith(f"{tmp_path}/it's mine/duckdb-")
        assert second.execute(SETTINGS).fetchone() == (memory, folder)
    monkeypatch.setenv("MARIMOHUB_MEMORY_LIMIT", "")
    with snapshot.connect() as connection:
        assert connection.execute(SETTINGS).fetchone()[0] != memory


HIDDEN = """
import importlib.util, sys
import duckdb, duckdb.experimental
from marimohub.singleuser.handout import HandOut
handed = []
sys.meta_path.insert(0, HandOut(["duckdb", "no_such_package"], {"duckdb": handed.append}))
before, spec = duckdb, duckdb.__spec__
del duckdb
assert not [name for name in sys.modules if name.split(".")[0] == "duckdb"]
assert importlib.util.find_spec("duckdb").origin == spec.origin and not handed
import duckdb.experimental
assert duckdb is before and duckdb.__spec__ is spec and handed == [duckdb]
assert sys.modules["duckdb.experimental"] is duckdb.experimental
importlib.reload(importlib.import_module("duckdb.experimental"))
assert handed == [duckdb]
print("fine")
"""


def test_a_hidden_package_is_the_one_that_was_loaded_and_is_told_once() -> None:
    done = subprocess.run([sys.executable, "-c", HIDDEN], capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr
