"""A data set as a folder of another format: ``tlt convert --to``.

Called by :mod:`tlt_runner.local.export_folder`. What is read, what is left out and which image is held out is
decided as for training; only that all classes of the labels are kept, and that images stay as they are unless
they are to be resized: then every image that is not of ``imageSize`` yet becomes a JPEG of quality 95 (a PNG,
too), as in the records. Boxes are cut at the image's edge; those of less than a pixel a side are dropped, and
with resizing those that become as small.

The folder is built under a hidden name beside its own and renamed at the end, so it is whole or not there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from tlt_api import resources
from tlt_api.dataset import MOST_CLASSES, NOT_A_CLASS, Dataset, ImageSize, LabelFormat
from tlt_api.failures import Reason
from tlt_runner.data import box_transform
from tlt_runner.data.class_mapping import ClassMapping
from tlt_runner.data.images import decode
from tlt_runner.data.parallel import in_order, workers
from tlt_runner.data.preparation import new_folder, planning, sources
from tlt_runner.data.preparation.fingerprint import digest_of
from tlt_runner.data.preparation.planning import Planned
from tlt_runner.data.records import REPORT
from tlt_runner.data.report import report
from tlt_runner.data.report.report import DatasetReport
from tlt_runner.data.report.statistics import Tally
from tlt_runner.data.sample import Converted
from tlt_runner.data.writers import Entry, Writer, rewriting
from tlt_runner.data.writers.coco import CocoWriter
from tlt_runner.data.writers.kitti import KittiWriter
from tlt_runner.data.writers.names import Names
from tlt_runner.data.writers.voc import VocWriter
from tlt_runner.data.writers.yolo import YoloWriter
from tlt_runner.errors import RunnerError
from tlt_runner.storage import Storage, join

WRITERS: dict[LabelFormat, type[Writer]] = {
    "kitti": KittiWriter,
    "voc": VocWriter,
    "coco": CocoWriter,
    "yolo": YoloWriter,
}
_LOST = {
    "truncation": "the truncation of {} objects",
    "occlusion": "the occlusion of {} objects",
    "difficult": "whether {} objects are difficult",
}


@dataclass(frozen=True)
class Translation:
    """A written folder.

    Attributes:
        dataset: With which it is read back.
        report: What was found, left out, and changed; the folder holds the same as ``dataset-report.json``.
    """

    dataset: Dataset
    report: DatasetReport


def translate(
    dataset: Dataset,
    storage: Storage,
    target: LabelFormat,
    out: Path,
    *,
    resize: bool,
    stopped: Callable[[], bool] = lambda: False,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Translation:
    """Write a data set as a folder of another format.

    Args:
        dataset: What to read.
        storage: Reads it.
        target: The format to write.
        out: A new or empty folder.
        resize: Whether images and boxes are brought to ``dataset.image_size``.
        stopped: Whether to give up; asked before each image.
        tell: Is told how many images of how many are done.

    Raises:
        RunnerError: ``InvalidSpec`` when ``out`` holds something; ``DatasetNotFound``, ``NoLabels``,
            ``BadSamples``; ``Interrupted``; the storage's reasons. ``InvalidSpec``, too, when ``out`` would
            be part of the data set.
    """
    folder = new_folder.free(out)
    _check_apart(dataset, storage, folder)

    def check() -> None:
        if stopped():
            message = f"stopped before {out} was complete; nothing of it is left"
            raise RunnerError(Reason.INTERRUPTED, message, "Run it again: it begins anew.")

    writer_type = WRITERS[target]
    found = sources.find(dataset, storage)
    plan = planning.plan(found, dataset, storage, check)
    if not plan.classes:
        raise RunnerError(
            Reason.NO_LABELS, f"no label of {len(plan.items)} images in {dataset.uri} has an object"
        )
    mapping = _class_names(writer_type, plan.classes, target)
    result = _read_back(dataset, writer_type, folder, mapping, plan.classes)
    with new_folder.appearing(folder) as building:
        writer = writer_type(building, mapping.class_names)
        translator = _Translator(writer, building, mapping, dataset.image_size if resize else None)
        translator.tally.add_listings([source.listing for source in found])
        # Their order, by subset and name, decides which of two images of one name keeps it.
        translator.run(plan.items, check, tell)
        found_report = translator.tally.to_report(mapping)
        _judge(found_report, dataset)
        warnings = [*_class_notes(result, mapping), *translator.notes(target), *found_report.warnings]
        found_report = found_report.model_copy(update={"warnings": warnings})
        text = found_report.model_dump_json(indent=1, exclude_none=True)
        (building / REPORT).write_text(f"{text}\n", encoding="utf-8")
        check()
    return Translation(result, found_report)


def _check_apart(dataset: Dataset, storage: Storage, folder: Path) -> None:
    held_out = dataset.validation
    for place in (*dataset.places, held_out.images, held_out.labels):
        source = None if place is None else storage.local_path(join(dataset.uri, place))
        if source is not None and folder.is_relative_to(source.resolve()):
            raise RunnerError(
                Reason.INVALID_SPEC,
                f"expected a folder for --out apart from the data set's, got {folder} within {source}",
                "Name another folder: what is written would be found as data the next time.",
            )


def _class_names(writer: type[Writer], counts: Counter[str], target: LabelFormat) -> ClassMapping:
    """The labels' classes as the format says them.

    Raises:
        RunnerError: ``InvalidSpec`` when two of them would become one.
    """
    names = {source: writer.class_name(source) for source in sorted(counts)}
    first: dict[str, str] = {}
    for source, name in names.items():
        if first.setdefault(name, source) != source:
            raise RunnerError(
                Reason.INVALID_SPEC,
                f"{target} cannot tell classes {first[name]!r} and {source!r} apart: both would be {name!r}",
                "Rename one of them in the labels, or choose another format.",
            )
    return ClassMapping(names)


def _read_back(
    dataset: Dataset, writer: type[Writer], folder: Path, mapping: ClassMapping, counts: Counter[str]
) -> Dataset:
    """The dataset block of the folder that is going to be written."""
    learnable = [source for source, _ in counts.most_common() if mapping.targets[source] != NOT_A_CLASS]
    classes = sorted(mapping.targets[source] for source in learnable[:MOST_CLASSES])
    kept = dataset.model_dump(by_alias=True, exclude_unset=True, include={"image_size", "bad_samples"})
    mapping_block = {"targetClassMapping": {name: name for name in classes}}
    try:
        return Dataset.model_validate({"uri": f"file://{folder}", **writer.dataset, **mapping_block, **kept})
    except ValidationError as error:
        raise RunnerError(
            Reason.INVALID_SPEC, f"no dataset block can read {folder}: {resources.explain(error)}"
        ) from None


def _judge(found: DatasetReport, dataset: Dataset) -> None:
    try:
        report.judge(found, dataset.bad_samples)
    except RunnerError as error:
        hint = "`tlt convert -f` without --to reports them all: repair them, or raise badSamples.maxFraction."
        raise RunnerError(error.reason, error.message, hint) from None
    if not found.training_images or not found.validation_images:
        raise RunnerError(
            Reason.BAD_SAMPLES,
            "expected at least one usable image for training and one for validation, got "
            f"{found.training_images} and {found.validation_images} of {found.images}",
            "Add images, or correct spec.dataset.validation.",
        )


@dataclass(frozen=True)
class _Named:
    """An image to translate, and its name in the folder."""

    planned: Planned
    name: str


@dataclass(frozen=True)
class _Translated:
    """What became of it; its file is written, its labels are not yet.

    Attributes:
        entry: The image in the folder; None when it was left out.
        converted: For the report.
        digest: Of the file that was read.
    """

    entry: Entry | None
    converted: Converted
    digest: bytes = b""


class _Translator:
    """Writes images by threads, and their labels in order.

    Args:
        writer: Writes the labels.
        root: The folder.
        mapping: The labels' classes as the format says them.
        size: To which images are brought; None leaves them as they are.
    """

    def __init__(self, writer: Writer, root: Path, mapping: ClassMapping, size: ImageSize | None) -> None:
        self._writer = writer
        self._root = root
        self._mapping = mapping
        self._size = size
        self._names = Names(flat=writer.flat)
        self._renamed = 0
        self._lost: Counter[str] = Counter()
        self.tally = Tally()

    def run(
        self, planned: Sequence[Planned], check: Callable[[], None], tell: Callable[[int, int], None]
    ) -> None:
        """Translate everything."""
        digests: dict[str, bytes] = {}
        with ThreadPoolExecutor(workers()) as threads:
            results = in_order(threads, self._translate, map(self._named, planned), check)
            for done, (item, translated) in enumerate(results, start=1):
                self.tally.add(item.planned.sample, translated.converted, item.planned.subset)
                if translated.entry is not None:
                    digests[item.planned.sample.name] = translated.digest
                    self._add(item, translated.entry)
                tell(done, len(planned))
        self._writer.close()
        usable = [item for item in planned if item.sample.name in digests]
        self.tally.add_duplicates(*planning.duplicates(usable, digests))

    def _add(self, item: _Named, entry: Entry) -> None:
        self._writer.add(entry)
        self._renamed += item.name != item.planned.sample.stem
        for box in entry.boxes:
            self._lost.update(self._writer.lost(box))

    def notes(self, target: LabelFormat) -> list[str]:
        """What was changed, for a person."""
        notes = [
            f"{target} cannot say {_LOST[name].format(count)}: it is lost"
            for name, count in sorted(self._lost.items())
        ]
        if self.tally.ignored_regions:
            notes.append(
                f"{self.tally.ignored_regions} regions to leave out of account (DontCare, iscrowd) are lost"
            )
        if self._renamed:
            notes.append(
                f"{self._renamed} images got another name, because of the format or of one that had it"
            )
        return notes

    def _named(self, item: Planned) -> _Named:
        folder = self._writer.image_folders[item.subset]
        return _Named(item, self._names.give(folder, item.sample.stem))

    def _translate(self, item: _Named) -> _Translated:
        """Check one image and write its file, not yet its labels. Worker threads run it."""
        sample = item.planned.sample
        try:
            data = decode.read(sample.image)
            done = rewriting.rewrite(sample, data, item.planned.reader, self._mapping, self._size)
        except decode.BadImageError as error:
            return _Translated(None, box_transform.refused(sample, error))
        entry = Entry(item.planned.subset, item.name, done.suffix, done.size, done.boxes)
        file = self._root / self._writer.image_file(entry)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("xb") as stream:
            stream.write(done.data)
        return _Translated(entry, done.converted, digest_of(data))


def _class_notes(dataset: Dataset, mapping: ClassMapping) -> list[str]:
    notes = [
        f"class {source!r} is written as {name!r}"
        for source, name in mapping.targets.items()
        if source != name
    ]
    left_out = sorted(set(mapping.class_names) - set(dataset.target_class_mapping))
    if left_out:
        notes.append(
            f"targetClassMapping takes no class {NOT_A_CLASS!r} and at most {MOST_CLASSES} classes; not in "
            f"it: {', '.join(left_out[:10])}{' ...' if len(left_out) > 10 else ''}"
        )
    return notes
