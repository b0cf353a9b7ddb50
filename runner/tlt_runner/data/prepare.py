"""From a data set as people have it to records that training reads.

Called first by the train and convert tasks. Two passes: a survey hashes every file and counts the labels'
classes, which gives the digest (and the quick answers: no images, no labels, a mapping that matches
nothing); then, unless records of that digest are there already, the conversion. Neither holds more than a
window of images in memory.

``<output>/tfrecords/<digest>/`` appears whole or not at all. ``<output>/dataset-report.json`` is written in
any case, also when the data are refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from tlt_api.failures import Reason
from tlt_api.trainingjob import Dataset
from tlt_runner.context import Reporter
from tlt_runner.data import report, sources, staging
from tlt_runner.data.classes import ClassMapping
from tlt_runner.data.parallel import Meter, in_order, workers
from tlt_runner.data.records import MANIFEST, REPORT, SCHEMA, Manifest, Records, Shard, Subset
from tlt_runner.data.report import DatasetReport
from tlt_runner.data.sources import Planned, Source
from tlt_runner.data.tally import Tally
from tlt_runner.errors import RunnerError
from tlt_runner.storage import Storage, join, sha256_of, storage_errors

log = logging.getLogger(__name__)
IMAGES_PER_SHARD = 512
SUBSETS: tuple[Subset, ...] = ("training", "validation")


def prepare(
    dataset: Dataset,
    storage: Storage,
    output_uri: str,
    reporter: Reporter | None = None,
    stop: Event | None = None,
) -> Records:
    """Make the records of a data set, or find them made.

    Args:
        dataset: What to read and how.
        storage: Reads the data set, writes the records.
        output_uri: Root of the results.
        reporter: Is told of progress (stage ``convert``) and of what was found.
        stop: Ends the conversion when it is set.

    Raises:
        RunnerError: ``DatasetNotFound``, ``NoLabels``, ``UnknownClass``, ``BadSamples``; ``Interrupted``
            after ``stop``; the storage's reasons.
    """
    mapping = ClassMapping(dataset.target_class_mapping)
    found = sources.find(dataset, storage)
    planned = sources.plan(found, dataset)
    meter = Meter("convert", len(planned), reporter, stop)
    survey = _survey(dataset, found, planned, mapping, meter)
    uri = join(output_uri, "tfrecords", survey.digest.removeprefix("sha256:")[:16])
    records = staging.existing(storage, uri, survey.digest)
    if records is not None:
        log.info("%s: records of %s are at %s already", dataset.uri, survey.digest, uri)
    else:
        with staging.staging_folder(storage, uri) as folder:
            conversion = _Conversion(dataset, mapping, survey, folder)
            conversion.run(found, planned, meter)
            storage.publish(folder / REPORT, join(output_uri, REPORT))
            conversion.judge()
            records = staging.publish(storage, folder, uri)
    result = DatasetReport.model_validate_json((records.folder / REPORT).read_bytes())
    storage.publish(records.folder / REPORT, join(output_uri, REPORT))
    for warning in result.warnings:
        log.warning("%s: %s", dataset.uri, warning)
    report.judge(result, dataset.bad_samples)
    if reporter is not None:
        reporter.dataset(report.to_status(records.manifest, result, records.uri))
    return records


@dataclass(frozen=True)
class _Survey:
    """What the first pass found.

    Attributes:
        digest: Digest of content and options.
        leaked: Names of validation images whose very bytes are among the training images, too.
    """

    digest: str
    leaked: Sequence[str]


def _survey(
    dataset: Dataset, found: Sequence[Source], planned: Sequence[Planned], mapping: ClassMapping, meter: Meter
) -> _Survey:
    """Hash everything; fail where no label has a class of the mapping."""
    options = dataset.model_dump(
        mode="json", include={"format", "target_class_mapping", "image_size"}, by_alias=False
    )
    content = hashlib.sha256(json.dumps([SCHEMA, options], sort_keys=True).encode())
    for source in found:
        listing = source.listing
        for finding in (*listing.skipped, *listing.orphans):
            content.update(f"{finding}\n".encode())
        content.update(f"{listing.images} {listing.other_files}\n".encode())
        for name, path in listing.label_files:
            content.update(f"{name} {sha256_of(path)}\n".encode())
    classes: Counter[str] = Counter()
    training_images: set[str] = set()
    leaked: list[str] = []
    with storage_errors(dataset.uri), ThreadPoolExecutor(workers()) as threads:
        # Training comes first in the plan.
        for item, (image, item_classes) in in_order(threads, _inspect, planned, meter.check):
            content.update(f"{item.subset} {item.sample.name} {image}\n".encode())
            classes.update(item_classes)
            if item.subset == "training":
                training_images.add(image)
            elif image in training_images:
                leaked.append(item.sample.name)
    if classes and not any(mapping.target(name) for name in classes):
        named = ", ".join(f"{name} ({count})" for name, count in classes.most_common(20))
        more = f" and {len(classes) - 20} more" if len(classes) > 20 else ""
        raise RunnerError(
            Reason.UNKNOWN_CLASS,
            f"no label has a class of targetClassMapping: the labels have {named}{more}; "
            f"the mapping's keys are {', '.join(sorted(mapping.targets))}",
        )
    return _Survey(f"sha256:{content.hexdigest()}", leaked)


def _inspect(item: Planned) -> tuple[str, Counter[str]]:
    """Digest of the image, objects by class."""
    classes = item.reader.classes(item.sample)
    return sha256_of(item.sample.image), classes


class _Conversion:
    """Writes the records, the report and, last, the manifest into a folder."""

    def __init__(self, dataset: Dataset, mapping: ClassMapping, survey: _Survey, folder: Path) -> None:
        self._dataset = dataset
        self._mapping = mapping
        self._survey = survey
        self._folder = folder
        self._tally = Tally()
        self._images: Counter[Subset] = Counter()
        self._objects: Counter[tuple[Subset, int]] = Counter()
        self._per_image: Counter[int] = Counter()
        self._report: DatasetReport | None = None

    def run(self, found: Sequence[Source], planned: Sequence[Planned], meter: Meter) -> None:
        """Convert everything."""
        self._tally.add_listings([source.listing for source in found])
        self._tally.add_duplicates(self._survey.leaked, [])
        shards = self._write_records(planned, meter)
        self._report = self._tally.to_report(self._mapping)
        self._write(REPORT, self._report.model_dump_json(indent=1, exclude_none=True))
        self._write(MANIFEST, self._manifest(shards).model_dump_json(indent=1))

    def judge(self) -> None:
        """Fail where the data cannot be trained on.

        Raises:
            RunnerError: ``BadSamples``, ``NoLabels``.
        """
        if self._report is None:
            raise RunnerError(Reason.INTERNAL, "the data were judged before they were converted")
        report.judge(self._report, self._dataset.bad_samples)
        empty = [subset for subset in SUBSETS if not self._images[subset]]
        if empty:
            raise RunnerError(
                Reason.BAD_SAMPLES,
                f"expected at least one usable image for training and one for validation, got none for "
                f"{' and '.join(empty)}: {self._report.usable_images} of {self._report.images} images are "
                "usable",
                "Add images, or correct spec.dataset.validation.",
            )
        present = {subset for subset, _ in self._objects}
        bare = [subset for subset in SUBSETS if subset not in present]
        if bare:
            raise RunnerError(
                Reason.NO_LABELS,
                f"expected objects to learn and to judge by, got none for {' and '.join(bare)}: of "
                f"{self._report.images} images no label line there gives one (see {REPORT})",
            )

    def _write_records(self, planned: Sequence[Planned], meter: Meter) -> list[Shard]:
        from tlt_runner.data import conversion, tfrecords

        meter.start()
        size, mapping = self._dataset.image_size, self._mapping
        writers: dict[Subset, tfrecords.ShardWriter] = {}
        with storage_errors(self._dataset.uri), ExitStack() as stack:
            for subset in SUBSETS:
                count = sum(item.subset == subset for item in planned)
                writer = tfrecords.ShardWriter(self._folder, subset, count, IMAGES_PER_SHARD)
                writers[subset] = stack.enter_context(writer)
            threads = stack.enter_context(ThreadPoolExecutor(workers()))
            results = in_order(
                threads,
                lambda item: conversion.convert(item.sample, item.reader, mapping, size),
                planned,
                meter.check,
            )
            for item, converted in results:
                writers[item.subset].offer(converted.example)
                self._tally.add(item.sample, converted, item.subset)
                if converted.example is not None:
                    self._images[item.subset] += 1
                    self._objects.update((item.subset, class_id) for class_id in converted.objects)
                    self._per_image[len(converted.objects)] += 1
                meter.advance()
        return [shard for subset in SUBSETS for shard in writers[subset].shards]

    def _manifest(self, shards: list[Shard]) -> Manifest:
        classes = range(len(self._mapping.class_names))
        size = self._dataset.image_size
        return Manifest(
            digest=self._survey.digest,
            class_names=list(self._mapping.class_names),
            height=size.height,
            width=size.width,
            mode=size.mode,
            training_images=self._images["training"],
            validation_images=self._images["validation"],
            training_objects=[self._objects["training", class_id] for class_id in classes],
            validation_objects=[self._objects["validation", class_id] for class_id in classes],
            objects_per_image=dict(sorted(self._per_image.items())),
            shards=shards,
        )

    def _write(self, name: str, text: str) -> None:
        with storage_errors(str(self._folder)):
            (self._folder / name).write_text(text + "\n", encoding="utf-8")
