"""Arguments for ``hal profile`` and its like: the model's file and its real inputs.

python -m tests.models            lists the models, and why one is missing
python -m tests.models ppocr_rec  prints PATH --input FILE.npz
"""

from __future__ import annotations

import shlex
import sys

import numpy as np

from tests.models import MODELS, QUANTIZED
from tests.models.cache import directory

ALL = {**MODELS, **QUANTIZED}


def main() -> int:
    names = sys.argv[1:]
    if not names:
        for name, model in ALL.items():
            print(f"{name:20} {model.missing() or model.notes}")
        return 0
    unknown = [name for name in names if name not in ALL]
    if unknown:
        print(f"no model is called {unknown[0]!r}; there are {', '.join(ALL)}", file=sys.stderr)
        return 2
    for name in names:
        model = ALL[name]
        if model.missing():
            print(f"{name} cannot be had: {model.missing()}", file=sys.stderr)
            return 1
        path = model.path()
        inputs = directory() / f"{name}.inputs.npz"
        inputs.parent.mkdir(parents=True, exist_ok=True)
        np.savez(inputs, **model.inputs())
        print(shlex.join([str(path), "--input", str(inputs)]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
