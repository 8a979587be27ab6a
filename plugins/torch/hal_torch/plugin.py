"""Entry point of ``hal-torch``: the importer of PyTorch models."""

from __future__ import annotations

from hal.hookspecs import Importer, hookimpl
from hal_torch.importer import TorchImporter


@hookimpl
def hal_importer() -> Importer:
    """Models of PyTorch; PyTorch itself is imported when one is given."""
    return TorchImporter()
