"""From a data set as people have it to records that training reads.

Called first by the train, evaluate and convert tasks. A survey hashes every file, which gives the digest of
content and options. Unless records of that digest are there already, the labels are read for the classes they
have (which gives the quick answer to a mapping that matches nothing, and the split), and then the images are
converted, shard by shard (:mod:`tlt_runner.data.preparation.shards`). None of it holds more than a window of
images in memory.

The manifest ``<output>/tfrecords/<digest>/dataset.json`` is written last and says that the records are whole.
``<output>/dataset-report.json`` and ``.html`` are written in any case in which there are images and labels,
also when the data are refused.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from threading import Event

from pydantic import ValidationError

from tlt_api.dataset import Dataset
from tlt_api.failures import Reason
from tlt_api.model import Anchors
from tlt_runner.context import Reporter
from tlt_runner.data.class_mapping import ClassMapping
from tlt_runner.data.parallel import Meter
from tlt_runner.data.preparation import planning, sources
from tlt_runner.data.preparation.fingerprint import Survey, changed, digest_of, survey
from tlt_runner.data.preparation.planning import Planned, PlannedShard
from tlt_runner.data.preparation.sources import Source
from tlt_runner.data.records import (
    MANIFEST,
    REPORT,
    REPORT_PAGE,
    SUBSETS,
    Manifest,
    Records,
    Shard,
    load_records,
)
from tlt_runner.data.report import html, report
from tlt_runner.data.report.report import DatasetReport
from tlt_runner.data.report.statistics import Tally
from tlt_runner.data.sample import Converted
from tlt_runner.errors import RunnerError, storage_errors
from tlt_runner.storage import Storage, join

log = logging.getLogger(__name__)


def prepare(
    dataset: Dataset,
    storage: Storage,
    output_uri: str,
    reporter: Reporter | None = None,
    stop: Event | None = None,
    anchors: Anchors = Anchors(),  # noqa: B008 - frozen
) -> Records:
    """Make the records of a data set, or find them made.

    Args:
        dataset: What to read and how.
        storage: Reads the data set, writes the records.
        output_uri: Root of the results.
        reporter: Is told of progress (stages ``survey`` and ``convert``) and of what was found.
        stop: Ends the work when it is set; what was finished stays for the next run.
        anchors: Reference boxes, against which the report draws the objects' sizes.

    Raises:
        RunnerError: ``DatasetNotFound``, ``NoLabels``, ``UnknownClass``, ``BadSamples``; ``Interrupted``
            after ``stop``; the storage's reasons.
    """
    found = sources.find(dataset, storage)
    images = sum(len(source.listing.samples) for source in found)
    seen = survey(dataset, storage, found, Meter("survey", images, reporter, stop))
    uri = join(output_uri, "tfrecords", seen.digest.removeprefix("sha256:")[:16])
    preparation = _Preparation(dataset, storage, output_uri, anchors, reporter)
    there = _existing(storage, uri, seen.digest)
    if there is not None:
        log.info("%s: records of %s are at %s already", dataset.uri, seen.digest, uri)
        records, result = there
        preparation.tell(result, records)
        report.judge(result, dataset.bad_samples)
    else:
        records, result = preparation.run(found, seen, uri, Meter("convert", images, reporter, stop))
    for warning in result.warnings:
        log.warning("%s: %s", dataset.uri, warning)
    return records


def _existing(storage: Storage, uri: str, digest: str) -> tuple[Records, DatasetReport] | None:
    """The records at an address with their report, if both are whole."""
    if not storage.exists(join(uri, MANIFEST)):
        return None
    try:
        records = load_records(storage, uri, digest)
        return records, DatasetReport.model_validate_json((records.folder / REPORT).read_bytes())
    except RunnerError as error:
        if error.reason != Reason.CHECKSUM_MISMATCH:
            raise
        log.warning("what is damaged of the records is made again: %s", error.message)
    except (FileNotFoundError, ValidationError) as error:
        log.warning("%s: the report of the records is made again: %s", uri, error)
    return None


class _Preparation:
    """Makes records, and tells people in the output's report and the resource's status."""

    def __init__(
        self,
        dataset: Dataset,
        storage: Storage,
        output_uri: str,
        anchors: Anchors,
        reporter: Reporter | None,
    ) -> None:
        self._dataset = dataset
        self._mapping = ClassMapping(dataset.target_class_mapping)
        self._storage = storage
        self._output_uri = output_uri
        self._anchors = anchors
        self._reporter = reporter

    def run(
        self, found: Sequence[Source], seen: Survey, uri: str, meter: Meter
    ) -> tuple[Records, DatasetReport]:
        """Make the records of a survey.

        Raises:
            RunnerError: ``UnknownClass``, ``BadSamples``, ``NoLabels``; then no records are left.
        """
        from tlt_runner.data.preparation import shards

        plan = planning.plan(found, self._dataset, self._storage, meter.check)
        for file in seen.lists:
            file.check()
        tally = Tally()
        tally.add_listings([source.listing for source in found])
        tally.add_duplicates(*planning.duplicates(plan.items, seen.images))
        self._check_classes(plan.classes, tally)
        planned = planning.shards(plan.items)
        folder = shards.ShardFolder(self._storage, uri, seen.digest)
        folder.remove_abandoned()
        shards.make(
            folder,
            planned,
            lambda item: self._convert(item, seen),
            lambda shard: _check_labels(shard, seen),
            meter,
        )
        its_shards = []
        for shard in planned:
            sidecar = folder.sidecar(shard)
            its_shards.append(sidecar.shard)
            tally.merge(sidecar.tally)
        result = tally.to_report(self._mapping)
        result = result.model_copy(update={"warnings": [*result.warnings, *plan.warnings]})
        try:
            self._judge(result, tally)
        except RunnerError:
            self.tell(result)
            folder.remove([name for shard in planned for name in (shard.sidecar, shard.name)])
            raise
        manifest = self._manifest(seen.digest, its_shards, tally)
        folder.add(REPORT, result.model_dump_json(indent=1, exclude_none=True))
        folder.add(MANIFEST, manifest.model_dump_json(indent=1))
        records = Records(folder.path, uri, seen.digest, manifest)
        self.tell(result, records)
        return records, result

    def tell(self, result: DatasetReport, records: Records | None = None) -> None:
        """Write the report to the output and its summary to the status; without records where refused."""
        self._write(result)
        if self._reporter is not None:
            page_uri = join(self._output_uri, REPORT_PAGE)
            digest, uri = (None, None) if records is None else (records.digest, records.uri)
            self._reporter.report(report.to_status(result, page_uri, digest, uri))

    def _write(self, result: DatasetReport) -> None:
        """The report, for programs and for people."""
        pictures = html.thumbnails(result, self._image_of)
        texts = {
            REPORT: result.model_dump_json(indent=1, exclude_none=True) + "\n",
            REPORT_PAGE: html.render(result, self._anchors, pictures),
        }
        for name, text in texts.items():
            with storage_errors(str(self._storage.scratch)):
                self._storage.scratch.mkdir(parents=True, exist_ok=True)
                local = self._storage.scratch / name
                local.write_text(text, encoding="utf-8")
            self._storage.publish(local, join(self._output_uri, name))

    def _image_of(self, file: str) -> Path | None:
        try:
            return self._storage.at_hand(join(self._dataset.uri, file))
        except RunnerError:  # a link that leads out of the claim, which the report names
            return None

    def _convert(self, item: Planned, seen: Survey) -> Converted:
        from tlt_runner.data import box_transform
        from tlt_runner.data.images import decode
        from tlt_runner.data.preparation import convert

        sample = item.sample
        with storage_errors(self._dataset.uri):
            try:
                data = decode.read(sample.image)
            except decode.BadImageError as error:
                if not sample.image.exists():
                    raise changed(sample.image_file) from error
                return box_transform.refused(sample, error)
        if digest_of(data) != seen.images[sample.name]:
            raise changed(sample.image_file)
        return convert.convert(sample, data, item.reader, self._mapping, self._dataset.image_size)

    def _check_classes(self, classes: Counter[str], tally: Tally) -> None:
        """Fail where no label has a class of the mapping; the report then has the labels' classes."""
        if not classes or any(self._mapping.target(name) for name in classes):
            return
        tally.source_classes.update(classes)
        self._write(tally.to_report(self._mapping))
        named = ", ".join(f"{name} ({count})" for name, count in classes.most_common(20))
        more = f" and {len(classes) - 20} more" if len(classes) > 20 else ""
        raise RunnerError(
            Reason.UNKNOWN_CLASS,
            f"no label has a class of targetClassMapping: the labels have {named}{more}; "
            f"the mapping's keys are {', '.join(sorted(self._mapping.targets))}",
        )

    def _judge(self, result: DatasetReport, tally: Tally) -> None:
        """Fail where the data cannot be trained on.

        Raises:
            RunnerError: ``BadSamples``, ``NoLabels``.
        """
        report.judge(result, self._dataset.bad_samples)
        empty = [subset for subset in SUBSETS if not tally.usable_images[subset]]
        if empty:
            raise RunnerError(
                Reason.BAD_SAMPLES,
                f"expected at least one usable image for training and one for validation, got none for "
                f"{' and '.join(empty)}: {result.usable_images} of {result.images} images are usable",
                "Add images, or correct spec.dataset.validation.",
            )
        objects = {"training": tally.training_objects, "validation": tally.validation_objects}
        bare = [subset for subset in SUBSETS if not objects[subset].total()]
        if bare:
            raise RunnerError(
                Reason.NO_LABELS,
                f"expected objects to learn and to judge by, got none for {' and '.join(bare)}: of "
                f"{result.images} images no label line there gives one (see {REPORT})",
            )

    def _manifest(self, digest: str, its_shards: list[Shard], tally: Tally) -> Manifest:
        classes = range(len(self._mapping.class_names))
        size = self._dataset.image_size
        return Manifest(
            digest=digest,
            class_names=list(self._mapping.class_names),
            height=size.height,
            width=size.width,
            mode=size.mode,
            training_images=tally.usable_images["training"],
            validation_images=tally.usable_images["validation"],
            training_objects=[tally.training_objects[class_id] for class_id in classes],
            validation_objects=[tally.validation_objects[class_id] for class_id in classes],
            objects_per_image=dict(sorted(tally.objects_per_image.items())),
            shards=its_shards,
        )


def _check_labels(shard: PlannedShard, seen: Survey) -> None:
    """See that the labels of a shard are those that were surveyed."""
    for name in {item.sample.label_file for item in shard.items}:
        if name in seen.labels:
            seen.labels[name].check()
