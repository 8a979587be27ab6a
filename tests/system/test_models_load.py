"""Each real model gives the known answer on ONNX Runtime: a later disagreement is then hal's."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from hal import demo
from tests.models import MODELS, cache, contents, exported, rendering, speech

ort = pytest.importorskip("onnxruntime")

SILERO = sorted(name for name in MODELS if name.startswith("silero_vad") and name != "silero_vad_sequence")


def session(path: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3  # one model has initializers it does not use, and ONNX Runtime says so
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", sorted(MODELS))
def test_model_takes_its_example_when_run(name: str) -> None:
    model = MODELS[name].require()
    signature = {
        value.name: value.type.tensor_type
        for value in onnx.load(model.path(), load_external_data=False).graph.input
    }
    inputs, again = model.inputs(), model.inputs()
    assert list(inputs) == [key for key in signature if key in inputs]
    for key, value in inputs.items():
        assert value.dtype == onnx.helper.tensor_dtype_to_np_dtype(signature[key].elem_type)
        assert np.array_equal(value, again[key])
    for output in session(model.path()).run(None, inputs):
        assert np.isfinite(output).all()
        assert output.std() > 0 or output.size == 1


def test_missing_names_the_package_when_it_is_absent() -> None:
    absent = replace(MODELS["magika"], packages=("magika", "no_such_package_here"))
    assert (
        absent.missing()
        == "magika needs no_such_package_here: see requirements-models.txt and requirements-test.txt"
    )


def test_digits_reaches_the_stated_accuracy_when_tested() -> None:
    digits = demo.find("digits")
    evaluation = digits.evaluation()
    runtime = session(digits.model)
    accuracy = evaluation.accuracy([runtime.run(None, batch)[0] for batch in evaluation.batches])
    assert accuracy == pytest.approx(0.995, abs=0.002)  # as hal/demo states, give or take one image


def test_ppocr_rec_reads_the_line_when_it_was_rendered() -> None:
    runtime = session(MODELS["ppocr_rec"].require().path())
    alphabet = runtime.get_modelmeta().custom_metadata_map["character"]
    for text in (rendering.LINE, "Never silent", "plan 17 of 42"):
        scores = runtime.run(None, {"x": rendering.pixels(rendering.line(text, 320))})[0]
        assert rendering.read(scores[0], alphabet) == text


@pytest.mark.parametrize("name", ["ppocr_det", "ppocr_det_320"])
def test_ppocr_det_marks_the_text_and_nothing_else_when_page_was_rendered(name: str) -> None:
    model = MODELS[name].require()
    _, boxes = rendering.page(model.shapes["x"][2])
    found = session(model.path()).run(None, model.inputs())[0][0, 0] > 0.3
    elsewhere = found.copy()
    for left, top, right, bottom in boxes:
        assert found[top:bottom, left:right].mean() > 0.3
        elsewhere[top - 12 : bottom + 12, left - 12 : right + 12] = False
    assert not elsewhere.any()


def test_ppocr_cls_tells_which_way_up_when_line_is_turned() -> None:
    runtime = session(MODELS["ppocr_cls"].require().path())
    upright = rendering.line(rendering.SHORT_LINE, 192)
    for picture, label in ((upright, 0), (upright.rotate(180), 1)):
        assert runtime.run(None, {"x": rendering.pixels(picture)})[0][0, label] > 0.9


def test_magika_names_the_type_when_content_is_known() -> None:
    path = MODELS["magika"].require().path()
    config = json.loads(path.with_name("config.min.json").read_text())
    runtime = session(path)
    for label, content in contents.files().items():
        scores = runtime.run(None, {"bytes": contents.features(content)})[0][0]
        assert config["target_labels_space"][scores.argmax()] == label


@pytest.mark.parametrize("name", SILERO)
def test_silero_hears_speech_and_not_silence_when_frames_are_streamed(name: str) -> None:
    model = MODELS[name].require()
    sound = np.concatenate([speech.silence(1.0), speech.speech(2.0), speech.silence(1.0)])
    heard = stream(session(model.path()), model.inputs(), speech.frames(sound))
    assert (heard[:30] < 0.5).all()  # a second has 31 frames
    assert (heard[-20:] < 0.5).all()
    spoken = (np.arange(len(heard)) >= 31) & (np.arange(len(heard)) < 94)
    assert np.mean((heard > 0.5) == spoken) > 0.92


@pytest.mark.parametrize(
    "name", [name for name in SILERO if name not in ("silero_vad_half", "silero_vad_op16")]
)
def test_silero_variants_agree_when_given_one_recording(name: str) -> None:
    frames = speech.frames(speech.speech(1.0, seed=1))
    reference, variant = MODELS["silero_vad_op16"].require(), MODELS[name].require()
    expected = stream(session(reference.path()), reference.inputs(), frames)
    heard = stream(session(variant.path()), variant.inputs(), frames)
    assert np.allclose(heard, expected, atol=1e-4)


def test_silero_sequence_hears_what_the_stream_hears_when_given_all_frames() -> None:
    streamed, at_once = MODELS["silero_vad_op16"].require(), MODELS["silero_vad_sequence"].require()
    frames = speech.frames(speech.speech(1.0, seed=1))
    expected = stream(session(streamed.path()), streamed.inputs(), frames)
    start = np.zeros((1, 1, 128), np.float32)
    heard = session(at_once.path()).run(None, {"input": frames, "h": start, "c": start})[0]
    assert np.allclose(heard, expected, atol=1e-4)


def stream(runtime: Any, example: dict[str, Any], frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Probability of speech in each frame, the state going round from zeros."""
    fed = {**example, "state": np.zeros((2, 1, 128), np.float32)}
    heard = []
    for frame in frames:
        probability, fed["state"] = runtime.run(["output", "stateN"], {**fed, "input": frame[np.newaxis]})
        heard.append(probability.item())
    return np.array(heard)


def test_minilm_puts_like_sentences_together_when_embedded() -> None:
    runtime = session(MODELS["minilm"].require().path())
    sentences = [
        "A cat sleeps on the sofa.",
        "A kitten is napping on the couch.",
        "The bank raised its interest rates.",
    ]
    embedded = runtime.run(None, exported.encode(sentences))[0]
    assert np.allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-5)
    likeness = embedded @ embedded.T
    assert likeness[0, 1] > 0.5
    assert likeness[0, 1] > likeness[0, 2] + 0.4


def test_minilm_answers_as_its_module_when_both_run() -> None:
    torch = pytest.importorskip("torch")
    model = MODELS["minilm"].require()
    module, args = model.module()
    with torch.no_grad():
        expected = module(*args).numpy()
    inputs = dict(zip(model.shapes, (value.numpy() for value in args), strict=True))
    assert np.allclose(session(model.path()).run(None, inputs)[0], expected, atol=1e-5)


def test_smollm2_continues_and_prefers_english_when_text_is_shuffled() -> None:
    runtime = session(MODELS["smollm2"].require().path())
    scores = runtime.run(None, exported.tokens("The capital of France is"))[0]
    assert exported.smollm2_tokenizer().decode([int(scores[0, -1].argmax())]) == " Paris"
    words = exported.PROSE.split()
    shuffled = [words[at] for at in np.random.default_rng(0).permutation(len(words))]
    straight = perplexity(runtime, exported.PROSE)
    assert straight < 60
    assert perplexity(runtime, " ".join(shuffled)) > 10 * straight


def perplexity(runtime: Any, text: str) -> float:
    """Exponential of the mean negative log likelihood of each token but the first."""
    inputs = exported.tokens(text)
    scores = runtime.run(None, inputs)[0][0, :-1].astype(np.float64)
    scores -= scores.max(axis=-1, keepdims=True)
    log_likelihood = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    following = inputs["input_ids"][0, 1:]
    return float(np.exp(-log_likelihood[np.arange(len(following)), following].mean()))


def test_cache_shows_nothing_when_an_export_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_TEST_CACHE", str(tmp_path))

    def fails(into: Path) -> None:
        (into / "model.onnx").write_text("half")
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        cache.cached("one", fails)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []

    def works(into: Path) -> None:
        (into / "model.onnx").write_text("whole")

    made = cache.cached("one", works)
    assert (made / "model.onnx").read_text() == "whole"


def test_cache_makes_an_entry_once_when_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_TEST_CACHE", str(tmp_path))
    calls: list[Path] = []
    assert cache.cached("one", calls.append) == cache.cached("one", calls.append) == tmp_path / "one"
    assert len(calls) == 1


def test_cache_makes_an_entry_once_when_several_ask_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAL_TEST_CACHE", str(tmp_path))
    calls: list[Path] = []
    together = threading.Barrier(4)

    def ask() -> Path:
        together.wait(timeout=30)
        return cache.cached("one", calls.append)

    with ThreadPoolExecutor(4) as pool:
        found = [asked.result() for asked in [pool.submit(ask) for _ in range(4)]]
    assert found == [tmp_path / "one"] * 4
    assert len(calls) == 1
