"""Label formats in: each a :class:`~tlt_runner.data.sample.Reader`, chosen here by the data set's format."""

from __future__ import annotations

from pathlib import Path

from tlt_api.dataset import Dataset
from tlt_api.failures import Reason
from tlt_runner.data.formats import class_names, folders
from tlt_runner.data.formats.coco import CocoReader
from tlt_runner.data.formats.folders import Place
from tlt_runner.data.formats.kitti import KittiReader
from tlt_runner.data.formats.voc import VocReader
from tlt_runner.data.formats.yolo import YoloReader
from tlt_runner.data.sample import Reader
from tlt_runner.errors import NotFoundError, RunnerError, storage_errors
from tlt_runner.storage import Storage, join, relative

COCO_SUFFIX = ".json"


def open_reader(dataset: Dataset, storage: Storage, images: str, labels: str) -> Reader:
    """The reader of a folder of images and its labels.

    Args:
        dataset: Says the format, the root and, for yolo, the classes.
        storage: Reads the root.
        images: The images' folder, relative to the root.
        labels: The labels': a folder, or for coco a file or a folder of files.

    Raises:
        RunnerError: ``DatasetNotFound`` or ``NoLabels``, saying what is there; ``InvalidSpec`` where yolo's
            classes are not known.
    """
    image_place = _place(dataset, storage, images)
    if dataset.format == "coco":
        return CocoReader(image_place, _json_files(dataset, storage, labels))
    label_place = _place(dataset, storage, labels)
    if dataset.format == "voc":
        return VocReader(image_place, label_place)
    if dataset.format == "yolo":
        if dataset.class_names:
            return YoloReader(image_place, label_place, dict(enumerate(dataset.class_names)))
        path = _names_file(dataset, storage)
        with storage_errors(dataset.uri):
            names = class_names.load(path)
        return YoloReader(image_place, label_place, names, [(class_names.FILE, path)])
    return KittiReader(image_place, label_place)


def image_holdings(reader: Reader) -> str:
    """What is in the folder of images, for messages."""
    if isinstance(reader, KittiReader | VocReader | CocoReader | YoloReader):
        return folders.holdings(reader.images.folder)
    return "no image"


def label_holdings(reader: Reader) -> str:
    """What is where the labels should be, for messages."""
    if isinstance(reader, KittiReader | VocReader | YoloReader):
        return folders.holdings(reader.labels.folder)
    return "labels of other images"


def _place(dataset: Dataset, storage: Storage, place: str) -> Place:
    try:
        folder = storage.folder(join(dataset.uri, relative(place)))
        return Place(folder, relative(place), storage.mount(dataset.uri))
    except NotFoundError as error:
        raise RunnerError(Reason.DATASET_NOT_FOUND, error.message) from error


def _json_files(dataset: Dataset, storage: Storage, labels: str) -> list[tuple[str, Path]]:
    """Path relative to the root and path of every COCO file, sorted."""
    if relative(labels).lower().endswith(COCO_SUFFIX):
        try:
            return [(relative(labels), storage.fetch(join(dataset.uri, relative(labels))))]
        except NotFoundError as error:
            raise RunnerError(Reason.DATASET_NOT_FOUND, error.message) from error
    place = _place(dataset, storage, labels)
    with storage_errors(dataset.uri):
        files, findings = folders.find_labels(place, COCO_SUFFIX)
        if not files:
            raise RunnerError(
                Reason.NO_LABELS,
                f"expected .json files in {join(dataset.uri, place.place)}, which has "
                f"{folders.holdings(place.folder)}",
            )
    if findings:
        raise RunnerError(Reason.NO_LABELS, str(findings[0]), "Repair the file, or take it away.")
    return [(place.file(name), place.folder / name) for name in files.values()]


def _names_file(dataset: Dataset, storage: Storage) -> Path:
    try:
        return storage.fetch(join(dataset.uri, class_names.FILE))
    except NotFoundError as error:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected yolo's classes in dataset.classNames or {class_names.FILE}: {error.message}",
            "Name the classes by number, from 0, in spec.dataset.classNames.",
        ) from error
