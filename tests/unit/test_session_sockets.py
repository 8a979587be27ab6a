"""Watched sessions: told to who may know, from process to process, and nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import hal
from hal.errors import StorageError
from hal.session import asking, sockets
from hal.session.asking import ask_all, sockets_folder
from hal.session.sockets import TELLER, announced
from hal.session.watching import SESSIONS
from hal.testing import example_inputs, small_graph
from tests.unit.sessions import TARGET, session

ROOT = Path(__file__).parents[2]
INPUTS = example_inputs(small_graph("add"))


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # Not pytest's own folder: tests connect as strangers do, by a name that sockets allow no more than 107
    # characters of.
    with tempfile.TemporaryDirectory(prefix="hal") as folder:
        monkeypatch.setenv("HAL_HOME", str(Path(folder) / "home"))
        yield Path(folder) / "home"
        assert TELLER._listener is None  # no test leaves one


def program(*options: str) -> subprocess.Popen[str]:
    """A process with a session that can be watched."""
    made = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.watched", *options],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert made.stdout is not None
    assert made.stdout.readline() == "ready\n"
    return made


def ended(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=60)


def paths() -> list[Path]:
    return sorted(sockets_folder().iterdir()) if sockets_folder().exists() else []


def test_a_session_is_told_of_while_it_is_open_and_allows_it() -> None:
    watched, other = announced(session()[0], watch=True), announced(session()[0], watch=False)
    watched(*INPUTS)
    ((told),) = ask_all()
    assert told.pid == os.getpid()
    ((metrics),) = told.sessions
    assert (metrics.session, metrics.model) == (watched.watcher.number, "add")
    assert (metrics.n_requests, metrics.targets) == (1, (TARGET,))
    watched.close()
    watched.close()
    assert ask_all() == []
    assert paths() == []
    other.close()


def test_one_socket_is_made_when_a_process_has_many_sessions() -> None:
    made = [announced(session()[0], watch=True) for _ in range(5)]
    assert len(paths()) == 1
    for left in range(5, 0, -1):
        assert [len(told.sessions) for told in ask_all()] == [left]
        made.pop().close()
    assert paths() == []


def test_sessions_can_be_watched_again_when_all_were_closed() -> None:
    for _ in range(3):
        with announced(session()[0], watch=True):
            assert len(ask_all()) == 1
        assert ask_all() == []


def test_sessions_of_all_processes_are_told_of_and_dead_ones_are_cleaned_up() -> None:
    first, second = program(), program("--close")
    try:
        found = ask_all()
        assert [told.pid for told in found] == sorted([first.pid, second.pid])
        assert [told.sessions[0].n_requests for told in found] == [3, 3]
        first.kill()
        first.wait(timeout=60)
        assert len(paths()) == 2
        assert [told.pid for told in ask_all()] == [second.pid]
        assert len(paths()) == 1
    finally:
        ended(second)
        first.communicate(timeout=60)
    assert paths() == []


def test_no_socket_stays_when_a_program_ends_without_closing_its_session() -> None:
    process = program()
    assert len(paths()) == 1
    ended(process)
    assert process.returncode == 0
    assert paths() == []


def test_a_forked_child_keeps_no_socket_open_and_takes_none_away() -> None:
    with announced(session()[0], watch=True):
        child = os.fork()
        if not child:
            os._exit(0 if TELLER._listener is None and not len(SESSIONS) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert len(ask_all()) == 1


def test_only_this_user_may_use_the_folder() -> None:
    with announced(session()[0], watch=True):
        assert stat.S_IMODE(sockets_folder().stat().st_mode) == 0o700


def test_watching_is_refused_when_others_may_use_the_folder(home: Path) -> None:
    folder = home / "data" / "watched"
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    with pytest.raises(StorageError) as caught:
        hal.compile("demo:digits", watch=True)  # before anything is measured
    assert caught.value.message == (
        f"a session cannot be watched: others may use {str(folder)!r} (mode 755, user {os.getuid()}); "
        f"expected a folder of mode 700 of user {os.getuid()}: remove it, and it is made again"
    )
    add, runner = session()
    with pytest.raises(StorageError):
        announced(add, watch=True)
    assert runner.n_closed == 1


def test_watching_is_refused_when_no_folder_can_be_made(home: Path) -> None:
    home.parent.mkdir(exist_ok=True)
    home.write_text("a file")
    with pytest.raises(StorageError, match=r"the folder .* cannot be made: .*; set HAL_HOME to a folder"):
        hal.load("nothing.hal", watch=True)


def test_watching_is_refused_when_no_socket_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "here", lambda: "x" * 300)
    with pytest.raises(
        StorageError, match=r"no socket can be made at .*: .*; set HAL_HOME to another folder"
    ):
        announced(session()[0], watch=True)


def test_a_home_may_be_as_deep_as_it_likes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_HOME", str(home / ("deep" * 20) / ("deeper" * 20)))
    with announced(session()[0], watch=True):
        assert len(ask_all()) == 1


def test_nobody_waits_when_a_watcher_reads_nothing_or_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "PATIENCE_S", 5.0)
    with announced(session()[0], watch=True):
        (path,) = paths()
        with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as rude:
            silent.connect(str(path))
            rude.connect(str(path))
            rude.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert len(ask_all()) == 1


def test_what_is_no_answer_is_left_out(home: Path) -> None:
    sockets._private(sockets_folder())
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(sockets_folder() / f"{asking.here()}.1.sock"))
        other.listen()
        child = os.fork()
        if not child:
            connected, _ = other.accept()
            connected.sendall(msgspec.json.encode({"pid": "none"}))
            os._exit(0)
        assert ask_all() == []
        os.waitpid(child, 0)


def test_sockets_of_other_machines_are_left_alone() -> None:
    sockets._private(sockets_folder())
    theirs = sockets_folder() / "00000000.1.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(theirs))
    assert ask_all() == []
    assert theirs.exists()


def test_nothing_is_told_when_nobody_was_ever_watched() -> None:
    assert ask_all() == []
    assert signal.getsignal(signal.SIGINT) is not None
