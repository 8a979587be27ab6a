"""``hal diff``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hal.cli import options
from hal.cli.output import emit, say, show
from hal.cli.progress import shown
from hal.cli.requests import default_output, read_request
from hal.errors import HalError, ModelError, UserError
from hal.escapes import printable

if TYPE_CHECKING:
    from hal.profiling.divergence import Diff
    from hal.records.divergence import Divergence


def diff(
    model: options.Model,
    targets: Annotated[
        tuple[str, str],
        typer.Option("--targets", metavar="A B", help="Two targets, or one and 'reference'."),
    ],
    shape: options.Shapes = None,
    input: options.Inputs = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="X",
            help="Relative L2 above which values part (default: what the coarser precision explains).",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE.onnx",
            help="Where to write what reproduces it (default: MODEL.diff.onnx here); inputs go to FILE.npz.",
        ),
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> int:
    """Find the first node at which the answers of two targets part.

    Writes the smallest model that shows it, with its inputs, and prints the command that replays it.
    Exit code 1 where an output parts.
    """
    from hal.records import files

    model_file = output or _default_output(model)
    inputs_file = model_file.with_suffix(".npz")
    _check_names(model, input, model_file, inputs_file)
    for path in (model_file, inputs_file):
        files.check_free(path, force=force)
    request = read_request(model, shape, input)

    from hal.cli.diff_text import diff_text
    from hal.profiling import divergence

    with shown() as progress:
        found = divergence.diff(
            request.model,
            request.inputs,
            targets=targets,
            shapes=request.shapes,
            tolerance=tolerance,
            progress=progress,
        )
    record = found.record
    try:
        if found.model is not None:
            record = _written(found, model_file, inputs_file, force)
            record = _replayed(record, targets, tolerance)
    finally:
        # Minutes of searching are printed even where the files could not be written.
        if json:
            emit(files.to_json(record).decode(), sys.stdout)
        words = sys.stderr if json else sys.stdout
        show(diff_text(record), words)
        if record.reproduction is not None and record.reproduction.command:
            # Not folded at the terminal's width, so that it can be copied.
            emit(f"    {printable(record.reproduction.command)}\n", words)
    return 1 if record.parted else 0


def _default_output(model: str) -> Path:
    return default_output(model).with_suffix("").with_suffix(".diff.onnx")


def _check_names(model: str, inputs: Sequence[str] | None, model_file: Path, inputs_file: Path) -> None:
    """Refuse names that lose a file even where overwriting is allowed.

    Raises:
        UserError: Says which.
    """
    if model_file.suffix != ".onnx":
        raise UserError(
            f"--output {str(model_file)!r} must end in .onnx; the inputs are written beside it as .npz"
        )
    for path, given in [(model_file, model), *((inputs_file, text) for text in inputs or ())]:
        if path.exists() and os.path.exists(given) and os.path.samefile(path, given):
            raise UserError(
                f"{str(path)!r} is what hal diff was asked to read; name another file with --output"
            )


def _written(found: Diff, model_file: Path, inputs_file: Path, force: bool) -> Divergence:
    """Write what reproduces the difference; the record, with the names of the files.

    Raises:
        StorageError: They could not be written.
        OutputExists: They appeared meanwhile.
    """
    import msgspec
    import onnx

    from hal.cli.run_text import npz_writer
    from hal.records import files

    assert found.model is not None
    assert found.record.reproduction is not None
    try:
        content = found.model.to_proto()
    except ModelError as error:  # protobuf has a limit, and weights may be larger
        return _noted(found.record, f"what reproduces it was not written: {error.message}")
    record = found.record
    try:
        onnx.checker.check_model(content)
    except onnx.checker.ValidationError as error:
        record = _noted(record, f"onnx.checker refuses the file, as it may the model: {error}")
    files.write(model_file, content.SerializeToString(), force=force)
    names = [str(model_file)]
    if found.inputs:  # a part that reads weights alone has none
        files.write(inputs_file, npz_writer(found.inputs), force=force)
        names.append(str(inputs_file))
    say(f"Wrote {' and '.join(names)}")
    reproduction = msgspec.structs.replace(
        found.record.reproduction, model_file=names[0], inputs_file=names[1] if found.inputs else ""
    )
    return msgspec.structs.replace(record, reproduction=reproduction)


def _replayed(record: Divergence, targets: tuple[str, str], tolerance: float | None) -> Divergence:
    """Read the files back and run the command that is to be printed, as far as its outputs."""
    import msgspec

    from hal.profiling import divergence

    reproduction = record.reproduction
    if reproduction is None or not reproduction.model_file:
        return record
    inputs = [reproduction.inputs_file] if reproduction.inputs_file else []
    words = ["hal", "diff", reproduction.model_file]
    words += [word for file in inputs for word in ("--input", file)] + ["--targets", *targets]
    words += [] if tolerance is None else ["--tolerance", repr(tolerance)]
    try:
        with shown() as progress:
            progress.stage("replaying it in new processes")
            request = read_request(reproduction.model_file, None, inputs)
            again = divergence.diff(
                request.model,
                request.inputs,
                targets=targets,
                tolerance=tolerance,
                locate=False,
                progress=progress,
            )
        replayed = again.record.parted
        if not replayed:
            record = _noted(record, "read again and run in new processes, the files do not part")
    except HalError as error:
        replayed = False
        record = _noted(record, f"the files could not be replayed: {error.message}")
    return msgspec.structs.replace(
        record,
        reproduction=msgspec.structs.replace(reproduction, command=shlex.join(words), replayed=replayed),
    )


def _noted(record: Divergence, note: str) -> Divergence:
    import msgspec

    return msgspec.structs.replace(record, notes=(*record.notes, note))
