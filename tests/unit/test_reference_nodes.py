"""The reference against the expected outputs that onnx ships for its operators."""

import pathlib
import warnings

import numpy as np
import onnx
import pytest

from hal.graph.reference import ReferenceUnavailable, reference_outputs

#: Cases that must not match, and why.
REFUSED = {
    "is a list": ("an output is a sequence, not a tensor", 25),
    "its values are random": ("no two runtimes agree on random values", 3),
    "preview.training::Gradient": ("training", 2),
    "ai.onnx::Scan (op set 8": ("Scan of op set 8 has a batch axis that later op sets dropped", 1),
}
DEVIATES = {
    # onnx's data divides by the fraction scale * n - 1; standard, PyTorch, ONNX Runtime and OpenVINO do not.
    "test_resize_downsample_scales_cubic_align_corners",
    "test_resize_downsample_scales_linear_align_corners",
}
#: Relative and absolute tolerance by type of the expected output: the data were rounded at every step.
TOLERANCE = {"float16": (2e-3, 2e-3), "bfloat16": (2e-2, 1e-2)}


def _array(value):
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _collect():
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.model import collect_testcases as model_cases
        from onnx.backend.test.case.node import collect_testcases as node_cases

        return [case for case in (*node_cases(None), *model_cases()) if case.model and case.data_sets]


def _compare(case):
    names = [value.name for value in case.model.graph.input]
    for inputs, expected in case.data_sets:
        outputs = reference_outputs(case.model, dict(zip(names, map(_array, inputs), strict=False)))
        assert len(outputs) == len(expected)
        for got, want in zip(outputs.values(), map(np.asarray, map(_array, expected)), strict=True):
            if want.dtype.kind in "OUS":
                assert got.astype(str).tolist() == want.astype(str).tolist()
                continue
            assert (got.shape, got.dtype) == (want.shape, want.dtype)
            rtol, atol = TOLERANCE.get(want.dtype.name, (case.rtol, max(case.atol, 1e-6)))
            wide = np.complex128 if want.dtype.kind == "c" else np.float64
            np.testing.assert_allclose(got.astype(wide), want.astype(wide), rtol=rtol, atol=atol)


def test_reference_matches_expected_outputs_when_onnx_ships_them():
    refused = dict.fromkeys(REFUSED, 0)
    deviating, failures, n_matched = set(), {}, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # casts of NaN in onnx's own operators
        for case in _collect():
            try:
                _compare(case)
                n_matched += 1
            except ReferenceUnavailable as refusal:
                reason = next((text for text in REFUSED if text in str(refusal)), None)
                if reason is None:
                    failures[case.name] = str(refusal)
                else:
                    refused[reason] += 1
            except AssertionError as difference:
                if case.name in DEVIATES:
                    deviating.add(case.name)
                else:
                    failures[case.name] = str(difference)[:300]
    assert failures == {}
    assert deviating == DEVIATES
    assert all(refused[text] >= least for text, (_, least) in REFUSED.items()), refused
    assert n_matched >= 1850


@pytest.mark.parametrize("folder", ["simple", "pytorch-converted", "pytorch-operator"])
def test_reference_matches_expected_outputs_when_a_model_folder_of_onnx_has_them(folder):
    root = pathlib.Path(onnx.__file__).parent / "backend" / "test" / "data" / folder
    failures, n_compared = {}, 0
    for path in sorted(root.glob("*/model.onnx")):
        model = onnx.load(path)
        if any(value.type.HasField("sequence_type") for value in model.graph.input):
            continue  # sequences are no arrays
        weights = {tensor.name for tensor in model.graph.initializer}
        names = [value.name for value in model.graph.input if value.name not in weights]
        for number in sorted(path.parent.glob("test_data_set_*")):
            inputs, expected = _stored(number, "input"), _stored(number, "output")
            try:
                outputs = reference_outputs(model, dict(zip(names, inputs, strict=False)))
                for got, want in zip(outputs.values(), expected, strict=True):
                    if want.dtype.kind in "OUS":
                        assert got.astype(str).tolist() == want.astype(str).tolist()
                    else:
                        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)
                n_compared += 1
            except (AssertionError, ReferenceUnavailable) as problem:
                if not any(reason in str(problem) for reason in REFUSED):
                    failures[path.parent.name] = str(problem)[:300]
    assert failures == {}
    assert n_compared >= 10


def _stored(folder, kind):
    files = sorted(folder.glob(f"{kind}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))
    return [onnx.numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes())) for file in files]
