"""Exit codes, one message per error, and what a terminal is spared."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from hal.cli import main
from hal.cli.options import policy
from hal.cli.outcome import guarded
from hal.cli.output import ReaderGone, emit, one_line, printable, say
from hal.cli.progress import StageLines, shown
from hal.errors import (
    BackendError,
    InputError,
    InternalError,
    OutputExists,
    StorageError,
    UserError,
)
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
def test_hal_ends_with_4_when_stdout_is_full() -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run([*CALL, "--version"], stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert ran.returncode == 4
    assert ran.stderr == (
        b"error: the output could not be written: No space left on device; "
        b"free some space or send it somewhere else\n"
    )


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


@pytest.mark.parametrize("time_s", [0.0, -1.0, float("nan"), float("inf")])
def test_policy_refuses_a_time_when_it_is_not_positive_and_finite(time_s: float) -> None:
    with pytest.raises(UserError) as caught:
        policy(time_s)
    assert (
        caught.value.message == f"--time-s {time_s:g} is not a time; expected seconds above 0, for example 2"
    )
