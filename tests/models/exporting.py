"""How the exported models are made. The cache key covers this file and modules.py: an edit exports anew.

Both are exported with an example batch of two: an example of one is baked in as a constant, whatever the
dynamic axes say.
"""

# mypy: disallow-subclassing-any=False, warn-return-any=False
# torch and transformers are untyped to mypy here.
from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertModel

from tests.models.modules import NextTokenScores, SentenceEncoder

OPSET = 20


def load_minilm(folder: Path) -> SentenceEncoder:
    """The sentence encoder of a folder with config.json and model.safetensors, in evaluation mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers deprecates is not under test here
        return SentenceEncoder(
            BertModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        ).eval()


def load_smollm2(gguf: Path) -> NextTokenScores:
    """The language model of a GGUF file, its Q4_1 weights expanded to float32, in evaluation mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        return NextTokenScores(
            AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        ).eval()


def save_tokenizer(gguf: Path, to: Path) -> None:
    """Write the tokenizer inside a GGUF file as tokenizer.json, which loads without transformers."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.save(str(to))


def random_tokens(module: NextTokenScores, n_sequence: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token numbers and a mask of ones, int64[2, n_sequence] each, seeded."""
    n_vocabulary = module.language_model.config.vocab_size
    ids = torch.randint(0, n_vocabulary, (2, n_sequence), generator=torch.Generator().manual_seed(0))
    return ids, torch.ones_like(ids)


def export(
    module: torch.nn.Module,
    args: Sequence[Any],
    inputs: Sequence[str],
    output: str,
    to: Path,
    *,
    external: bool,
) -> None:
    """Write an ONNX file whose inputs have the free dimensions `batch` and `sequence`.

    Args:
        module: In evaluation mode.
        args: int64[2, sequence] each.
        inputs: Names for the arguments.
        output: Name for the result; it must not be the name of an ATen operator, which the exporter gives to
            the operator's own result.
        to: The file.
        external: Put the weights beside the file.
    """
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own warnings are not under test here
        program = torch.onnx.export(
            module,
            tuple(args),
            input_names=inputs,
            output_names=[output],
            dynamic_shapes=(sizes,) * len(args),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise AssertionError("torch.onnx.export gave no program")
    program.save(to, external_data=external)
