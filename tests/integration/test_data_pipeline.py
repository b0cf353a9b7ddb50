"""Batches of tensors from real records: shapes, order, mirroring, padding."""

import threading
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow as tf

from tlt_api.dataset import Dataset
from tlt_api.failures import Reason
from tlt_api.training import Augmentation
from tlt_runner.data import parallel
from tlt_runner.data.input_pipeline import samples
from tlt_runner.data.input_pipeline.batches import training_batches, validation_batches
from tlt_runner.data.input_pipeline.samples import NAMES_SEPARATOR
from tlt_runner.data.input_pipeline.worker_slice import WorkerSlice
from tlt_runner.data.preparation.prepare import prepare
from tlt_runner.data.records import Records
from tlt_runner.errors import RunnerError
from tlt_runner.storage import Storage

STILL = Augmentation(horizontal_flip=0)
EVERYTHING = Augmentation(
    vertical_flip=0.5,
    zoom_min=0.7,
    zoom_max=1.5,
    translate_max_x=8,
    translate_max_y=8,
    rotate_rad_max=0.3,
    color_shift_stddev=0.02,
    hue_rotation_max=10,
    saturation_shift_max=0.2,
    contrast_scale_max=0.2,
    mosaic=0.5,
)
SIZE = 64


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """17 training and 5 validation images: a red box on black, each elsewhere, every third difficult."""
    root = tmp_path_factory.mktemp("set")
    for part, count in (("training", 17), ("validation", 5)):
        for folder in ("image", "label"):
            (root / part / folder).mkdir(parents=True)
        for number in range(count):
            left, top = 2 * number, 30
            pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
            pixels[top : top + 16, left : left + 16] = (0, 0, 255)  # red, in BGR
            cv2.imwrite(str(root / part / "image" / f"{number:03d}.png"), pixels)
            line = f"box 0 {int(number % 3 == 0)} 0 {left} {top} {left + 16} {top + 16} 0 0 0 0 0 0 0\n"
            (root / part / "label" / f"{number:03d}.txt").write_text(line * (1 + number % 2))
    dataset = Dataset.model_validate(
        {
            "uri": f"file://{root}",
            "images": "training/image",
            "labels": "training/label",
            "targetClassMapping": {"box": "box", "ball": "ball"},
            "imageSize": {"width": SIZE, "height": SIZE},
            "validation": {"images": "validation/image", "labels": "validation/label"},
        }
    )
    return prepare(dataset, Storage(scratch=root / "scratch"), f"file://{root}/out")


def _epoch(records: Records, epoch: int, **changes: Any) -> list[dict[str, np.ndarray]]:
    arguments = {"batch_size": 4, "seed": 1, "augmentation": STILL, "max_objects": 3, **changes}
    data = training_batches(records, epoch=epoch, **arguments)
    return [{key: value.numpy() for key, value in batch.items()} for batch in data]


def _ids(batches: list[dict[str, np.ndarray]]) -> list[bytes]:
    return [name for batch in batches for name in batch["id"]]


def test_training_batches_have_static_shapes(records: Records) -> None:
    data = training_batches(records, 4, 1, STILL, 3, epoch=0)
    spec = {key: (tuple(value.shape), value.dtype) for key, value in data.element_spec.items()}
    assert spec == {
        "image": ((4, SIZE, SIZE, 3), tf.uint8),
        "boxes": ((4, 3, 4), tf.float32),
        "classes": ((4, 3), tf.int32),
        "id": ((4,), tf.string),
        "left_out": ((4, 2), tf.int32),
    }


def test_images_of_one_channel_are_the_luma_in_training_as_in_validation(records: Records) -> None:
    colour, grey = (_epoch(records, 0, channels=channels) for channels in (3, 1))
    assert [batch["image"].shape for batch in grey] == [(4, SIZE, SIZE, 1)] * 4
    assert _ids(colour) == _ids(grey)
    for coloured, one in zip(colour, grey, strict=True):
        luma = coloured["image"] @ np.array([0.299, 0.587, 0.114])
        # Colours that a JPEG holds but RGB does not are cut on their way to RGB.
        assert np.abs(one["image"][..., 0] - luma).mean() < 1
    coloured, one = (next(iter(validation_batches(records, 4, channels=channels))) for channels in (3, 1))
    luma = coloured["image"].numpy() @ np.array([0.299, 0.587, 0.114])
    assert np.abs(one["image"].numpy()[..., 0] - luma).mean() < 1


@pytest.mark.parametrize(
    ("field", "limit", "kept"),
    [
        ("min_width", 16, True),
        ("min_width", 16.5, False),
        ("min_height", 16, True),
        ("min_height", 17, False),
    ],
)
def test_objects_below_the_least_sides_are_left_out_and_counted(
    records: Records, field: str, limit: float, kept: bool
) -> None:
    # Every box has 16 x 16 pixels.
    usual = _epoch(records, 0)
    objects = sum(int((batch["classes"] >= 0).sum()) for batch in usual)
    batches = _epoch(records, 0, augmentation=STILL.model_copy(update={field: limit}))
    assert sum(int((batch["classes"] >= 0).sum()) for batch in batches) == (objects if kept else 0)
    assert sum(int(batch["left_out"][:, 0].sum()) for batch in batches) == (0 if kept else objects)


def test_an_epoch_has_each_image_at_most_once_and_whole_batches(records: Records) -> None:
    ids = _ids(_epoch(records, 0))
    assert len(ids) == 16
    assert len(set(ids)) == 16


def test_the_order_depends_on_seed_and_epoch_alone(records: Records) -> None:
    first, again, second, other = (
        _ids(_epoch(records, 0)),
        _ids(_epoch(records, 0)),
        _ids(_epoch(records, 1)),
        _ids(_epoch(records, 0, seed=2)),
    )
    assert first == again
    assert first not in (second, other, sorted(first))


def test_pixels_are_rgb_from_0_to_255_and_match_their_box(records: Records) -> None:
    for batch in _epoch(records, 0):
        for image, boxes in zip(batch["image"], batch["boxes"], strict=True):
            y1, x1, y2, x2 = boxes[0].astype(int)
            inside = image[y1:y2, x1:x2].reshape(-1, 3).mean(0)
            assert inside[0] > 230
            assert inside[1:].max() < 25


def test_padding_is_a_zero_box_of_class_minus_one(records: Records) -> None:
    for batch in _epoch(records, 0):
        for name, boxes, classes in zip(batch["id"], batch["boxes"], batch["classes"], strict=True):
            count = 1 + int(name[-3:]) % 2
            # Class ids are places in [ball, box].
            assert classes.tolist() == [1] * count + [-1] * (3 - count)
            assert (boxes[count:] == 0).all()
            assert boxes[0].tolist() == [30.0, 2.0 * int(name[-3:]), 46.0, 2.0 * int(name[-3:]) + 16]


def test_objects_beyond_max_objects_become_ignored_regions(records: Records) -> None:
    for batch in _epoch(records, 0, max_objects=1):
        # Odd numbers have two equal objects: one is learnt, the place of the other is not background.
        expected = [[1, -2] if int(name[-3:]) % 2 else [1, -1] for name in batch["id"]]
        assert batch["classes"].tolist() == expected
        for boxes, classes in zip(batch["boxes"], batch["classes"], strict=True):
            assert boxes[1].tolist() == (boxes[0].tolist() if classes[1] == -2 else [0] * 4)


def test_mirrored_images_have_mirrored_boxes(records: Records) -> None:
    plain = {
        n: (i, b) for e in _epoch(records, 0) for n, i, b in zip(e["id"], e["image"], e["boxes"], strict=True)
    }
    for batch in _epoch(records, 0, augmentation=Augmentation(horizontal_flip=1)):
        for name, image, boxes in zip(batch["id"], batch["image"], batch["boxes"], strict=True):
            before_image, before = plain[name]
            assert np.array_equal(image, before_image[:, ::-1])
            assert boxes[0].tolist() == [before[0, 0], SIZE - before[0, 3], before[0, 2], SIZE - before[0, 1]]


def test_mirroring_is_reproducible_within_an_epoch_and_differs_between_epochs(records: Records) -> None:
    half = Augmentation(horizontal_flip=0.5)
    epochs = [_epoch(records, number, augmentation=half) for number in (0, 0, 1)]
    boxes = [
        {n: b[0, 1] for e in epoch for n, b in zip(e["id"], e["boxes"], strict=True)} for epoch in epochs
    ]
    assert boxes[0] == boxes[1]
    plain = {n: 2.0 * int(n[-3:]) for n in boxes[0]}
    assert 0 < sum(boxes[0][name] != plain[name] for name in plain) < 16
    assert boxes[0] != boxes[2]


def test_training_and_validation_decode_to_the_same_pixels(records: Records) -> None:
    (held_out,) = validation_batches(records, 5)
    validation = dict(
        zip((name[-3:] for name in held_out["id"].numpy()), held_out["image"].numpy(), strict=True)
    )
    compared = 0
    for batch in _epoch(records, 0):
        for name, image in zip(batch["id"], batch["image"], strict=True):
            if name[-3:] in validation:  # the same drawing in both subsets
                assert np.array_equal(image, validation[name[-3:]])
                compared += 1
    assert compared >= 4


@pytest.mark.parametrize("batch_size", [1, 3, 4, 6])
def test_an_epoch_resumed_in_the_middle_is_the_same_bit_for_bit(records: Records, batch_size: int) -> None:
    whole = _epoch(records, 2, augmentation=EVERYTHING, batch_size=batch_size)
    assert len(whole) == 17 // batch_size
    for first in (1, len(whole) - 1):
        resumed = _epoch(records, 2, augmentation=EVERYTHING, batch_size=batch_size, first_batch=first)
        assert len(resumed) == len(whole) - first
        for before, after in zip(whole[first:], resumed, strict=True):
            assert before.keys() == after.keys()
            assert all(np.array_equal(before[key], after[key]) for key in before)


def test_another_epoch_or_seed_augments_images_differently(records: Records) -> None:
    one, other, third = (
        {
            name.split(NAMES_SEPARATOR)[0]: image
            for batch in epoch
            for name, image in zip(batch["id"], batch["image"], strict=True)
        }
        for epoch in (
            _epoch(records, 0, augmentation=EVERYTHING),
            _epoch(records, 1, augmentation=EVERYTHING),
            _epoch(records, 0, augmentation=EVERYTHING, seed=2),
        )
    )
    both = one.keys() & other.keys() & third.keys()
    assert len(both) > 10
    assert not any(np.array_equal(one[name], other[name]) for name in both)
    assert not any(np.array_equal(one[name], third[name]) for name in both)


@pytest.mark.parametrize("batch_size", [2, 4])
def test_a_mosaic_is_of_four_different_images_with_their_boxes(records: Records, batch_size: int) -> None:
    mosaic = Augmentation(horizontal_flip=0, mosaic=1, min_visible=0.9)
    batches = _epoch(records, 0, augmentation=mosaic, max_objects=8, batch_size=batch_size)
    names = [name.split(NAMES_SEPARATOR) for name in _ids(batches)]
    assert len({first for first, *_ in names}) == 16
    assert {len(set(four)) for four in names} == {4}
    objects = 0
    for batch in batches:
        for image, boxes, classes in zip(batch["image"], batch["boxes"], batch["classes"], strict=True):
            vehicle_boxes = boxes[classes == 1]
            objects += len(vehicle_boxes)
            for y1, x1, y2, x2 in np.round(vehicle_boxes).astype(int):
                assert 7 <= y2 - y1 <= 13  # 16, shrunk to between a half and three quarters
                red = image[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].reshape(-1, 3).mean(0)
                assert red[0] > 200
                assert red[1:].max() < 50
    assert objects > 24  # one or two a drawing; a quadrant shows 0.44 of an image or more


def test_a_remainder_of_fewer_than_four_images_makes_no_mosaic(records: Records) -> None:
    last = _epoch(records, 0, augmentation=Augmentation(horizontal_flip=0, mosaic=1), batch_size=1)[-1]
    number = int(last["id"][0][-3:])
    assert last["boxes"][0, 0].tolist() == [30, 2 * number, 46, 2 * number + 16]


def test_objects_left_out_are_counted_by_cause(records: Records) -> None:
    for batch in _epoch(records, 0, max_objects=1):
        beyond = [int(name[-3:]) % 2 for name in batch["id"]]  # odd numbers have two
        assert batch["left_out"].tolist() == [[0, count] for count in beyond]
    far = Augmentation(horizontal_flip=0, translate_max_x=4096)
    for batch in _epoch(records, 0, augmentation=far):
        for name, classes, left_out in zip(batch["id"], batch["classes"], batch["left_out"], strict=True):
            assert np.count_nonzero(classes == 1) + left_out[0] == 1 + int(name[-3:]) % 2
            assert left_out[1] == 0


def test_fewer_images_than_a_batch_are_refused_with_both_numbers(records: Records) -> None:
    with pytest.raises(RunnerError) as caught:
        training_batches(records, 18, 1, STILL, 3, epoch=0)
    assert caught.value.reason == Reason.INVALID_SPEC
    assert "17" in caught.value.message
    assert "18" in caught.value.message


def test_validation_has_every_image_once_in_a_fixed_order_and_a_filled_last_batch(records: Records) -> None:
    batches = list(validation_batches(records, 4))
    assert [batch["valid"].numpy().tolist() for batch in batches] == [[True] * 4, [True, False, False, False]]
    ids = [name for batch in batches for name in batch["id"].numpy()]
    assert sorted(ids[:5]) == [f"validation/image/{number:03d}".encode() for number in range(5)]
    assert ids[5:] == [b""] * 3
    again = [name for batch in validation_batches(records, 4) for name in batch["id"].numpy()]
    assert ids == again
    filler = {key: value.numpy()[1:] for key, value in batches[1].items()}
    assert filler["image"].max() == 0
    assert (filler["classes"] == -1).all()
    assert (filler["boxes"] == 0).all()
    difficult = np.concatenate([batch["difficult"].numpy() for batch in batches])
    by_number = {int(name[-3:]): flags.tolist() for name, flags in zip(ids[:5], difficult, strict=False)}
    # Every third is difficult; odd numbers have a second box.
    assert [by_number[number][:2] for number in range(5)] == [
        [True, False],
        [False, False],
        [False, False],
        [True, True],
        [False, False],
    ]
    assert not difficult[5:].any()


def test_a_limit_takes_the_first_images(records: Records) -> None:
    (batch,) = validation_batches(records, 4, limit=2)
    assert batch["valid"].numpy().tolist() == [True, True, False, False]
    assert batch["image"].shape == (4, SIZE, SIZE, 3)


def test_whole_batches_need_no_filling(records: Records) -> None:
    (batch,) = validation_batches(records, 5)
    assert batch["valid"].numpy().all()


def test_epochs_leave_no_threads_behind(records: Records) -> None:
    for epoch in range(4):
        _epoch(records, epoch)
    feeding = [thread for thread in threading.enumerate() if thread.name.startswith("feed")]
    assert 0 < len(feeding) <= parallel.workers()


@pytest.mark.parametrize("batch_size", [2, 4])
@pytest.mark.parametrize("augmentation", [STILL, EVERYTHING])
def test_several_workers_together_have_the_batches_of_one(
    records: Records, augmentation: Augmentation, batch_size: int
) -> None:
    whole = _epoch(records, 2, batch_size=batch_size, augmentation=augmentation, first_batch=1)
    slices = [
        _epoch(
            records,
            2,
            batch_size=batch_size,
            augmentation=augmentation,
            first_batch=1,
            worker_slice=WorkerSlice(index, 2),
        )
        for index in range(2)
    ]
    assert len(whole) == len(slices[0]) == len(slices[1])
    for batch, *parts in zip(whole, *slices, strict=True):
        for key, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), value)


def test_a_worker_decodes_its_own_images_only(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = samples._decode
    monkeypatch.setattr(
        samples, "_decode", lambda data, *others: decoded.append(data) or decode(data, *others)
    )
    _epoch(records, 0, worker_slice=WorkerSlice(1, 2))
    assert len(decoded) == len(set(decoded)) == 8


def test_each_validation_image_goes_to_one_worker_once(records: Records) -> None:
    whole = [batch["id"].numpy().tolist() for batch in validation_batches(records, 2)]
    slices = [list(validation_batches(records, 4, worker_slice=WorkerSlice(index, 2))) for index in range(2)]
    assert len(slices[0]) == len(slices[1]) == 2
    valid_names = [
        name
        for batches in zip(*slices, strict=True)
        for batch in batches
        for name, valid in zip(batch["id"].numpy(), batch["valid"].numpy(), strict=True)
        if valid
    ]
    assert valid_names == [name for ids in whole for name in ids if name]
