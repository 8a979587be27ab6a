"""A decoder of any size as an ONNX graph, with random weights or with none: for planning, shapes are enough.

    python examples/decoder.py gpt3.onnx          # 175 billion parameters in a file of 0.4 MB
    python examples/decoder.py tiny.onnx --tiny   # with weights, to run

Source: Brown et al., "Language Models are Few-Shot Learners", NeurIPS 2020, table 2.1: "GPT-3 175B" has 96
layers, 96 heads and a width of 12288, and was trained with 2048 tokens; here the last projection has weights
of its own.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: Operator set with LayerNormalization and Gelu.
OPSET = 20


@dataclass(frozen=True)
class Size:
    """Sizes of a decoder; the hidden layer of each block is four times its width."""

    layers: int = 96
    width: int = 12288
    heads: int = 96
    vocabulary: int = 50257
    sequence: int = 2048
    batch: int = 1

    @property
    def parameters(self) -> int:
        """Weights, biases among them."""
        block = 12 * self.width**2 + 13 * self.width
        return self.layers * block + (2 * self.vocabulary + self.sequence + 2) * self.width


GPT3 = Size()
TINY = Size(layers=2, width=32, heads=4, vocabulary=101, sequence=16)


def decoder(
    size: Size = GPT3, *, dtype: int = TensorProto.FLOAT16, seed: int | None = None
) -> onnx.ModelProto:
    """A causal decoder that scores a sequence: int64[batch, sequence] to [batch, sequence, vocabulary].

    Args:
        size: Of the model.
        dtype: Element type of weights and activations.
        seed: Of random weights; None leaves them out: they are external data that does not exist.
    """
    return _Builder(size, dtype, seed).model()


class _Builder:
    def __init__(self, size: Size, dtype: int, seed: int | None) -> None:
        self.size, self.dtype = size, dtype
        self.numpy = np.dtype(helper.tensor_dtype_to_np_dtype(dtype))
        self.random = None if seed is None else np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.offset = 0

    def model(self) -> onnx.ModelProto:
        s = self.size
        self.constant("apart", np.array([s.batch, s.sequence, s.heads, s.width // s.heads]))
        self.constant("joined", np.array([s.batch, s.sequence, s.width]))
        self.constant("square", np.array([s.sequence, s.sequence]))
        self.constant("root", np.array(1 / math.sqrt(s.width // s.heads), self.numpy))
        # What may not be seen: minus a lot above the diagonal. The same in each run, so runtimes fold it.
        lot = numpy_helper.from_array(np.array([-30000], self.numpy))
        self.constant("above", np.array(1))
        unseen = self.op("ConstantOfShape", "square", name="unseen", value=lot)
        mask = self.op("Trilu", unseen, "above", name="mask", upper=1)
        words = self.op("Gather", self.weight("words", s.vocabulary, s.width), "tokens", name="embed")
        x = self.op("Add", words, self.weight("positions", s.sequence, s.width), name="embed.sum")
        for layer in range(s.layers):
            x = self.block(x, mask, f"layer.{layer}")
        head = self.weight("head.weight", s.width, s.vocabulary)
        logits = self.op("MatMul", self.norm(x, "norm"), head, name="head")
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            f"decoder_{s.layers}x{s.width}",
            [value("tokens", TensorProto.INT64, [s.batch, s.sequence])],
            [value(logits, self.dtype, [s.batch, s.sequence, s.vocabulary])],
            self.initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)

    def block(self, x: str, mask: str, name: str) -> str:
        """Attention and a feed-forward network, each added to what it reads."""
        width = self.size.width
        normed = self.norm(x, f"{name}.norm_1")
        q, k, v = (self.heads(self.linear(normed, f"{name}.{part}", width, width)) for part in "qkv")
        q = self.op("Mul", q, "root", name=f"{name}.q.scaled")
        turned = self.op("Transpose", k, name=f"{name}.k.turned", perm=[0, 1, 3, 2])
        scores = self.op(
            "Add", self.op("MatMul", q, turned, name=f"{name}.scores"), mask, name=f"{name}.seen"
        )
        shares = self.op("Softmax", scores, name=f"{name}.shares", axis=-1)
        mixed = self.op("MatMul", shares, v, name=f"{name}.mixed")
        mixed = self.op("Transpose", mixed, name=f"{name}.mixed.turned", perm=[0, 2, 1, 3])
        mixed = self.op("Reshape", mixed, "joined", name=f"{name}.mixed.joined")
        x = self.op("Add", x, self.linear(mixed, f"{name}.out", width, width), name=f"{name}.attended")
        wide = self.linear(self.norm(x, f"{name}.norm_2"), f"{name}.wide", width, 4 * width)
        active = self.op("Gelu", wide, name=f"{name}.gelu", approximate="tanh")
        return self.op("Add", x, self.linear(active, f"{name}.narrow", 4 * width, width), name=f"{name}.sum")

    def heads(self, x: str) -> str:
        """[batch, sequence, width] to [batch, heads, sequence, width / heads]."""
        apart = self.op("Reshape", x, "apart", name=f"{x}.apart")
        return self.op("Transpose", apart, name=f"{x}.heads", perm=[0, 2, 1, 3])

    def linear(self, x: str, name: str, n_in: int, n_out: int) -> str:
        product = self.op("MatMul", x, self.weight(f"{name}.weight", n_in, n_out), name=f"{name}.product")
        return self.op("Add", product, self.weight(f"{name}.bias", n_out), name=name)

    def norm(self, x: str, name: str) -> str:
        width = self.size.width
        gain, shift = self.weight(f"{name}.gain", width), self.weight(f"{name}.shift", width)
        return self.op("LayerNormalization", x, gain, shift, name=name, axis=-1)

    def op(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Add a node; its output has its name."""
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}:0"], name, **attributes))
        return f"{name}:0"

    def constant(self, name: str, value: np.ndarray[Any, Any]) -> None:
        self.initializers.append(numpy_helper.from_array(value, name))

    def weight(self, name: str, *shape: int) -> str:
        """Random and small, or external data that nobody ever writes."""
        if self.random is not None:
            # Source: GPT-2's and GPT-3's initial weights have a standard deviation of 0.02.
            self.constant(name, self.random.normal(0.0, 0.02, shape).astype(self.numpy))
            return name
        tensor = TensorProto(name=name, data_type=self.dtype, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        n_bytes = math.prod(shape) * self.numpy.itemsize
        for key, value in (("location", "weights.data"), ("offset", self.offset), ("length", n_bytes)):
            tensor.external_data.add(key=key, value=str(value))
        self.offset += n_bytes
        self.initializers.append(tensor)
        return name


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="the ONNX file to write")
    parser.add_argument("--tiny", action="store_true", help="two layers, with random weights")
    asked = parser.parse_args()
    size, seed = (TINY, 0) if asked.tiny else (GPT3, None)
    asked.file.write_bytes(decoder(size, seed=seed).SerializeToString())
    print(f"{asked.file}: {size.parameters:,} parameters, {asked.file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
