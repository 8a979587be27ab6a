"""Exit codes, one message per error, and what a terminal is spared."""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hal.cli import main
from hal.cli.options import policy
from hal.cli.outcome import guarded
from hal.cli.output import ReaderGone, cell, console, emit, line, one_line, say, shortened
from hal.cli.progress import StageLines, shown
from hal.cli.signals import Signalled, ended_by, watching
from hal.errors import (
    BackendError,
    InputError,
    InternalError,
    OutputExists,
    StorageError,
    UserError,
)
from hal.escapes import printable
from hal.sampling import Policy

CALL = [sys.executable, "-c", "import sys; from hal.cli import main; sys.exit(main())"]


def raising(error: BaseException, *, traceback: bool = False) -> int:
    def command() -> int:
        raise error

    return guarded(command, traceback=traceback)()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("no x"), 2),
        (OutputExists("no x"), 2),
        (BackendError("no x"), 3),
        (StorageError("no x"), 4),
        (InternalError("no x"), 70),
    ],
)
def test_guarded_prints_one_line_when_hal_raises(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(error) == code
    assert capsys.readouterr() == ("", "error: no x\n")


def test_guarded_asks_for_a_report_when_something_unexpected_is_raised(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert raising(ZeroDivisionError("by zero")) == 70
    assert capsys.readouterr().err == (
        "error: hal failed unexpectedly: ZeroDivisionError: by zero; "
        "please report this with what the same command prints under --traceback\n"
    )


def test_guarded_prints_a_traceback_when_asked_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(ZeroDivisionError("by zero"), traceback=True) == 70
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith("error: hal failed unexpectedly: ZeroDivisionError: by zero; please report this\n")


def test_guarded_ends_with_130_when_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("link", ["__cause__", "__context__"])
def test_guarded_ends_with_130_when_a_library_hides_the_interruption(
    link: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ImportError("numpy._core.umath failed to import")
    between = ImportError("between")
    setattr(between, link, KeyboardInterrupt())
    setattr(error, link, between)
    assert raising(error) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_ended_by_is_nothing_when_errors_are_chained_in_a_circle() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__context__, two.__context__ = two, one
    assert ended_by(one) is None


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("SIGINT", 130, "interrupted\n"),
        ("SIGTERM", 143, "ended by SIGTERM\n"),
        ("SIGHUP", 129, "ended by SIGHUP\n"),
    ],
)
@pytest.mark.parametrize("hidden", [False, True])
def test_guarded_cleans_up_when_a_signal_comes(
    name: str, code: int, words: str, hidden: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []

    def command() -> int:
        with tempfile.TemporaryDirectory() as folder:
            folders.append(folder)
            try:
                signal.raise_signal(getattr(signal, name))
            except Signalled:
                if not hidden:
                    raise
            raise ImportError("umath failed to import")  # as numpy does, without a trace of why

    before = signal.getsignal(getattr(signal, name))
    with watching():
        assert guarded(command, traceback=False)() == code
    assert signal.getsignal(getattr(signal, name)) is before
    assert capsys.readouterr().err == words
    assert not Path(folders[0]).exists()


def test_watching_leaves_a_signal_alone_when_it_is_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with watching():
            signal.raise_signal(signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_watching_lets_the_clean_up_end_when_the_signal_comes_twice() -> None:
    cleaned = []

    def end_twice() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)

    with watching(), pytest.raises(Signalled, match="ended by SIGTERM"):
        end_twice()
    assert cleaned == [True]


def test_guarded_cuts_the_middle_when_an_error_is_megabytes_long(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for error in (BackendError("a" * 3_000_000 + "z"), ValueError("a" * 3_000_000 + "z")):
        raising(error)
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert "aaa…aaa" in err
        assert "az" in err
        assert len(err) < 2200


def test_guarded_names_shapes_when_memory_runs_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(MemoryError("Unable to allocate 1 PiB")) == 2
    assert capsys.readouterr().err == (
        "error: out of memory: Unable to allocate 1 PiB; "
        "give smaller shapes with --shape, or close other programs\n"
    )


def test_guarded_escapes_the_message_when_it_holds_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    raising(UserError("node \x1b[2Jx is bad:\n  - \x07"))
    assert capsys.readouterr().err == "error: node \\x1b[2Jx is bad:\n  - \\x07\n"


def test_hal_is_quiet_and_ends_with_141_when_the_reader_is_gone() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    ran = subprocess.run([*CALL, "--version"], stdout=write_end, stderr=subprocess.PIPE, timeout=60)
    os.close(write_end)
    assert (ran.returncode, ran.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", ["--version", "plugins"])
def test_hal_ends_with_4_when_stdout_is_full(command: str) -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run([*CALL, command], stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert ran.returncode == 4
    assert ran.stderr == (
        b"error: the output could not be written: No space left on device; "
        b"free some space or send it somewhere else\n"
    )


@pytest.mark.skipif(os.name != "posix", reason="the shell is POSIX's")
@pytest.mark.parametrize(
    ("closed", "words"),
    [
        (">&-", b"error: the output could not be written: stdout is closed; send it somewhere else\n"),
        (">&- 2>&-", b""),
    ],
)
def test_hal_ends_with_4_when_stdout_is_closed(closed: str, words: bytes) -> None:
    call = shlex.join([*CALL, "plugins"])
    ran = subprocess.run(["sh", "-c", f"{call} {closed}"], capture_output=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (4, words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "error: No such command 'nonsense'\nrun 'hal --help' for the arguments and options\n"),
        (
            ["profile"],
            "error: Missing argument 'MODEL'\nrun 'hal profile --help' for the arguments and options\n",
        ),
        (
            ["run", "m.onnx", "--tarjet", "x"],
            "error: No such option: --tarjet",
        ),
        (["profile", "m.onnx", "--top", "0"], "error: Invalid value for '--top'"),
    ],
)
def test_hal_points_to_help_when_the_command_line_is_wrong(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert err.endswith("--help' for the arguments and options\n")


def test_hal_prints_help_on_stderr_when_no_command_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage: hal" in err
    assert "Start with: hal profile demo:digits" in err


@pytest.mark.parametrize("arguments", [["--version"], ["--traceback", "--version"], ["--version", "run"]])
def test_hal_prints_its_version_when_asked(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from hal import __version__

    assert main(arguments) == 0
    assert capsys.readouterr() == (f"hal {__version__}\n", "")


def test_hal_loads_nothing_heavy_when_it_answers_version_or_help() -> None:
    # typer and rich are the command line's own; everything else a command loads when it runs.
    code = (
        "import sys; from hal.cli import main; code = main(sys.argv[1:]);"
        "print([m for m in ('numpy', 'onnx', 'onnx_ir', 'torch', 'msgspec', 'pluggy', 'psutil', 'rich',"
        " 'typer', 'ml_dtypes', 'openvino', 'onnxruntime') if m in sys.modules])"
    )
    for arguments, allowed in (
        (["--version"], "[]"),
        (["--help"], "['typer']"),
        (["profile", "--help"], "['typer']"),
    ):
        ran = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, timeout=60
        )
        assert ran.stdout.splitlines()[-1] == allowed


@pytest.mark.parametrize(
    ("text", "shown_text"),
    [
        ("plain é 漢", "plain é 漢"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\rb\tc\x00\x9b", "a\\rb\\tc\\x00\\x9b"),
        ("\u202eevil", "\\u202eevil"),
        ("two\u2028lines", "two\\u2028lines"),
        ("\ud800", "\\ud800"),
        ("[red]x[/]", "[red]x[/]"),
        ("a\nb", "a\nb"),
    ],
)
def test_printable_escapes_what_terminals_obey_when_text_is_hostile(text: str, shown_text: str) -> None:
    assert printable(text) == shown_text


def test_one_line_cuts_the_middle_when_a_text_is_long() -> None:
    assert one_line("a\nb") == "a\\nb"
    assert one_line("0123456789", 10) == "0123456789"
    assert one_line("0123456789A", 10) == "0123…6789A"
    assert len(one_line("x" * 5000, 7)) == 7
    assert one_line("\n" * 5000, 9) == "\\n\\n…\\n\\n"


def test_texts_lose_their_middle_when_they_are_megabytes_long() -> None:
    text = "a" * 1_500_000 + "b" * 1_500_000
    expected = "a" * 999 + "…" + "b" * 1000
    assert shortened(text) == one_line(text) == cell(text).plain == line(text).plain == expected


@pytest.mark.parametrize(
    ("columns", "width"), [("0", 100), ("19", 100), ("20", 20), ("80", 80), ("9" * 5000, 100), ("x", 100)]
)
def test_console_has_its_usual_width_when_columns_is_no_width(
    columns: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert console(io.StringIO()).width == width


def test_emit_escapes_letters_when_the_stream_cannot_write_them() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii")
    emit("é ok\n", stream)
    assert raw.getvalue() == b"\\xe9 ok\n"


def test_emit_raises_reader_gone_when_the_pipe_is_closed() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w", buffering=1, closefd=False) as file:
        with pytest.raises(ReaderGone):
            emit("x\n", file)
        os.dup2(os.open(os.devnull, os.O_WRONLY), write_end)  # so that closing can flush
    os.close(write_end)


def test_say_writes_words_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("Wrote x")
    assert capsys.readouterr() == ("", "Wrote x\n")


def test_progress_prints_each_stage_once_when_stderr_is_no_terminal() -> None:
    file = io.StringIO()
    with shown(file) as progress:
        assert isinstance(progress, StageLines)
        for text in ("one", "one", "two \x1b[2J"):
            progress.stage(text)
            progress.advance(1, 2)
    assert file.getvalue() == "one\ntwo \\x1b[2J\n"


def test_progress_leaves_no_line_behind_when_stderr_is_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    file = Terminal()
    with shown(file) as progress:
        progress.stage("compiling [red]")
        progress.advance(1, 2)
    assert "compiling [red]" in file.getvalue()
    assert file.getvalue().endswith("\x1b[2K")


def test_policy_is_hals_own_when_no_time_is_given() -> None:
    assert policy(None) is None


def test_policy_fits_into_the_time_when_one_is_given() -> None:
    made = policy(0.4)
    assert made is not None
    assert made.max_time_ns == 400_000_000
    assert made.min_time_ns == 400_000_000
    assert made.warm_up_max_ns == 400_000_000
    assert made.burst_ns * made.min_bursts <= made.max_time_ns
    longer = policy(60)
    assert longer is not None
    assert longer.max_time_ns == 60_000_000_000
    assert longer.min_time_ns == Policy().min_time_ns


@pytest.mark.parametrize("time_s", [0.0, -1.0, float("nan"), float("inf"), 1e300, 86_401])
def test_policy_refuses_a_time_when_it_is_not_above_0_and_at_most_a_day(time_s: float) -> None:
    with pytest.raises(UserError) as caught:
        policy(time_s)
    assert caught.value.message == (
        f"--time-s {time_s:g} is no time to measure; expected seconds above 0 and at most 86400 (a day), "
        "for example 2"
    )
