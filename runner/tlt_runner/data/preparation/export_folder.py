"""Export a data set as a folder of another format: ``tlt convert --to``.

Called by :mod:`tlt_runner.local.convert_to`. Images are read, left out and held out as for training, with
two differences: all classes of the labels are kept, and images stay as they are unless they are to be
resized. With resizing, every image that is not of ``imageSize`` yet becomes a JPEG of quality 95 (a PNG,
too), as in the records. Boxes are cut at the image's edge; those of less than a pixel a side are dropped, and
with resizing those that become as small.

The folder is built under a hidden name beside its own and renamed at the end, so it is whole or not there. A
killed process leaves that hidden folder, whose name ends in ``.partial``; nobody reads it.
"""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from tlt_api import resources
from tlt_api.dataset import MOST_CLASSES, NOT_A_CLASS, Dataset, ImageSize, LabelFormat
from tlt_api.failures import Reason
from tlt_runner.cancel import Stop
from tlt_runner.data import formats
from tlt_runner.data.class_mapping import ClassMapping
from tlt_runner.data.formats.format import ExportedImage, Writer
from tlt_runner.data.formats.names import UniqueNames
from tlt_runner.data.images import decode
from tlt_runner.data.parallel import ProgressReporter, StageProgress, in_order, workers
from tlt_runner.data.preparation import conventions, convert, layout, planning, sources
from tlt_runner.data.preparation.fingerprint import digest_of
from tlt_runner.data.preparation.planning import PlannedSample
from tlt_runner.data.records import REPORT
from tlt_runner.data.report import report
from tlt_runner.data.report.report import DatasetReport
from tlt_runner.data.report.statistics import DatasetStatistics
from tlt_runner.data.sample import SampleOutcome
from tlt_runner.errors import InterruptedRunError, RunnerError, storage_errors
from tlt_runner.files import partial_name, sync_folder
from tlt_runner.storage import Storage, join

_LOST = {
    "truncation": "the truncation of {} objects",
    "occlusion": "the occlusion of {} objects",
    "difficult": "whether {} objects are difficult",
}


@dataclass(frozen=True)
class ExportedFolder:
    """Folder that was written.

    Attributes:
        dataset: The data set block with which it is read back.
        report: Counts, findings and changes; the folder holds the same as ``dataset-report.json``.
    """

    dataset: Dataset
    report: DatasetReport


def export_folder(
    dataset: Dataset,
    storage: Storage,
    target: LabelFormat,
    out: Path,
    *,
    resize: bool,
    reporter_for: Callable[[int], ProgressReporter] | None = None,
    stop: Stop | None = None,
) -> ExportedFolder:
    """Write a data set as a folder of another format.

    Args:
        dataset: What to read.
        storage: Reads it.
        target: The format to write.
        out: A new or empty folder.
        resize: Brings images and boxes to ``dataset.image_size``.
        reporter_for: Takes the number of images, and returns who receives the progress (stage ``export``).
        stop: Ends the export when it is requested.

    Raises:
        RunnerError: ``InvalidSpec`` when ``out`` holds something or would be part of the data set;
            ``DatasetNotFound``, ``NoLabels``, ``BadSamples``; ``Interrupted``; the storage's reasons.
    """
    folder = _new_folder(out)
    dataset, _ = layout.resolve(dataset, storage)
    # Both checks come before anything is read: a wrong --out should fail at once.
    _check_apart(dataset, storage, folder)
    folders = sources.find(dataset, storage)
    images = sum(len(source.listing.samples) for source in folders)
    # The reporter is made here, because only now the number of images is known.
    reporter = None if reporter_for is None else reporter_for(images)
    progress = StageProgress("export", images, reporter, stop)
    try:
        decided = conventions.decide(dataset, conventions.look(dataset, folders, progress), progress)
        folders = decided.applied(folders)
        # Split as for training: with the same seed the same images are held out.
        plan = planning.plan(folders, dataset, storage, progress)
        # A folder without a single class would have no dataset block that reads it.
        if not plan.classes:
            warnings = [text for source in folders for text in source.listing.warnings]
            message = f"no label of {len(plan.items)} images in {dataset.uri} has an object"
            raise RunnerError(Reason.NO_LABELS, "; ".join([message, *dict.fromkeys(warnings)]))
        writer_type = formats.FORMATS[target].writer
        mapping = _class_names(writer_type, plan.classes, target)
        # Before the work: that no dataset block can read the folder should not turn out after hours.
        written = _read_back(dataset, writer_type, folder, mapping, plan.classes)
        with _appearing(folder) as building:
            writer = writer_type(building, mapping.class_names)
            export = _Export(writer, building, mapping, dataset.image_size if resize else None)
            export.statistics.add_listings([source.listing for source in folders])
            # Their order, by subset and name, decides which of two images of one name keeps it.
            export.run(plan.items, progress)
            result = export.statistics.to_report(mapping)
            _require_usable(result, dataset)
            notes = [*_class_notes(written, mapping), *export.notes(target)]
            result = result.model_copy(
                update={
                    "coordinates": decided.coordinates,
                    "orientation": decided.orientation,
                    "warnings": [*notes, *result.warnings, *decided.warnings],
                }
            )
            text = result.model_dump_json(indent=1, exclude_none=True)
            (building / REPORT).write_text(f"{text}\n", encoding="utf-8")
            # The last moment at which a stop leaves nothing behind.
            progress.raise_if_stopped()
    except InterruptedRunError as error:
        message = f"{error.message}, before {out} was complete; nothing of it is left"
        raise InterruptedRunError(message, "Run it again: it begins anew.") from None
    return ExportedFolder(written, result)


def _new_folder(out: Path) -> Path:
    """Return the absolute path of a folder that is new or empty.

    Raises:
        RunnerError: ``InvalidSpec`` when it is a file or contains something.
    """
    folder = out.resolve()
    with storage_errors(str(out)):
        # The first entry is named, hidden ones too: .git says more than "not empty".
        if folder.is_dir():
            content = next((entry.name for entry in sorted(folder.iterdir())), None)
        else:
            content = "a file" if folder.exists() else None
    if content is not None:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"expected a new or empty folder for --out, got {out}, which holds {content}",
            "Name another folder: nothing that is there is overwritten.",
        )
    return folder


def _check_apart(dataset: Dataset, storage: Storage, folder: Path) -> None:
    held_out = dataset.validation
    for path in (*formats.image_and_label_paths(dataset), held_out.images, held_out.labels):
        source = None if path is None else storage.local_path(join(dataset.uri, path))
        # The root itself may hold the new folder; only the places where images and labels are read may not.
        if source is not None and folder.is_relative_to(source.resolve()):
            raise RunnerError(
                Reason.INVALID_SPEC,
                f"expected a folder for --out apart from the data set's, got {folder} within {source}",
                "Name another folder: what is written would be found as data the next time.",
            )


def _class_names(writer: type[Writer], counts: Counter[str], target: LabelFormat) -> ClassMapping:
    """Map the labels' classes to their names in the format.

    Raises:
        RunnerError: ``InvalidSpec`` when two of them would become one.
    """
    # Sorted, so that the message names the same two classes in every run.
    # Every class of the labels, mapped or not: the folder is the whole data set in another format.
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
    """Make the dataset block of the folder that is going to be written."""
    # A manifest allows a limited number of classes: the most frequent ones are kept.
    learnable = [source for source, _ in counts.most_common() if mapping.targets[source] != NOT_A_CLASS]
    classes = sorted(mapping.targets[source] for source in learnable[:MOST_CLASSES])
    # What the user chose about size, colour and bad samples holds for the folder, too; the rest is the
    # writer's.
    kept = dataset.model_dump(
        by_alias=True, exclude_unset=True, include={"image_size", "color_mode", "bad_samples"}
    )
    mapping_block = {"targetClassMapping": {name: name for name in classes}}
    try:
        return Dataset.model_validate({"uri": f"file://{folder}", **writer.dataset, **mapping_block, **kept})
    except ValidationError as error:
        raise RunnerError(
            Reason.INVALID_SPEC, f"no dataset block can read {folder}: {resources.explain(error)}"
        ) from None


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Make a hidden folder that is renamed to ``folder`` at the end, or removed if an error leaves the block.

    Args:
        folder: As :func:`_new_folder` gives it.

    Raises:
        RunnerError: ``InvalidSpec`` when somebody filled the folder meanwhile; the storage's reasons.
    """
    # In the same folder as the result: only within one file system is a rename atomic.
    building = partial_name(folder)
    with storage_errors(str(folder)):
        folder.parent.mkdir(parents=True, exist_ok=True)
        building.mkdir()
        try:
            yield building
            _rename(building, folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        # The rename itself is on the disk only after the parent folder is synced.
        sync_folder(folder.parent)


def _rename(building: Path, folder: Path) -> None:
    # Atomic, and refused by the system if somebody has put a file into the folder since it was checked.
    try:
        building.replace(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise RunnerError(
            Reason.INVALID_SPEC, f"{folder} was empty at the beginning and holds something now"
        ) from error


@dataclass(frozen=True)
class _Renamed:
    """Image to export, with its name in the folder."""

    planned: PlannedSample
    name: str


@dataclass(frozen=True)
class _Exported:
    """Image whose file is written; its labels are not yet.

    Attributes:
        image: The image in the folder; None when it was left out.
        outcome: Counts and findings, for the report.
        digest: Digest of the file that was read.
    """

    image: ExportedImage | None
    outcome: SampleOutcome
    digest: bytes = b""


class _Export:
    """Writes images by threads, and their labels in order.

    Args:
        writer: Writes the labels.
        root: The folder.
        mapping: The labels' classes and their names in the format.
        size: The new size of images; None leaves them as they are.
    """

    def __init__(self, writer: Writer, root: Path, mapping: ClassMapping, size: ImageSize | None) -> None:
        self._writer = writer
        self._root = root
        self._mapping = mapping
        self._size = size
        self._names = UniqueNames(flat=writer.flat)
        self._renamed = 0
        self._lost: Counter[str] = Counter()
        # What becomes of ignored regions that the format cannot hold -> their number.
        self._regions: Counter[str] = Counter()
        self.statistics = DatasetStatistics()

    def run(self, planned: Sequence[PlannedSample], progress: StageProgress) -> None:
        """Write every image and its labels."""
        digests: dict[str, bytes] = {}
        with ThreadPoolExecutor(workers()) as threads:
            # Images are written by many threads, labels by this one alone: writers keep state, such as ids.
            for item, exported in in_order(threads, self._write_image, map(self._name, planned), progress):
                sample = item.planned.sample
                self.statistics.add(sample, exported.outcome, item.planned.subset)
                if exported.image is not None:
                    digests[sample.name] = exported.digest
                    self._write_labels(item, exported.image)
                    # Regions outside of the image, and crowds of a class that no object has.
                    self._regions["lost"] += exported.outcome.ignored - exported.outcome.regions
                progress.advance()
        # Lists and class names come last, when every image is known.
        self._writer.close()
        # Only images in the folder count as duplicates.
        usable = [item for item in planned if item.sample.name in digests]
        self.statistics.add_duplicates(*planning.duplicates(usable, digests))

    def _name(self, item: PlannedSample) -> _Renamed:
        folder = self._writer.image_folders[item.subset]
        return _Renamed(item, self._names.give(folder, item.sample.stem))

    def _write_image(self, item: _Renamed) -> _Exported:
        """Check one image and write its file. Worker threads run it."""
        sample = item.planned.sample
        try:
            data = decode.read(sample.image)
            converted = convert.convert_image(sample, data, item.planned.reader, self._mapping, self._size)
        except decode.BadImageError as error:
            return _Exported(None, convert.refused(sample, error))
        size = (converted.placement.height, converted.placement.width)
        image = ExportedImage(
            item.planned.subset, item.name, converted.suffix, size, converted.boxes, converted.regions
        )
        file = self._root / self._writer.image_file(image)
        # Several threads may make the same sub-folder at once.
        file.parent.mkdir(parents=True, exist_ok=True)
        # "x": two images of one name are a mistake here, never an image that is silently overwritten.
        with file.open("xb") as stream:
            stream.write(converted.data)
        return _Exported(image, converted.outcome, digest_of(data))

    def _write_labels(self, item: _Renamed, image: ExportedImage) -> None:
        self._writer.add(image)
        # Both counts are for the notes of the report.
        self._renamed += item.name != item.planned.sample.stem
        for box in image.boxes:
            self._lost.update(self._writer.lost(box))
        for region in image.regions:
            loss = self._writer.region_loss(region)
            if loss is not None:
                self._regions[loss] += 1

    def notes(self, target: LabelFormat) -> list[str]:
        """Write a sentence for each kind of loss or change."""
        notes = [
            f"{target} cannot say {_LOST[name].format(count)}: it is lost"
            for name, count in sorted(self._lost.items())
        ]
        notes += [
            f"{count} regions to leave out of account (DontCare, iscrowd) are {loss}"
            for loss, count in sorted(self._regions.items())
            if count
        ]
        if self._renamed:
            notes.append(
                f"{self._renamed} images got another name, because of the format or of one that had it"
            )
        return notes


def _require_usable(result: DatasetReport, dataset: Dataset) -> None:
    try:
        report.enforce_policy(result, dataset.bad_samples)
    except RunnerError as error:
        # The report that the failure would point to is not written: the folder goes away with the error.
        where = "`tlt convert -f` without --to writes that report."
        raise RunnerError(error.reason, error.message, f"{error.hint} {where}") from None
    report.require_both_subsets(result)


def _class_notes(dataset: Dataset, mapping: ClassMapping) -> list[str]:
    notes = [
        f"class {source!r} is written as {name!r}"
        for source, name in mapping.targets.items()
        if source != name
    ]
    # The labels keep these classes; only the dataset block cannot name them.
    left_out = sorted(set(mapping.class_names) - set(dataset.target_class_mapping))
    if left_out:
        notes.append(
            f"targetClassMapping takes no class {NOT_A_CLASS!r} and at most {MOST_CLASSES} classes; not in "
            f"it: {', '.join(left_out[:10])}{' ...' if len(left_out) > 10 else ''}"
        )
    return notes
