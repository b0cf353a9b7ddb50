"""The registry of label formats: a format that is registered in one place is read and written."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from tlt_api.dataset import Dataset, LabelFormat
from tlt_runner.data import formats
from tlt_runner.data.formats import lines
from tlt_runner.data.formats.folder_reader import FolderReader
from tlt_runner.data.formats.format import ExportedImage, Format, Writer, decimal
from tlt_runner.data.preparation import export_folder, planning, sources
from tlt_runner.data.sample import Finding, LabelledBox, Labels, Problem
from tlt_runner.storage import Storage

BOXES = {
    "a": [("car", (2.0, 4.0, 10.5, 12.0)), ("person", (1.0, 1.0, 6.0, 7.25))],
    "b": [],
    "street/c": [("car", (0.0, 0.0, 16.0, 24.0))],
}


class ToyReader(FolderReader):
    """A line is ``class top left bottom right``."""

    suffix = ".toy"

    def read_file(self, path: Path, file: str, image_size: tuple[int, int]) -> Labels:
        return lines.read(path, file, _parse)


def _parse(columns: list[str], file: str, number: int) -> LabelledBox | Finding:
    if len(columns) != 5:
        return Finding(file, Problem.WRONG_COLUMNS, f"expected 5 columns, got {len(columns)}", number)
    top, left, bottom, right = map(float, columns[1:])
    return LabelledBox(columns[0], (top, left, bottom, right), line=number)


class ToyWriter(Writer):
    image_folders = {"training": "pictures/learn", "validation": "pictures/judge"}
    dataset = {
        "format": "toy",
        "images": image_folders["training"],
        "labels": "toys/learn",
        "validation": {"images": image_folders["validation"], "labels": "toys/judge"},
    }

    def add(self, image: ExportedImage) -> None:
        folder = "toys/learn" if image.subset == "training" else "toys/judge"
        edges = (f"{box.class_name} {' '.join(map(decimal, box.yxyx))}\n" for box in image.boxes)
        self._write(f"{folder}/{image.name}.toy", edges)

    def close(self) -> None:
        pass


class AnyDataset(Dataset):
    """A data set block as the API would take it with one more name in its enum."""

    format: str = "kitti"


@pytest.fixture
def _with_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Format(ToyReader.open, ToyWriter, images="pictures", labels="toys")
    monkeypatch.setitem(formats.FORMATS, "toy", toy)
    monkeypatch.setattr(export_folder, "Dataset", AnyDataset)


def _toy_folder(root: Path) -> AnyDataset:
    pixels = np.zeros((16, 24, 3), np.uint8)
    for number, (name, boxes) in enumerate(BOXES.items()):
        image, label = root / f"pictures/{name}.png", root / f"toys/{name}.toy"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(cv2.imencode(".png", pixels + 10 * number)[1].tobytes())
        label.write_text("".join(f"{kind} {' '.join(map(str, box))}\n" for kind, box in boxes))
    return AnyDataset.model_validate(
        {
            "uri": f"file://{root}",
            "format": "toy",
            "targetClassMapping": {"car": "car"},
            "imageSize": {"width": 64, "height": 64},
            "validation": {"fraction": 0.5},
        }
    )


def _content(dataset: Dataset, storage: Storage) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    plan = planning.plan(sources.find(dataset, storage), dataset, storage)
    labels = {item.sample.stem: item.reader.read(item.sample, (16, 24)) for item in plan.items}
    return {stem: [(box.class_name, box.yxyx) for box in label.boxes] for stem, label in labels.items()}


@pytest.mark.usefixtures("_with_toy")
@pytest.mark.parametrize("other", ["kitti", "coco", "yolo"])
def test_a_format_registered_in_one_place_is_exported_to_and_from(other: LabelFormat, tmp_path: Path) -> None:
    storage = Storage(scratch=tmp_path / "scratch")
    toy = _toy_folder(tmp_path / "toy")
    assert _content(toy, storage) == BOXES
    exported = export_folder.export_folder(toy, storage, other, tmp_path / "there", resize=False)
    back = export_folder.export_folder(exported.dataset, storage, "toy", tmp_path / "back", resize=False)  # type: ignore[arg-type]
    assert (back.dataset.format, formats.image_and_label_paths(back.dataset)) == (
        "toy",
        ("pictures/learn", "toys/learn"),
    )
    written = _content(back.dataset, storage)
    assert written.keys() == BOXES.keys()
    for stem, boxes in BOXES.items():
        assert [kind for kind, _ in written[stem]] == [kind for kind, _ in boxes]
        for (_, got), (_, expected) in zip(written[stem], boxes, strict=True):
            assert got == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", formats.FORMATS)
@pytest.mark.parametrize("field", ["images", "labels"])
def test_the_api_documents_the_default_places_of_every_format(name: str, field: str) -> None:
    text = " ".join((Dataset.model_fields[field].description or "").split())
    default = getattr(formats.FORMATS[name], field)
    # "JPEGImages (voc), images (coco, yolo)"
    assert re.search(rf"{re.escape(default)} \((\w+, )*{name}(, \w+)*\)", text), text
