"""The small models that ship with hal, so that the first command needs no file: `demo:digits`.

`digits` tells ten handwritten digits apart: three convolutions with batch normalisation, two poolings, two
linear layers and a softmax; 57,706 parameters. Measured on its 600 test images, which took no part in
training: 597 right, an accuracy of 0.9950. scripts/train_digits.py makes both files again and states the
split.

Source of the images: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
Learning Repository, 1998, CC BY 4.0, as scikit-learn ships them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hal.errors import InputError, ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["DEMOS", "Demo", "Evaluation", "find"]

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Demo:
    """A model that ships with hal, with labelled data to judge it by.

    Attributes:
        name: What follows `demo:` on the command line.
        summary: One line for a listing.
        model: The ONNX file, read only.
        input_name: The model's one input.
        shapes: The whole shape of that input, by its name, to bind the free batch dimension with.
        test_set: An .npz file of `images` uint8[n, height, width] and `labels` int64[n].
        pixel_max: The pixel value that becomes 1.0.
    """

    name: str
    summary: str
    model: Path
    input_name: str
    shapes: Mapping[str, tuple[int, ...]]
    test_set: Path
    pixel_max: int

    def inputs(self) -> dict[str, np.ndarray[Any, Any]]:
        """The first test image as a batch of one: {input_name: float32[1, 1, height, width]} in 0..1."""
        images, _ = self._read()
        return {self.input_name: images[:1]}

    def evaluation(self) -> Evaluation:
        """The whole test set in batches of one, and how to score what the model answers."""
        images, labels = self._read()
        return Evaluation(batches=_Batches(self.input_name, images), labels=labels)

    def _read(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Images float32[n, 1, height, width] in 0..1 and labels int64[n]."""
        import numpy as np

        with np.load(self.test_set, allow_pickle=False) as data:
            scaled = data["images"].astype(np.float32) / np.float32(self.pixel_max)
            return scaled[:, np.newaxis], data["labels"]


@dataclass(frozen=True)
class _Batches:
    """Images one at a time, as often as asked: a generator could be read once only."""

    input_name: str
    images: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        return ({self.input_name: self.images[at : at + 1]} for at in range(len(self.images)))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Labelled data for a classifier.

    Attributes:
        batches: Model inputs by name; may be iterated several times.
        labels: int64[n], the classes of the batches' rows in order.
    """

    batches: Iterable[dict[str, np.ndarray[Any, Any]]]
    labels: NDArray[np.int64]

    def accuracy(self, outputs: Sequence[np.ndarray[Any, Any]]) -> float:
        """Share of rows whose highest score stands at the label, in 0..1.

        Args:
            outputs: The model's scores for each batch in order, each float[batch, classes].

        Raises:
            InputError: The rows of all outputs together are not as many as the labels.
        """
        import numpy as np

        n_rows = sum(len(scores) for scores in outputs)
        if n_rows != len(self.labels):
            raise InputError(
                f"cannot score {n_rows} rows of output against {len(self.labels)} labels: "
                "run the model on every batch, in order, and pass one output per batch"
            )
        chosen = np.concatenate([scores.argmax(axis=1) for scores in outputs])
        return float(np.mean(chosen == self.labels))


def find(name: str) -> Demo:
    """The demo called `name` (without `demo:`).

    Raises:
        ModelError: There is none; the text lists those there are.
    """
    try:
        return DEMOS[name]
    except KeyError:
        available = ", ".join(f"demo:{known}" for known in sorted(DEMOS))
        raise ModelError(
            f"no demo model is called {name!r}; hal ships {available}: "
            "use one of these, or give the path of a model"
        ) from None


DEMOS: Mapping[str, Demo] = MappingProxyType(
    {
        "digits": Demo(
            name="digits",
            summary="CNN for handwritten digits, 8x8 pixels, 57,706 parameters, accuracy 0.995",
            model=_HERE / "digits.onnx",
            input_name="image",
            shapes=MappingProxyType({"image": (1, 1, 8, 8)}),
            test_set=_HERE / "digits_test.npz",
            pixel_max=16,
        )
    }
)
