"""Exported files: written, checked against PyTorch, loaded, evaluated, refused."""

import json
import math
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import rfdetr
from rfdetr import InputError, LabelMap, NestedTensor, Prediction
from rfdetr.data import IMAGENET_MEAN, IMAGENET_STD, preprocess
from rfdetr.export import check
from rfdetr.export.check import Parity, Tolerance, compare
from rfdetr.models.position_encoding import sine_box_embedding
from rfdetr.training import evaluate, export

newer = pytest.mark.skipif(torch.__version__ < (2, 14), reason="PyTorch 2.6 writes no dynamic batch, and no half that opens; "
                                                              "test_a_pytorch_that_cannot_write_is_named")
CLASSES = LabelMap((3, 7), ("cat", "dog"))
LETTERBOX = {"data": {"resize": "letterbox", "dataset_dir": "/home/somebody/pictures"}}


def parity_of(one: rfdetr.Detector, other: rfdetr.Detector, pictures) -> Parity:
    found = [one.predict(pictures, 0.0), other.predict(pictures, 0.0, batch_size=3)]
    assert [len(each) for each in found[0]] == [len(each) for each in found[1]]
    return compare(one, other, [each.pixels() for each in found[0]], Tolerance())


@pytest.mark.parametrize(("variant", "args", "options"), [
    ("pico", None, {"batch_size": 2}),
    pytest.param("pico_seg", LETTERBOX, {"batch_size": None, "postprocess": "pixels"}, marks=newer),
    pytest.param("pico_seg", None, {"batch_size": None, "postprocess": "normalised", "opset": 20}, marks=newer),
], ids=["fixed batch", "letterbox, dynamic batch, pixels", "newer opset, normalised"])  # fmt: skip
def test_an_onnx_file_finds_what_the_checkpoint_finds(checkpoint, pictures, tmp_path, variant, args, options):
    done = export(checkpoint(variant, args), tmp_path / "model.onnx", images=pictures, **options)
    assert done.parity.is_equal and len(done.parity.box) > 9
    reference, exported = (rfdetr.load(path, "cpu") for path in (checkpoint(variant, args), done.path))
    assert parity_of(reference, exported, pictures).is_equal
    assert exported.class_names == ["cat", "dog"] and exported.input_size == (64, 96)
    assert exported.predict(np.zeros((9, 9, 3), np.uint8), 0.0, classes="dog")[0].names.tolist().count("cat") == 0
    assert parity_of(reference, exported, [np.asarray(Image.open(pictures / "2.png"))] * 5).is_equal
    assert exported.predict([], 0.0) == []


@pytest.fixture(scope="module")
def two_at_a_time(checkpoint, pictures, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    args = {"data": {"dataset_dir": "/home/somebody/pictures", "white_level": 4095}, "eval": {"max_dets": 7}}
    assert export(checkpoint("pico_seg", args), path, batch_size=2, images=pictures).parity.is_equal
    return path


def test_deployments_find_names_and_preprocessing_in_the_file(two_at_a_time, checkpoint, pictures):
    """The names of inputs and outputs are those of the published package's files."""
    model = onnx.load(two_at_a_time)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    ends = (*model.graph.input, *model.graph.output)
    shapes = {value.name: [side.dim_value for side in value.type.tensor_type.shape.dim] for value in ends}
    assert shapes == {"input": [2, 3, 64, 96], "dets": [2, 7, 4], "labels": [2, 7, 3], "masks": [2, 7, 16, 24]}
    facts = {prop.key: prop.value for prop in model.metadata_props}
    assert facts["model_name"] == "RFDETRPicoSeg" and facts["variant"] == "pico_seg" and "0.1" in facts["producer"]
    assert json.loads(facts["class_names"]) == {"0": "cat", "1": "dog"}
    assert "somebody" not in str(facts)

    told = json.loads(facts["preprocessing"])
    assert told["size"] == [64, 96] and told["resize"] == "stretch" and math.isclose(told["scale"], 1 / 255)
    assert (told["mean"], told["std"]) == (list(IMAGENET_MEAN), list(IMAGENET_STD))
    pixels = np.array(Image.open(pictures / "1.png"))  # as large as the input
    by_hand = ((pixels * told["scale"] - told["mean"]) / told["std"]).transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_allclose(by_hand, preprocess(pixels, (64, 96)), atol=1e-5)
    session = onnxruntime.InferenceSession(two_at_a_time, providers=["CPUExecutionProvider"])
    dets, logits, _ = session.run(None, {"input": np.stack([by_hand] * 2)})
    best = rfdetr.load(checkpoint("pico_seg"), "cpu").predict(pixels, 0.0)[0]
    query, label = np.unravel_index(logits[0, :, :2].argmax(), (7, 2))
    assert label == best.labels[0] and 1 / (1 + np.exp(-logits[0, query, label])) == pytest.approx(best.scores[0], abs=1e-4)
    x, y, w, h = dets[0, query] * [96, 64, 96, 64]
    corners = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, [96, 64, 96, 64])
    np.testing.assert_allclose(corners, best.boxes[0], atol=1e-3)


def test_post_processing_inside_gives_pixels_of_the_asked_size(checkpoint, pictures, tmp_path):
    done = export(checkpoint("pico"), tmp_path / "model.onnx", postprocess="pixels", images=pictures)
    pixels = np.array(Image.open(pictures / "0.png"))
    session = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    boxes, scores, labels = session.run(["boxes", "scores", "labels"], {
        "input": preprocess(pixels, (64, 96))[None].numpy(), "target_sizes": np.array([pixels.shape[:2]])})
    expected = rfdetr.load(checkpoint("pico"), "cpu").predict(pixels, 0.0)[0]
    known = labels[0] < 2
    np.testing.assert_allclose(boxes[0][known], expected.boxes, atol=1e-3)
    np.testing.assert_allclose(scores[0][known], expected.scores, atol=1e-5)
    assert labels[0][known].tolist() == expected.labels.tolist()


@pytest.mark.parametrize("batch_size", [1, None], ids=["fixed batch", "dynamic batch"])
def test_a_program_runs_with_pytorch_alone(checkpoint, pictures, tmp_path, batch_size):
    done = export(checkpoint("pico"), tmp_path / "model.pt2", format="program", batch_size=batch_size, images=pictures)
    assert done.parity.is_equal
    extra = {"metadata.json": ""}
    program = torch.export.load(done.path, extra_files=extra)
    assert json.loads(json.loads(extra["metadata.json"])["class_names"]) == {"0": "cat", "1": "dog"}
    for number in (1,) if batch_size else (1, 3):
        boxes, logits = program.module()(torch.zeros(number, 3, 64, 96))
        assert boxes.shape == (number, 7, 4) and logits.shape == (number, 7, 3)
    assert type(sine_box_embedding(torch.rand(2, 5, 4), 64)) is torch.Tensor, "nothing of the trace is remembered"
    with pytest.raises(InputError, match=r"opened with torch\.export\.load; it may hold code"):
        rfdetr.load(done.path)


def test_a_pytorch_that_cannot_write_is_named(checkpoint, pictures, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise torch.onnx.OnnxExporterError("step 2 of 3\nlong") from RuntimeError("expected concrete integers\nlong")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(InputError, match=r"^PyTorch \d.* \(expected concrete integers\); update torch and torchvision, or .*$"):
        export(checkpoint("pico"), tmp_path / "model.onnx", batch_size=None, images=pictures)
    assert not list(tmp_path.iterdir())


@newer
def test_half_precision_is_half_the_size_and_near(two_at_a_time, checkpoint, pictures, tmp_path):
    done = export(checkpoint("pico_seg"), tmp_path / "half.onnx", precision="fp16", images=pictures)
    assert done.parity.is_equal, str(done.parity)
    assert done.path.stat().st_size < 0.6 * two_at_a_time.stat().st_size
    assert np.median(done.parity.score) > 1e-6, "that would be single precision"
    assert done.tensorrt == f"trtexec --onnx={done.path} --saveEngine={tmp_path}/half.engine --stronglyTyped"


def test_a_file_that_differs_is_refused_and_the_old_one_stays(checkpoint, pictures, tmp_path, monkeypatch):
    (tmp_path / "model.pt2").write_text("the file before")
    monkeypatch.setitem(check.TOLERANCES, "fp32", Tolerance(score=1e-12))
    done = export(checkpoint("pico"), tmp_path / "model.pt2", format="program", images=pictures)
    assert not done.parity.is_equal and done.parity.differing > 0
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_text() == "the file before"


def test_detections_that_are_missing_count(checkpoint):
    detector = rfdetr.load(checkpoint("pico"), "cpu")
    blind = rfdetr.load(checkpoint("pico"), "cpu")
    torch.nn.init.constant_(blind.model.bbox_embed.layers[-1].bias, 0.3)
    picture = torch.zeros(3, 64, 96, dtype=torch.uint8)
    assert compare(detector, detector, [picture], Tolerance()).differing == 0
    assert compare(detector, blind, [picture], Tolerance()).differing > 0


def test_evaluation_of_the_file_gives_the_numbers_of_the_checkpoint(checkpoint, two_at_a_time, data):
    settings = {"data": {"dataset_dir": data, "num_workers": 0, "batch_size": 3}, "train": {"device": "cpu"}}
    expected, found = (evaluate(path, **settings, eval={"max_dets": 7}) for path in (checkpoint("pico_seg"), two_at_a_time))
    assert any(name.startswith("val/segm") for name in found["metrics"])
    assert found["coco"] == pytest.approx(expected["coco"], abs=1e-6)
    with pytest.raises(InputError, match=r"model\.resolution: an exported file takes \(64, 96\) and nothing else"):
        evaluate(two_at_a_time, **settings, model={"resolution": 128})
    with pytest.raises(InputError, match=r"data\.dataset_dir: is not set"):
        evaluate(two_at_a_time)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"precision": "bf16"}, "precision: 'bf16' cannot be asked of an exported file"),
    ({"use_ema": True}, "use_ema: an exported file holds one set of weights"),
])
def test_what_an_exported_file_cannot_do_is_refused(two_at_a_time, arguments, message):
    with pytest.raises(InputError, match=message):
        rfdetr.load(two_at_a_time, "cpu", **arguments)


def test_files_that_are_not_ours_are_refused(two_at_a_time, tmp_path):
    path = tmp_path / "other.onnx"
    for change, message in [
        (lambda model, ours: model.ClearField("metadata_props"), "rfdetr export has not written it"),
        (lambda model, ours: setattr(ours, "value", '{"model_config": {"encoder": 3}}'), "metadata are damaged"),
        (lambda model, ours: setattr(model.graph.input[0], "name", "x"), "cannot open it|no detector"),
    ]:
        model = onnx.load(two_at_a_time)
        change(model, next(prop for prop in model.metadata_props if prop.key == "rfdetr"))
        path.write_bytes(model.SerializeToString())
        with pytest.raises(InputError, match=message):
            rfdetr.load(path)
    path.write_bytes(two_at_a_time.read_bytes()[:1000])
    with pytest.raises(InputError, match="ONNX Runtime cannot open it"):
        rfdetr.load(path)
    with pytest.raises(InputError, match="there is no such file"):
        rfdetr.load(tmp_path / "nowhere.onnx")
    with pytest.raises(InputError, match="is an exported file already"):
        export(two_at_a_time, path)


def test_without_onnx_runtime_one_message_says_what_to_install(two_at_a_time, checkpoint, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for use in (lambda: rfdetr.load(two_at_a_time), lambda: evaluate(two_at_a_time),
                lambda: export(checkpoint("pico"), tmp_path / "model.onnx")):
        with pytest.raises(InputError, match=r'onnxruntime, .* not installed; .*pip install -e "\.\[onnx\]"'):
            use()


class Undecided:
    """A detector whose box depends on the last bits of its input."""

    def __init__(self, usual: float, disturbed: float) -> None:
        self.boxes, self.model = (usual, disturbed), torch.nn.Identity()

    def predict(self, picture, threshold):
        pixels = self.model(NestedTensor(picture[None].float())).tensors
        box = np.full((1, 4), self.boxes[int((pixels != picture).any())], np.float32)
        return [Prediction(box, np.ones(1, np.float32), np.zeros(1, np.int64), None, CLASSES)]


def test_what_rounding_decides_is_equal_if_pytorch_finds_it_after_a_change_of_rounding():
    pictures = [torch.zeros(3, 8, 8, dtype=torch.uint8)]
    parity = compare(Undecided(5, 7), Undecided(7, 7), pictures, Tolerance())
    assert parity.is_equal and parity.ties == 1 and "1 of the pictures: as PyTorch has it" in str(parity)
    assert not compare(Undecided(5, 7), Undecided(6, 6), pictures, Tolerance()).is_equal


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["nano", "medium", "seg_nano", "base"])
def test_published_variants_are_equal_in_onnx_runtime(variant, tmp_path, golden_checkpoint, real_images):
    done = export(golden_checkpoint(variant), tmp_path / "model.onnx", batch_size=None, images=real_images)
    assert done.parity.is_equal, str(done.parity)
