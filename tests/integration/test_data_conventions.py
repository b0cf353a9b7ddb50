"""Conventions and layout in a real preparation: the records, the manifest and the status."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from fakes import RecordingReporter
from tlt_api.dataset import Dataset
from tlt_api.status import DatasetStatus
from tlt_runner.data.images import geometry
from tlt_runner.data.preparation.prepare import prepare
from tlt_runner.data.records import Records
from tlt_runner.storage import Storage


def _photo(path: Path, orientation: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tiles = np.random.default_rng(orientation).integers(0, 256, (3, 4, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(tiles.repeat(20, 0).repeat(20, 1)).save(path, exif=exif, quality=95)


def _xml(path: Path, width: int, height: int, x1: int, y1: int, x2: int, y2: int) -> None:
    box = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
    path.write_text(
        f"<annotation><size><width>{width}</width><height>{height}</height></size>"
        f"<object><name>car</name><bndbox>{box}</bndbox></object></annotation>"
    )


def _dataset(root: Path, **fields: Any) -> Dataset:
    return Dataset.model_validate(
        {
            "uri": f"file://{root}",
            "targetClassMapping": {"car": "car"},
            "imageSize": {"width": 64, "height": 64, "mode": "letterbox"},
            **fields,
        }
    )


def _examples(records: Records) -> dict[str, Any]:
    examples = {}
    for file in records.folder.glob("*.tfrecord"):
        for item in tf.data.TFRecordDataset(str(file)):
            feature = tf.train.Example.FromString(item.numpy()).features.feature
            examples[feature["frame/id"].bytes_list.value[0].decode()] = feature
    return examples


def test_records_manifest_and_status_follow_what_the_data_set_shows(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for split, orientation in (("train", 6), ("valid", 1)):
        for number in range(2):
            _photo(root / split / f"{number}.jpg", orientation)
            # The turned view of 80 x 60 pixels is 60 x 80; edges count from 0.
            width, height = (60, 80) if orientation == 6 else (80, 60)
            _xml(root / split / f"{number}.xml", width, height, 0, 10 + number, 30, 50)
    reporter = RecordingReporter()
    storage = Storage(scratch=tmp_path / "scratch")
    records = prepare(_dataset(root, layout="auto"), storage, f"file://{tmp_path}/out", reporter)

    status = reporter.last(DatasetStatus)
    assert (status.training_images, status.validation_images, status.skipped) == (2, 2, 0)
    assert status.layout == (
        "format: voc, images: train, labels: train, validation: {images: valid, labels: valid}"
    )
    assert status.coordinates is not None
    assert (status.coordinates.value, status.coordinates.decided_by) == ("zeroBased", "evidence")
    assert status.orientation is not None
    assert (status.orientation.value, status.orientation.decided_by) == ("exif", "evidence")
    assert records.manifest.orientation == "exif"

    examples = _examples(records)
    for number in range(2):
        feature = examples[f"train/{number}"]
        assert feature["frame/original_height"].int64_list.value[:] == [80]
        assert feature["frame/original_width"].int64_list.value[:] == [60]
        edges = [
            feature[f"target/coordinates_{edge}"].float_list.value[0] for edge in ("y1", "x1", "y2", "x2")
        ]
        # 80 rows become 64, 60 columns 48, with 8 columns of padding at the left: 0.8 of every edge.
        np.testing.assert_allclose(edges, [(10 + number) * 0.8, 8, 40, 8 + 24], atol=1e-4)
        scale = [feature[f"frame/scale_{axis}"].float_list.value[0] for axis in "yx"]
        offset = [feature[f"frame/offset_{axis}"].float_list.value[0] for axis in "yx"]
        back = geometry.to_original(np.array([edges]), scale, offset)
        np.testing.assert_allclose(back, [[10 + number, 0, 50, 30]], atol=1e-4)
        image = tf.io.decode_jpeg(feature["frame/encoded"].bytes_list.value[0]).numpy()
        # The photo's lower left tile is the upper left one of the turned view.
        with Image.open(root / "train" / f"{number}.jpg") as photo:
            lower_left = np.asarray(photo)[50, 10].astype(int)
        assert np.abs(image[5, 8 + 5].astype(int) - lower_left).max() < 30

    # The same in fields, by name: the same records, found again.
    fields = {
        "format": "voc",
        "images": "train",
        "labels": "train",
        "validation": {"images": "valid", "labels": "valid"},
    }
    told = {"coordinates": "zeroBased", "orientation": "exif"}
    again = RecordingReporter()
    same = prepare(_dataset(root, **fields, **told), storage, f"file://{tmp_path}/out", again)
    assert same.digest == records.digest
    status = again.last(DatasetStatus)
    assert status.layout is None
    assert status.coordinates is not None
    assert status.coordinates.decided_by == "spec"
    other = prepare(_dataset(root, **fields, coordinates="oneBased"), storage, f"file://{tmp_path}/out")
    assert other.digest != records.digest
