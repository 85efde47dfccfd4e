"""Bad input at the start: one clear sentence on the terminal, exit status ≠ 0, nothing half-written."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from marimohub.database import VERSION_TABLE, Database
from marimohub.startup import StartupError, prepare_data_dir
from tests.hub import Hub, free_port


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o7777)


def data_of_an_older_hub(path: Path) -> Path:
    for folder in ("users/ann/home", "notebooks/default", "proxy/rds", "snapshots/raw", "other"):
        (path / folder).mkdir(parents=True)
    for file in ("marimohub.sqlite", "marimohub.sqlite-wal", "cookie_secret", "masking_key", "hub.lock", "note.txt"):
        (path / file).touch(mode=0o644)
    (path / "users" / "note.txt").touch(mode=0o644)
    (path / "link").symlink_to(path.parent)
    for entry in path.rglob("*"):
        if not entry.is_symlink():
            entry.chmod(0o755 if entry.is_dir() else 0o644)
    path.chmod(0o755)
    return path


@pytest.mark.unit
@pytest.mark.parametrize(("own_uids", "passage"), [(True, "0o711"), (False, "0o700"), (None, "0o711")])
def test_what_is_in_the_data_folder_is_closed_to_others(tmp_path: Path, own_uids: bool | None, passage: str) -> None:
    data = data_of_an_older_hub(tmp_path / "data")
    before = mode(tmp_path)
    for _ in range(2):
        prepare_data_dir(data, own_uids)
        assert mode(data) == mode(data / "users") == passage
        rest = [path for path in data.iterdir() if path.name not in ("users", "link")]
        assert {mode(path) for path in rest} == {"0o700", "0o600"}
        assert {path.name for path in rest if mode(path) == "0o700"} == {"notebooks", "proxy", "snapshots", "other"}
    if own_uids:
        # people pass through here, so what has not been made theirs yet is nobody's
        assert (mode(data / "users" / "ann"), mode(data / "users" / "note.txt")) == ("0o750", "0o640")
    assert mode(tmp_path) == before, "no link is followed"


@pytest.mark.unit
@pytest.mark.parametrize("started", [True, False])
def test_a_command_beside_the_hub_leaves_the_way_to_people_as_it_is(tmp_path: Path, started: bool) -> None:
    prepare_data_dir(tmp_path / "data", started)
    (tmp_path / "data" / "users").mkdir()
    prepare_data_dir(tmp_path / "data", started)
    before = mode(tmp_path / "data"), mode(tmp_path / "data" / "users")
    prepare_data_dir(tmp_path / "data")
    assert (mode(tmp_path / "data"), mode(tmp_path / "data" / "users")) == before
    assert before == (("0o711", "0o711") if started else ("0o700", "0o700"))


@pytest.mark.unit
@pytest.mark.parametrize(("own_uids", "passage"), [(True, "0o711"), (False, "0o700")])
def test_folders_on_the_way_to_a_new_data_folder_are_made_as_it_needs_them(
    tmp_path: Path, own_uids: bool, passage: str
) -> None:
    umask = os.umask(0o077)
    try:
        prepare_data_dir(tmp_path / "a" / "b" / "data", own_uids)
    finally:
        os.umask(umask)
    assert [mode(tmp_path / part) for part in ("a", "a/b", "a/b/data")] == [passage] * 3


@pytest.mark.unit
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("entry", ["cookie_secret", "users", "notebooks"])
def test_parts_of_the_data_folder_that_belong_to_another_user_are_refused(tmp_path: Path, entry: str) -> None:
    data = data_of_an_older_hub(tmp_path / "data")
    os.chown(data / entry, 65534, 65534)
    os.chown(data / "note.txt", 65534, 65534)
    with pytest.raises(StartupError, match=rf"{entry} belongs to another user.*chown -hR USER: {data}"):
        prepare_data_dir(data, True)
    os.chown(data / entry, 0, 0)
    prepare_data_dir(data, True)
    assert mode(data / "note.txt") == "0o600"


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub(tmp_path)


def refused(hub: Hub, *arguments: str) -> str:
    """Run the hub, which must refuse to start; returns the sentence."""
    done = subprocess.run(
        hub.command(*arguments), cwd=hub.folder, env=hub.environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    # JupyterHub and traitlets end some starts themselves, with a critical line of the log
    sentences = [line for line in done.stderr.splitlines() if line.startswith(("marimohub: ", "[C "))]
    assert len(sentences) == 1, done.stderr
    return sentences[0]


def no_process_left(hub: Hub) -> bool:
    """Whether nothing runs in the hub's folder, or names it on its command line."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place = os.readlink(process / "cwd")
            words = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if int(process.name) != os.getpid() and str(hub.folder) in f"{place} {words}":
            return False
    return True


def test_public_port_in_use_is_told(hub: Hub) -> None:
    with socket.create_server(("127.0.0.1", hub.port)):
        assert str(hub.port) in refused(hub)
    assert no_process_left(hub)


def test_hub_port_in_use_is_told_and_no_proxy_stays_behind(hub: Hub) -> None:
    with socket.create_server(("127.0.0.1", hub.hub_port)):
        sentence = refused(hub)
    assert f"Port {hub.hub_port}" in sentence
    assert "JupyterHub.hub_port" in sentence
    assert no_process_left(hub)


def test_start_that_fails_late_leaves_no_proxy_behind(hub: Hub) -> None:
    service = {"name": "broken", "command": ["false"], "url": f"http://127.0.0.1:{free_port()}"}
    hub.config_path.write_text(hub.config_path.read_text() + f"c.JupyterHub.services = [{service!r}]\n")
    done = subprocess.run(hub.command(), cwd=hub.folder, env=hub.environment, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert (hub.data / "proxy").is_dir()
    assert no_process_left(hub)


def test_configuration_with_a_syntax_error_names_file_and_line(hub: Hub) -> None:
    hub.config_path.write_text("c = get_config()\nc.JupyterHub.port = = 1\n")
    sentence = refused(hub)
    assert "marimohub_config.py, line 2" in sentence


def test_configuration_that_raises_is_one_sentence(hub: Hub) -> None:
    hub.config_path.write_text("import nothing_of_this_name\n")
    assert "nothing_of_this_name" in refused(hub)


def test_configuration_that_cannot_be_read_is_told(hub: Hub) -> None:
    # not text, so that root cannot read it either
    hub.config_path.write_bytes(b"\xff\xfe\x00")
    assert "marimohub_config.py" in refused(hub)


def test_named_configuration_that_is_missing_is_told(hub: Hub) -> None:
    done = subprocess.run(
        hub.command("-f", "nowhere.py"), cwd=hub.folder, env=hub.environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "nowhere.py" in done.stderr
    assert "Traceback" not in done.stderr


def test_value_of_the_wrong_type_is_told(hub: Hub) -> None:
    hub.config_path.write_text(hub.config_path.read_text() + "c.MarimoHub.lock_ttl = 'soon'\n")
    assert "lock_ttl" in refused(hub)


def test_memory_limit_that_duckdb_would_not_take_is_told(hub: Hub) -> None:
    assert 'with a unit: "2GB"' in refused(hub, "--MarimoHub.snapshot_memory_limit=lots")


def test_damaged_masking_key_is_told_and_not_replaced(hub: Hub) -> None:
    hub.data.mkdir(mode=0o700)
    (hub.data / "masking_key").write_text("short")
    assert "masking_key is damaged" in refused(hub)
    assert (hub.data / "masking_key").read_text() == "short"


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "folder", "corrupt"])
def test_warehouse_that_cannot_be_used_is_told(hub: Hub, kind: str) -> None:
    path = hub.folder / "warehouse.duckdb"
    if kind == "text":
        path.write_text("id,name\n1,ann\n" * 1000)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "corrupt":
        with duckdb.connect(str(path)) as connection:
            connection.execute("CREATE TABLE t AS SELECT range AS i FROM range(1000)")
        damaged = bytearray(path.read_bytes())
        damaged[4096:12288] = os.urandom(8192)
        path.write_bytes(damaged)
    before = path.read_bytes() if path.is_file() else None
    sentence = refused(hub, f"--warehouse={path}")
    assert "The warehouse cannot be used" in sentence
    assert before is None or path.read_bytes() == before
    assert no_process_left(hub)


def test_data_folder_of_a_newer_version_is_refused_untouched(hub: Hub) -> None:
    hub.data.mkdir()
    database = Database(f"sqlite:///{hub.data / 'marimohub.sqlite'}")
    database.prepare()
    with database.transaction() as session:
        session.connection().exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    database.close()
    sentence = refused(hub)
    assert "newer MarimoHub" in sentence
    assert no_process_left(hub)


def test_second_hub_on_one_data_folder_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.start()
    try:
        other = Hub(tmp_path)
        other.config_path.write_text(
            f"c = get_config()\nc.JupyterHub.port = {free_port()}\nc.JupyterHub.hub_port = {free_port()}\n"
        )
        assert "Another hub" in refused(other)
    finally:
        hub.stop()
    assert no_process_left(hub)


def test_memory_database_is_refused(hub: Hub) -> None:
    assert "must be a file" in refused(hub, "--no-db")


def test_data_folder_that_is_a_file_is_told(hub: Hub) -> None:
    hub.data.write_text("")
    assert "data_dir" in refused(hub)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_data_folder_of_another_user_or_with_planted_links_is_refused(hub: Hub) -> None:
    hub.data.mkdir()
    os.chown(hub.data, 65534, 65534)
    assert "belongs to another user" in refused(hub)
    os.chown(hub.data, 0, 0)
    victim = hub.folder / "victim"
    victim.write_text("precious")
    (hub.data / "hub.lock").symlink_to(victim)
    assert "is a link" in refused(hub)
    assert victim.read_text() == "precious"


def test_init_writes_a_configuration_once_and_the_hub_starts_with_it(hub: Hub) -> None:
    hub.config_path.unlink()

    def init(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            hub.command("init", *arguments), cwd=hub.folder, env=hub.environment, capture_output=True, text=True
        )

    assert init().returncode == 0
    written = hub.config_path.read_text()
    again = init()
    assert again.returncode == 1
    assert "exists already" in again.stderr
    hub.config_path.write_text("mine")
    assert init("-y").returncode == 0
    assert hub.config_path.read_text() == written
    hub.start(f"--port={hub.port}", f"--JupyterHub.hub_port={hub.hub_port}")
    hub.setup_link()
    assert "To let others in" in hub.log
    hub.stop()


def test_token_and_upgrade_commands_work_on_the_hubs_own_database(hub: Hub) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            hub.command(*arguments), cwd=hub.folder, env=hub.environment, capture_output=True, text=True, timeout=60
        )

    assert "Start the hub once" in run("token", "ann").stderr
    hub.start()
    nobody = run("token", "ann")
    assert nobody.returncode == 1
    assert "no user" in nobody.stderr
    hub.stop()
    upgraded = run("upgrade-db")
    assert upgraded.returncode == 0, upgraded.stderr
    assert "up to date" in upgraded.stdout


def test_a_hub_that_is_ended_while_it_starts_leaves_no_proxy(hub: Hub) -> None:
    hub.start(wait=False)
    assert hub.process is not None
    record = hub.data / "proxy/envoy.json"
    deadline = time.monotonic() + 60
    while not record.exists():
        assert time.monotonic() < deadline and hub.process.poll() is None, hub.log
        time.sleep(0.001)
    envoy = json.loads(record.read_text())["pid"]
    hub.process.terminate()
    assert hub.process.wait(60) in (0, 1), hub.log
    assert not Path(f"/proc/{envoy}").exists()
    assert "Traceback" not in hub.log


def test_help_lists_our_settings(hub: Hub) -> None:
    done = subprocess.run(hub.command("--help-all"), cwd=hub.folder, capture_output=True, text=True, timeout=60)
    for setting in ("MarimoHub.warehouse", "MarimoHub.lock_ttl", "MarimoSpawner.users_dir", "EnvoyProxy.concurrency"):
        assert f"--{setting}" in done.stdout


def test_the_hub_itself_does_not_load_duckdb() -> None:
    """It would cost memory and time at start, and the binding prints complaints when such a process ends."""
    code = "import sys, marimohub.app; print([name for name in sys.modules if 'duckdb' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
