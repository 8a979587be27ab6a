"""Train `demo:digits` and write hal/demo/digits.onnx and hal/demo/digits_test.npz.

Run it from anywhere: `python scripts/train_digits.py`; `--out DIR` writes elsewhere. It needs scikit-learn,
torch and onnxscript, uses one CPU thread, takes about half a minute, and gives the same two files each time
on one version of torch.

Data: scikit-learn's digits, 1,797 images of 8x8 pixels with values 0..16, ten classes. Source: E. Alpaydin
and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998, CC BY 4.0.

Split: `numpy.random.RandomState(0).permutation(1797)`; the first 1,197 positions are the training set, the
last 600 the test set. RandomState's stream is frozen, so the split is the same under every NumPy. The test
set takes no part in training: number of epochs, rate and width are fixed below, and the weights after the
last epoch are kept.

Training images are moved by at most one pixel each way, at random.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass
from onnxscript import optimizer
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules.common import materialize_reshape_shape_rule
from sklearn.datasets import load_digits
from torch import nn

SEED = 0
N_TRAIN = 1_197
N_EPOCHS = 60
N_BATCH = 64
PEAK_RATE = 4e-3
OPSET = 20
PIXEL_MAX = 16  # the largest value in the data set; inputs are divided by it
# What the exporter records per node and hal may show; all else it records (stack traces) names paths.
KEPT_METADATA = ("pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy")


class DigitsNet(nn.Module):
    """A small CNN whose profile has convolutions, normalisation, pooling, matrix products and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = self._block(1, 16)
        self.body = self._block(16, 32)
        self.pool = nn.MaxPool2d(2)
        self.head = self._block(32, 64)
        self.shrink = nn.AvgPool2d(2)
        self.hidden = nn.Linear(64 * 2 * 2, 128)
        self.classify = nn.Linear(128, 10)

    @staticmethod
    def _block(n_in: int, n_out: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU())

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """Scores before the softmax: float32[batch, 1, 8, 8] -> float32[batch, 10]."""
        features = self.shrink(self.head(self.pool(self.body(self.stem(image)))))
        return self.classify(torch.relu(self.hidden(features.flatten(1))))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Class probabilities: float32[batch, 1, 8, 8], pixels in 0..1 -> float32[batch, 10]."""
        return torch.softmax(self.logits(image), dim=1)


def split() -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Training images and labels, then test images and labels: uint8[n, 8, 8] and int64[n]."""
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.int64)
    order = np.random.RandomState(SEED).permutation(len(images))
    train, test = order[:N_TRAIN], order[N_TRAIN:]
    return images[train], labels[train], images[test], labels[test]


def to_input(images: NDArray[np.uint8]) -> torch.Tensor:
    """uint8[n, 8, 8] in 0..16 -> float32[n, 1, 8, 8] in 0..1."""
    return torch.from_numpy(images.astype(np.float32) / PIXEL_MAX).unsqueeze(1)


def moved(batch: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Each image of float32[n, 1, 8, 8] moved by -1, 0 or 1 pixels in both directions, zeros coming in."""
    padded = nn.functional.pad(batch, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (len(batch), 2), generator=rng).tolist()
    return torch.stack(
        [image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, offsets, strict=True)]
    )


def train(images: torch.Tensor, labels: torch.Tensor) -> DigitsNet:
    """A network trained on float32[n, 1, 8, 8] and int64[n], in evaluation mode."""
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(SEED)
    net = DigitsNet().train()
    n_steps = N_EPOCHS * -(-len(images) // N_BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=PEAK_RATE, total_steps=n_steps)
    for _ in range(N_EPOCHS):
        order = torch.randperm(len(images), generator=rng)
        for start in range(0, len(images), N_BATCH):
            chosen = order[start : start + N_BATCH]
            loss = nn.functional.cross_entropy(
                net.logits(moved(images[chosen], rng)), labels[chosen], label_smoothing=0.05
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()


def export(net: DigitsNet) -> onnx.ModelProto:
    """The network as ONNX with a free `batch` dimension and nothing in it that names this machine."""
    program = torch.onnx.export(
        net,
        (torch.zeros(2, 1, 8, 8),),
        input_names=["image"],
        output_names=["probabilities"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        opset_version=OPSET,
        dynamo=True,
        # The exporter's optimiser folds the normalisation into the convolutions; kept apart, the graph shows
        # a fusion that each backend must find.
        optimize=False,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    optimizer.fold_constants(program.model)
    rewrite(program.model, pattern_rewrite_rules=[materialize_reshape_shape_rule])
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(program.model)
    RemoveUnusedNodesPass()(program.model)
    model = program.model_proto
    clean(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def clean(model: onnx.ModelProto) -> None:
    """Remove, in place, doc strings and every property but the module names."""
    model.doc_string = model.graph.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        kept = [prop for prop in node.metadata_props if prop.key in KEPT_METADATA]
        pairs = [(prop.key, prop.value) for prop in kept]
        del node.metadata_props[:]
        for key, value in pairs:
            node.metadata_props.add(key=key, value=value)
    for value_info in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        value_info.doc_string = ""
        del value_info.metadata_props[:]
    for tensor in model.graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]


def main() -> None:
    """Train, measure on the test set, write both files, print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "hal" / "demo")
    out: Path = parser.parse_args().out
    train_images, train_labels, test_images, test_labels = split()
    net = train(to_input(train_images), torch.from_numpy(train_labels))
    with torch.no_grad():
        right = net(to_input(test_images)).argmax(1).numpy() == test_labels
    model = export(net)
    out.mkdir(parents=True, exist_ok=True)
    (out / "digits.onnx").write_bytes(model.SerializeToString(deterministic=True))
    np.savez_compressed(out / "digits_test.npz", images=test_images, labels=test_labels)
    n_parameters = sum(parameter.numel() for parameter in net.parameters())
    print(f"parameters {n_parameters}  test accuracy {right.mean():.4f} ({right.sum()} of {right.size})")
    print("operators", sorted({node.op_type for node in model.graph.node}))


if __name__ == "__main__":
    main()
