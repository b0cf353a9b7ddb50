"""Conversion of a sample to a record: bytes kept or pixels placed, boxes mapped, problems reported."""

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tlt_api.dataset import ImageSize
from tlt_runner.data import tfrecords
from tlt_runner.data.class_mapping import ClassMapping
from tlt_runner.data.images import geometry
from tlt_runner.data.preparation.convert import convert
from tlt_runner.data.sample import (
    Finding,
    LabelledBox,
    Labels,
    Listing,
    Oddity,
    Problem,
    Sample,
    SampleOutcome,
)
from tlt_runner.evaluation.evaluate import evaluate
from tlt_runner.evaluation.protocols import Protocol

HEIGHT, WIDTH = 96, 128
SAME = ImageSize(height=HEIGHT, width=WIDTH)
MAPPING = ClassMapping({"car": "vehicle", "van": "vehicle", "person": "person"})
PIXELS = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8), (WIDTH, HEIGHT))
SAMPLE = Sample("images/a", "a", Path("images/a.jpg"), "images/a.jpg", "labels.json", "a")


class OneLabel:
    """Reader that returns the given labels."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels

    def listing(self) -> Listing:
        return Listing([SAMPLE], 1, [], [], [], 0, [])

    def classes(self, sample: Sample) -> Counter[str]:
        return Counter(box.class_name for box in self._labels.boxes)

    def read(self, sample: Sample, image_size: tuple[int, int]) -> Labels:
        return self._labels


def _jpeg(pixels: np.ndarray = PIXELS, *flags: int) -> bytes:
    return bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95, *flags])[1])


def _saved(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, quality=95)
    return file.getvalue()


JPEG = _jpeg()
BOX = LabelledBox("car", (16.0, 32.0, 48.0, 96.0), truncation=0.5, occlusion=1, difficult=True, line=3)
# Of a class that is learnt, of one that is not, of every class, and outside of the image.
CROWD = LabelledBox("person", (0.0, 0.0, 24.0, 12.0))
BOATS = LabelledBox("boat", (0.0, 0.0, 50.0, 50.0))
ANYTHING = LabelledBox("", (90.0, -10.0, 120.0, 64.0), line=4)
OUTSIDE = LabelledBox("", (96.0, 0.0, 120.0, 64.0), line=5)


def _convert(data: bytes, size: ImageSize = SAME, **labels: object) -> SampleOutcome:
    return convert(SAMPLE, data, OneLabel(Labels(**labels)), MAPPING, size)  # type: ignore[arg-type]


def _record(converted: SampleOutcome) -> tf.train.Example:
    assert converted.skipped is None
    return tf.train.Example.FromString(converted.example)


@pytest.mark.parametrize(
    ("data", "oddities"),
    [
        (JPEG, ()),
        (_jpeg(PIXELS, cv2.IMWRITE_JPEG_PROGRESSIVE, 1), ()),
        (_jpeg(PIXELS, cv2.IMWRITE_JPEG_RST_INTERVAL, 1), ()),
        (_jpeg(PIXELS, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411), ()),
        (_jpeg(PIXELS[..., 0]), (Oddity.GRAYSCALE,)),
        (_jpeg(PIXELS[..., 0], cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (Oddity.GRAYSCALE,)),
        (JPEG + b"camera trailer", ()),
        (JPEG.replace(b"JFIF\0\x01", b"JFIF\0\x07"), ()),
    ],
    ids=[
        "baseline",
        "progressive",
        "restarts",
        "4:1:1",
        "grey",
        "grey progressive",
        "trailer",
        "odd version",
    ],
)
def test_a_jpeg_of_the_right_size_keeps_its_bytes_and_tensorflow_reads_them(
    data: bytes, oddities: tuple[Oddity, ...]
) -> None:
    converted = _convert(data, boxes=(BOX,))
    assert _record(converted).features.feature["frame/encoded"].bytes_list.value[0] == data
    assert converted.oddities == oddities
    image = tfrecords.parse(converted.example, HEIGHT, WIDTH)["image"].numpy()
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(image.astype(int) - expected).mean() < 1


@pytest.mark.parametrize(
    ("data", "oddities"),
    [
        (bytes(cv2.imencode(".png", PIXELS)[1]), (Oddity.WRONG_EXTENSION,)),
        (_saved(Image.fromarray(PIXELS[..., ::-1]).convert("CMYK"), "JPEG"), (Oddity.CMYK,)),
    ],
    ids=["png", "cmyk"],
)
def test_a_jpeg_that_tensorflow_would_decode_to_other_colours_is_encoded_anew(
    data: bytes, oddities: tuple[Oddity, ...]
) -> None:
    converted = _convert(data)
    assert converted.oddities == oddities
    image = tfrecords.parse(converted.example, HEIGHT, WIDTH)["image"].numpy()
    assert np.abs(image.astype(int) - PIXELS[..., ::-1]).mean() < 3


def test_a_record_has_the_attributes_of_the_label() -> None:
    converted = _convert(JPEG, boxes=(BOX,), ignored=(CROWD, BOATS, ANYTHING, OUTSIDE))
    record = _record(converted).features.feature
    assert record["frame/id"].bytes_list.value == [b"images/a"]
    assert record["target/object_class"].bytes_list.value == [b"vehicle", b"person", b"DontCare"]
    # Classes are person (0) and vehicle (1): -3 is a crowd of persons, -2 a region of every class.
    assert record["target/object_class_id"].int64_list.value == [1, -3, -2]
    assert record["target/truncation"].float_list.value == [0.5, 0, 0]
    assert record["target/occlusion"].int64_list.value == [1, 0, 0]
    assert record["target/is_difficult"].int64_list.value == [1, 0, 0]
    assert record["target/coordinates_y2"].float_list.value == [48, 24, HEIGHT]  # cut at the image's edge
    assert record["target/coordinates_y1"].float_list.value == [16, 0, 90]
    assert record["target/coordinates_x1"].float_list.value == [32, 0, 0]
    assert (converted.objects, converted.sizes) == ([1], [(32.0, 64.0)])
    assert (converted.source_classes, converted.ignored, converted.clipped) == (["car"], 4, 0)
    assert converted.regions == 2


def test_boxes_of_a_stretched_image_map_there_and_back() -> None:
    converted = _convert(JPEG, ImageSize(height=192, width=64), boxes=(BOX,))
    parsed = tfrecords.parse(converted.example, 192, 64)
    assert parsed["boxes"].numpy().tolist() == [[32.0, 16.0, 96.0, 48.0]]
    assert parsed["placement"].numpy().tolist() == [2.0, 0.5, 0.0, 0.0, HEIGHT, WIDTH]


def test_boxes_of_a_letterboxed_image_map_there_and_back() -> None:
    converted = _convert(JPEG, ImageSize(height=128, width=64, mode="letterbox"), boxes=(BOX,))
    parsed = tfrecords.parse(converted.example, 128, 64)
    # Half the size: 48 rows of content, with 40 of padding above and below.
    assert parsed["boxes"].numpy().tolist() == [[48.0, 16.0, 64.0, 48.0]]
    assert parsed["placement"].numpy().tolist() == [0.5, 0.5, 40.0, 0.0, HEIGHT, WIDTH]
    image = parsed["image"].numpy()
    assert max(image[:38].max(), image[-38:].max()) < 10 < image[44:84].mean()


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_detections_in_network_pixels_are_evaluated_in_original_pixels(mode: str) -> None:
    size = ImageSize.model_validate({"height": 160, "width": 96, "mode": mode})
    boxes = (
        BOX,
        LabelledBox("person", (0.0, 0.0, 96.0, 15.5)),
        LabelledBox("car", (80.0, 100.0, 96.0, 128.0)),
    )
    parsed = tfrecords.parse(_convert(JPEG, size, boxes=boxes).example, 160, 96)
    batch = {key: value[None] for key, value in parsed.items()} | {"valid": np.array([True])}
    where = geometry.placement(HEIGHT, WIDTH, 160, 96, mode)  # type: ignore[arg-type]
    detections = {
        "boxes": where.to_network(np.array([box.yxyx for box in boxes]))[None],
        "scores": np.array([[0.9, 0.8, 0.7]]),
        "classes": np.array([[1, 0, 1]]),
    }
    metrics = evaluate(lambda _: detections, [batch], MAPPING.class_names, Protocol("area", (0.999,))).metrics
    assert metrics.m_ap == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", Problem.EMPTY_FILE),
        (b"GIF89a" + bytes(50), Problem.UNREADABLE_IMAGE),
        (JPEG[:-300], Problem.TRUNCATED_IMAGE),
        (JPEG[:-300] + JPEG[-2:], Problem.CORRUPT_IMAGE),
    ],
)
@pytest.mark.parametrize("size", [SAME, ImageSize(height=64, width=64)], ids=["kept", "resized"])
def test_a_bad_image_is_left_out_with_a_finding_and_none_of_its_classes(
    data: bytes, problem: Problem, size: ImageSize
) -> None:
    converted = _convert(data, size, boxes=(BOX,))
    assert converted.skipped is not None
    assert (converted.skipped.file, converted.skipped.problem) == ("images/a.jpg", problem)
    assert converted == SampleOutcome(skipped=converted.skipped)


def test_a_label_of_another_size_leaves_the_image_out_with_both_sizes() -> None:
    skipped = _convert(JPEG, boxes=(BOX,), image_size=(480, 640)).skipped
    assert skipped is not None
    assert skipped.problem == Problem.SIZE_MISMATCH
    assert skipped.message == "expected 640 x 480 pixels as its label says, the image has 128 x 96"


def _turned(orientation: int) -> bytes:
    entry = b"\x12\x01\x03\x00\x01\x00\x00\x00" + bytes([orientation, 0, 0, 0])
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4)
    return JPEG[:2] + b"\xff\xe1" + (2 + len(exif)).to_bytes(2, "big") + exif + JPEG[2:]


def test_a_label_of_the_turned_image_is_reported_with_a_remedy() -> None:
    skipped = _convert(_turned(6), boxes=(BOX,), image_size=(WIDTH, HEIGHT)).skipped
    assert skipped is not None
    assert "EXIF" in skipped.message
    assert "spec.dataset.orientation" in skipped.message
    upright = _convert(JPEG, boxes=(BOX,), image_size=(WIDTH, HEIGHT)).skipped
    assert upright is not None
    assert "EXIF" not in upright.message


def test_a_label_of_the_image_as_stored_is_used_turned_or_not() -> None:
    converted = _convert(_turned(6), boxes=(BOX,), image_size=(HEIGHT, WIDTH))
    assert (converted.skipped, converted.oddities) == (None, (Oddity.TURNED,))


@pytest.mark.parametrize(
    ("yxyx", "problem"),
    [
        ((8.0, 8.0, 8.0, 20.0), Problem.INVERTED_BOX),
        ((20.0, 8.0, 8.0, 20.0), Problem.INVERTED_BOX),
        ((-20.0, 8.0, 0.0, 20.0), Problem.OUTSIDE_IMAGE),
        ((8.0, 128.0, 20.0, 190.0), Problem.OUTSIDE_IMAGE),
        ((8.0, 8.0, 8.9, 20.0), Problem.TOO_SMALL),
        ((8.0, 127.5, 20.0, 190.0), Problem.TOO_SMALL),
    ],
    ids=["no height", "inverted", "above", "right", "thin", "thin when cut"],
)
@pytest.mark.parametrize("line", [7, None])
def test_a_box_that_cannot_be_used_is_a_finding_and_the_image_stays(
    yxyx: tuple[float, float, float, float], problem: Problem, line: int | None
) -> None:
    converted = _convert(JPEG, boxes=(LabelledBox("car", yxyx, line=line), BOX))
    (finding,) = converted.dropped
    assert (finding.file, finding.problem, finding.line, finding.box) == ("labels.json", problem, line, yxyx)
    assert converted.objects == [1]


def test_a_box_across_the_edge_is_cut_and_counted() -> None:
    converted = _convert(JPEG, boxes=(LabelledBox("car", (-4.0, 8.0, 12.0, 140.0)), BOX))
    boxes = tfrecords.parse(converted.example, HEIGHT, WIDTH)["boxes"].numpy().tolist()
    assert boxes[0] == [0.0, 8.0, 12.0, 128.0]
    assert (converted.clipped, converted.dropped) == (1, [])


def test_unmapped_classes_are_neither_objects_nor_findings() -> None:
    converted = _convert(JPEG, boxes=(LabelledBox("tree", (1e9, 5, 0, 0)), BOX))
    assert (converted.objects, converted.dropped, converted.source_classes) == ([1], [], ["tree", "car"])


def test_findings_of_the_label_are_passed_on() -> None:
    finding = Finding("labels.json", Problem.NOT_A_NUMBER, "x")
    assert _convert(JPEG, findings=(finding,)).dropped == [finding]


def _cut(data: bytes, part: float) -> bytes:
    return data[: int(part * len(data))]


def _flip(data: bytes, part: float) -> bytes:
    position = int(part * len(data))
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


@settings(max_examples=60, deadline=None)
@given(
    data=st.sampled_from([JPEG, bytes(cv2.imencode(".png", PIXELS)[1])]),
    harm=st.sampled_from([_cut, _flip]),
    part=st.floats(0, 0.999),
    size=st.sampled_from([SAME, ImageSize(height=64, width=64, mode="letterbox")]),
)
def test_damaged_images_never_raise(
    data: bytes, harm: Callable[[bytes, float], bytes], part: float, size: ImageSize
) -> None:
    converted = _convert(harm(data, part), size, boxes=(BOX,))
    assert (converted.example is None) == (converted.skipped is not None)
