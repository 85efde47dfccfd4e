"""Consistent copies: of idle files, under a live writer, of what a crash left, and every refusal."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import pytest

from marimohub.snapshots import source, transfer
from marimohub.snapshots.layout import HEADERS_SIZE
from tests.snapshots.conftest import commit, rows

COPIES_UNDER_A_WRITER = 60


def leftovers(folder: Path, *expected: str) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name not in expected)


@pytest.mark.unit
def test_an_idle_file_is_copied_read_only_without_a_log(warehouse, tmp_path):
    before = warehouse.read_bytes()
    result = source.copy(warehouse, tmp_path / "copy.duckdb")
    assert rows(result.path, "SELECT count(*) FROM t") == [(1000,)]
    assert result.path.stat().st_mode & 0o777 == 0o440
    assert result.version == source.version(warehouse)
    assert (result.attempts, result.quiet, result.size) == (1, False, result.path.stat().st_size)
    assert leftovers(tmp_path, "live", "copy.duckdb") == []
    assert warehouse.read_bytes() == before
    assert leftovers(warehouse.parent, warehouse.name) == []


@pytest.mark.unit
def test_a_symbolic_link_to_the_warehouse_is_followed(warehouse, tmp_path):
    (tmp_path / "link.duckdb").symlink_to(warehouse)
    source.copy(tmp_path / "link.duckdb", tmp_path / "copy.duckdb")
    assert rows(tmp_path / "copy.duckdb", "SELECT count(*) FROM t") == [(1000,)]


@pytest.mark.unit
def test_an_existing_destination_is_replaced_at_once(warehouse, tmp_path):
    (tmp_path / "copy.duckdb").write_text("old")
    source.copy(warehouse, tmp_path / "copy.duckdb")
    assert rows(tmp_path / "copy.duckdb", "SELECT count(*) FROM t") == [(1000,)]


@pytest.mark.unit
def test_a_log_that_is_held_by_its_writer_is_folded_in_and_the_writer_keeps_its_lock(tmp_path, start_writer):
    live = tmp_path / "live.duckdb"
    writer = start_writer(live, "idle")
    result = source.copy(live, tmp_path / "copy.duckdb")
    assert result.wal_bytes > 0
    assert rows(result.path, "SELECT sum(amount) FROM debit") == [(5,)]
    assert not Path(f"{result.path}.wal").exists()
    assert Path(f"{live}.wal").exists()
    failed = subprocess.run(
        [sys.executable, "-c", f"import duckdb; duckdb.connect({str(live)!r})"], capture_output=True, text=True
    )
    assert "Could not set lock" in failed.stderr
    writer.close()


def test_every_copy_under_a_busy_writer_is_one_point_in_time_and_not_old(tmp_path, start_writer):
    live = tmp_path / "live.duckdb"
    writer = start_writer(live, "busy")
    while writer.committed() < 3:
        time.sleep(0.01)
    last_seen = 0
    attempts = folded = 0
    for number in range(COPIES_UNDER_A_WRITER):
        committed = writer.committed()
        result = source.copy(live, tmp_path / f"{number}.duckdb", deadline=20)
        attempts += result.attempts
        folded += result.wal_bytes > 0
        with duckdb.connect(str(result.path), read_only=True) as connection:
            ask = lambda query: connection.execute(query).fetchone()  # noqa: E731
            (counter,) = ask("SELECT n FROM counter")
            assert counter >= max(committed, last_seen), "older than a commit that had returned"
            assert ask("SELECT sum(amount), count(*), max(n) FROM debit") == ask(
                "SELECT sum(amount), count(*), max(n) FROM credit"
            )
            assert ask("SELECT coalesce(max(n) + 1, 0) FROM debit") == (counter,)
            assert ask("SELECT sum(h), count(*) FROM bulk") == ask("SELECT total, rows FROM bulk_sum")
        last_seen = counter
        result.path.unlink()
    assert writer.process.poll() is None
    assert last_seen > 0
    assert folded > COPIES_UNDER_A_WRITER / 4, "the log was never part of it: nothing was tested"
    writer.close()


def test_equal_versions_mean_equal_content_under_a_busy_writer(tmp_path, start_writer):
    live = tmp_path / "live.duckdb"
    writer = start_writer(live, "busy")
    query = "SELECT (SELECT n FROM counter), (SELECT total FROM bulk_sum)"
    seen: dict[str, list] = {}
    for _ in range(15):
        result = source.copy(live, tmp_path / "copy.duckdb", deadline=20)
        content = rows(result.path, query)
        assert seen.setdefault(result.version, content) == content
    writer.close()
    settled = source.version(live)
    assert source.copy(live, tmp_path / "copy.duckdb").version == settled == source.version(live)


def test_without_a_pause_between_checkpoints_the_copy_says_so_and_works_once_the_writer_stops(
    tmp_path, start_writer, monkeypatch
):
    live = tmp_path / "live.duckdb"
    writer = start_writer(live, "checkpoints")
    real = transfer.transfer

    def slow(*arguments):
        time.sleep(0.2)  # a copy that takes longer than the time between two checkpoints
        return real(*arguments)

    monkeypatch.setattr(source, "transfer", slow)
    with pytest.raises(source.SourceChangedTooFast, match=r"checkpointed during each of \d+ copies within 1.5 s"):
        source.copy(live, tmp_path / "copy.duckdb", deadline=1.5)
    assert leftovers(tmp_path, "live.duckdb", "live.duckdb.wal", "live.duckdb.wal.checkpoint", "live.progress") == []
    threading.Timer(1.0, writer.close).start()
    result = source.copy(live, tmp_path / "copy.duckdb", deadline=20)
    assert rows(result.path, "SELECT sum(h) FROM bulk") == rows(result.path, "SELECT total FROM bulk_sum")
    assert result.attempts > source.OVERTAKEN_LIMIT


@pytest.mark.unit
def test_what_a_killed_writer_left_is_recovered_in_the_copy_only(tmp_path, start_writer):
    live = tmp_path / "live.duckdb"
    start_writer(live, "idle").kill()
    log = Path(f"{live}.wal").read_bytes()
    source.copy(live, tmp_path / "copy.duckdb")
    assert rows(tmp_path / "copy.duckdb", "SELECT sum(amount) FROM credit") == [(5,)]
    assert Path(f"{live}.wal").read_bytes() == log


@pytest.mark.unit
@pytest.mark.parametrize("abort", ["before_truncate", "before_header", "after_free_list_write"])
def test_a_writer_that_died_in_a_checkpoint_is_recovered_in_the_copy(warehouse, tmp_path, abort):
    code = (
        f"import duckdb; c = duckdb.connect({str(warehouse)!r}); c.execute('INSERT INTO t VALUES (-5)');"
        f"c.execute(\"PRAGMA debug_checkpoint_abort='{abort}'\");"
        "import os\ntry: c.execute('CHECKPOINT')\nexcept duckdb.Error: pass\nos._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    log = Path(f"{warehouse}.wal")
    assert log.exists()
    assert b"\x64\x00\x63" in log.read_bytes(), "no checkpoint marker: nothing is tested"
    before = source.version(warehouse)
    result = source.copy(warehouse, tmp_path / "copy.duckdb")
    assert result.quiet
    assert result.version == before
    assert rows(result.path, "SELECT count(*), min(i) FROM t") == [(1001, -5)]
    assert leftovers(tmp_path, "live", "copy.duckdb") == []


@pytest.mark.unit
def test_older_storage_is_copied_when_nobody_writes_and_refused_when_somebody_does(tmp_path):
    old = tmp_path / "old.duckdb"
    code = (
        f"import duckdb, sys; c = duckdb.connect(); c.execute(\"ATTACH '{old}' AS o (STORAGE_VERSION 'v1.2.0')\");"
        "c.execute('CREATE TABLE o.t AS SELECT 7 AS i'); print('ready', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        with pytest.raises(source.SourceBusy, match=r"from before 2\.0"):
            source.copy(old, tmp_path / "copy.duckdb", deadline=0.3)
    finally:
        process.kill()
        process.wait()
    assert source.copy(old, tmp_path / "copy.duckdb").quiet
    assert rows(tmp_path / "copy.duckdb", "SELECT i FROM t") == [(7,)]


@pytest.mark.unit
def test_the_version_changes_with_a_commit_a_checkpoint_and_a_swap_only(warehouse, tmp_path):
    first = source.version(warehouse)
    assert source.version(warehouse) == first
    subprocess.run([sys.executable, "-c", f"import duckdb; duckdb.connect({str(warehouse)!r}, read_only=True)"])
    assert source.version(warehouse) == first
    commit(warehouse, "INSERT INTO t VALUES (1)")
    second = source.version(warehouse)
    assert second != first
    other = tmp_path / "other.duckdb"
    other.write_bytes(warehouse.read_bytes())
    os.replace(other, warehouse)
    assert source.version(warehouse) != second


def refusal(kind: type[source.SnapshotError], path: Path, folder: Path, **options: float) -> str:
    with pytest.raises(kind) as caught:
        source.copy(path, folder / "copy.duckdb", **options)
    with pytest.raises(kind):
        source.version(path, **options)
    assert not list(folder.glob("*copy.duckdb*")), "something half-written was left"
    assert caught.value.message.endswith(".") and str(caught.value) == caught.value.message
    return caught.value.message


@pytest.mark.unit
def test_what_is_no_file_is_refused(tmp_path):
    assert "does not exist" in refusal(source.SourceMissing, tmp_path / "missing.duckdb", tmp_path)
    assert "is not a file" in refusal(source.SourceMissing, tmp_path, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in refusal(source.SourceMissing, tmp_path / "pipe", tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "does not exist" in refusal(source.SourceMissing, tmp_path / "dangling", tmp_path)


@pytest.mark.unit
def test_what_is_no_database_is_refused(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("id,name\n" * 5000)
    assert "is empty" in refusal(source.NotADuckDBFile, tmp_path / "empty", tmp_path)
    assert "not a DuckDB database" in refusal(source.NotADuckDBFile, tmp_path / "text", tmp_path)


@pytest.mark.unit
def test_damage_is_named_and_not_copied(warehouse, tmp_path):
    whole = warehouse.read_bytes()
    damaged = tmp_path / "damaged.duckdb"
    damaged.write_bytes(whole[:5000])
    assert "cut off in its header" in refusal(source.SourceDamaged, damaged, tmp_path)
    flipped = bytearray(whole)
    flipped[4200] ^= 1
    damaged.write_bytes(flipped)
    assert "torn header" in refusal(source.SourceDamaged, damaged, tmp_path)


@pytest.mark.unit
def test_a_damaged_block_is_found_when_the_copy_is_opened(warehouse, tmp_path):
    flipped = bytearray(warehouse.read_bytes())
    for offset in range(HEADERS_SIZE, len(flipped), 512):
        flipped[offset + 100] ^= 0xFF
    (tmp_path / "damaged.duckdb").write_bytes(flipped)
    with pytest.raises(source.SourceDamaged, match="DuckDB cannot read the copy"):
        source.copy(tmp_path / "damaged.duckdb", tmp_path / "copy.duckdb")
    assert leftovers(tmp_path, "live", "damaged.duckdb") == []


@pytest.mark.unit
def test_an_encrypted_warehouse_is_refused(tmp_path):
    path = tmp_path / "secret.duckdb"
    with duckdb.connect(config={"force_mbedtls_unsafe": "true"}) as connection:
        connection.execute(f"ATTACH '{path}' AS s (ENCRYPTION_KEY 'k')")
        connection.execute("CREATE TABLE s.t AS SELECT 1 AS i")
    assert "is encrypted" in refusal(source.UnsupportedFormat, path, tmp_path)


@pytest.mark.unit
def test_a_log_of_an_unknown_version_is_refused(tmp_path, start_writer):
    live = tmp_path / "live.duckdb"
    start_writer(live, "idle").kill()
    log = Path(f"{live}.wal")
    data = bytearray(log.read_bytes())
    data[5] = 9
    log.write_bytes(data)
    assert "unknown version" in refusal(source.UnsupportedFormat, live, tmp_path)


@pytest.mark.unit
def test_a_log_that_cannot_be_read_is_named(warehouse, tmp_path):
    Path(f"{warehouse}.wal").mkdir()
    assert "write-ahead log that cannot be read" in refusal(source.SourceMissing, warehouse, tmp_path)


@pytest.mark.unit
def test_garbage_in_place_of_the_log_is_left_to_duckdb_and_then_refused(warehouse, tmp_path):
    Path(f"{warehouse}.wal").write_bytes(b"garbage!" * 100)
    with pytest.raises(source.SourceDamaged, match="could not be folded in"):
        source.copy(warehouse, tmp_path / "copy.duckdb")
    assert leftovers(tmp_path, "live") == []


@pytest.mark.unit
def test_a_cut_off_file_is_refused_also_where_its_catalog_can_still_be_read(tmp_path):
    path = tmp_path / "wide.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE small AS SELECT 1 AS i")
        connection.execute("CHECKPOINT")
        connection.execute("CREATE TABLE t AS SELECT range AS i, hash(range) AS h FROM range(500000)")
        connection.execute("CHECKPOINT")
    whole = path.stat().st_size
    refused = 0
    for blocks in range(1, (whole - HEADERS_SIZE) // 262144):
        cut = tmp_path / "cut.duckdb"
        cut.write_bytes(path.read_bytes()[: HEADERS_SIZE + blocks * 262144])
        with pytest.raises(source.SourceDamaged):
            source.copy(cut, tmp_path / "copy.duckdb")
        refused += 1
    assert refused > 10


@pytest.mark.unit
def test_a_full_disk_leaves_nothing(warehouse, tmp_path):
    code = (
        "import resource, sys; from marimohub.snapshots.__main__ import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "copy", str(warehouse), str(tmp_path / "copy.duckdb")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == f"There is no room for a snapshot in {tmp_path}. Make room on that disk and try again.\n"
    assert leftovers(tmp_path, "live") == []


@pytest.mark.unit
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_file_system_without_room_is_refused_before_it_is_filled(tmp_path):
    path = tmp_path / "wide.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE t AS SELECT range AS i, hash(range) AS h FROM range(500000)")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        with pytest.raises(source.NoSpace, match="no room for a snapshot"):
            source.copy(path, small / "copy.duckdb")
        assert leftovers(small) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.unit
def test_a_copy_slower_than_its_deadline_stops_and_leaves_nothing(warehouse, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "CHUNK", 4096)

    def slow(*arguments):
        time.sleep(0.02)
        return transfer._read(*arguments)

    monkeypatch.setattr(transfer, "_range", slow)
    monkeypatch.setattr(transfer, "FICLONE", 0)
    with pytest.raises(source.CopyTooSlow, match=r"within 0\.1 s"):
        source.copy(warehouse, tmp_path / "copy.duckdb", deadline=0.1)
    assert leftovers(tmp_path, "live") == []


@pytest.mark.unit
@pytest.mark.parametrize("refused", [[], ["_range"], ["_range", "_sendfile"]])
def test_each_way_of_moving_bytes_gives_the_same_bytes(tmp_path, monkeypatch, refused):
    data = os.urandom(3_000_001)
    (tmp_path / "a").write_bytes(data)
    monkeypatch.setattr(transfer, "CHUNK", 1_000_000)
    monkeypatch.setattr(transfer, "FICLONE", 0)  # an ioctl that no file system knows

    def no(*_arguments):
        raise OSError(errno.EXDEV, "no")

    for name in refused:
        monkeypatch.setattr(transfer, name, no)
    with open(tmp_path / "a", "rb") as reading, open(tmp_path / "b", "wb") as writing:
        method = transfer.transfer(reading.fileno(), writing.fileno(), len(data), lambda: None)
    assert (tmp_path / "b").read_bytes() == data
    assert method == ["copy_file_range", "sendfile", "read"][len(refused)]


@pytest.mark.unit
def test_the_command_line_reports_in_json_and_fails_with_one_sentence(warehouse, tmp_path):
    command = [sys.executable, "-m", "marimohub.snapshots", "copy"]
    done = subprocess.run([*command, str(warehouse), str(tmp_path / "c.duckdb"), "--json"], capture_output=True)
    report = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, b"")
    assert report["version"] == source.version(warehouse)
    done = subprocess.run([*command, str(tmp_path / "no"), str(tmp_path / "d.duckdb"), "--json"], capture_output=True)
    assert done.returncode == 1
    assert done.stderr.decode() == f"The warehouse {tmp_path / 'no'} does not exist. Check the warehouse setting.\n"
    assert json.loads(done.stdout)["error"]["type"] == "SourceMissing"


@pytest.mark.unit
@pytest.mark.parametrize("end", ["SIGTERM", "stdin"])
def test_a_helper_that_is_told_to_stop_leaves_nothing(tmp_path, start_writer, end):
    live = tmp_path / "live.duckdb"
    start_writer(live, "idle")
    Path(f"{live}.wal.checkpoint").touch()  # a checkpoint that never ends: the helper waits
    helper = subprocess.Popen(
        [sys.executable, "-m", "marimohub.snapshots", "copy", str(live), str(tmp_path / "copy.duckdb"),
         "--until-stdin-closes"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(0.5)
    assert helper.poll() is None
    if end == "SIGTERM":
        helper.send_signal(signal.SIGTERM)
    else:
        helper.stdin.close()
    assert helper.wait(5) == 1
    assert not list(tmp_path.glob("*copy.duckdb*"))


def test_this_process_takes_no_lock_on_the_live_file(warehouse, tmp_path, monkeypatch):
    during: list[bool] = []
    real = transfer.transfer

    def probe(*arguments):
        code = f"import fcntl; f = open({str(warehouse)!r}, 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)"
        during.append(subprocess.run([sys.executable, "-c", code]).returncode == 0)
        return real(*arguments)

    monkeypatch.setattr(source, "transfer", probe)
    source.copy(warehouse, tmp_path / "copy.duckdb")
    assert during == [True]
