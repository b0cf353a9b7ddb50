"""Prepare a data set: convert it to the records that training reads.

Called first by the train, evaluate and convert tasks. A first pass (stage ``survey``) hashes every file,
which gives the digest of content and options. Unless records of that digest exist, the labels are read for
their classes (which gives the quick answer to a mapping that matches nothing, and the split), and then the
images are converted, shard by shard (:mod:`tlt_runner.data.preparation.shards`). No more than a window of
images is in memory at a time.

The manifest ``<output>/tfrecords/<digest>/dataset.json`` is written last and says that the records are whole.
``<output>/dataset-report.json`` and ``.html`` are written in any case in which there are images and labels,
also when the data are refused.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from tlt_api.dataset import Dataset
from tlt_api.failures import Reason
from tlt_api.model import Anchors
from tlt_runner.cancel import Stop
from tlt_runner.context import Reporter
from tlt_runner.data.class_mapping import ClassMapping
from tlt_runner.data.parallel import StageProgress
from tlt_runner.data.preparation import layout, planning, sources
from tlt_runner.data.preparation.conventions import Conventions
from tlt_runner.data.preparation.fingerprint import Fingerprint, changed, digest_of, fingerprint
from tlt_runner.data.preparation.layout import Layout
from tlt_runner.data.preparation.planning import PlannedSample, PlannedShard
from tlt_runner.data.preparation.sources import Source
from tlt_runner.data.records import (
    MANIFEST,
    REPORT,
    REPORT_PAGE,
    Manifest,
    Records,
    Shard,
    load_records,
)
from tlt_runner.data.report import anchor_fit, html, report
from tlt_runner.data.report.report import DatasetReport
from tlt_runner.data.report.statistics import DatasetStatistics
from tlt_runner.data.sample import SampleOutcome
from tlt_runner.errors import RunnerError, storage_errors
from tlt_runner.storage import Storage, join

log = logging.getLogger(__name__)
_NO_OBJECTS = (
    "See the dataset report: it counts what the labels have instead of objects of the classes to learn."
)


def prepare(
    dataset: Dataset,
    storage: Storage,
    output_uri: str,
    reporter: Reporter | None = None,
    stop: Stop | None = None,
    anchors: Anchors | None = Anchors(),  # noqa: B008 - frozen
) -> Records:
    """Make the records of a data set, or open those that exist.

    Args:
        dataset: What to read and how.
        storage: Reads the data set, writes the records.
        output_uri: Root of the results.
        reporter: Receives the progress (stages ``survey`` and ``convert``) and the summary of the data set.
        stop: Ends the work when it is requested; finished shards stay for the next run.
        anchors: Reference boxes, with which the report compares the objects; None compares none.

    Raises:
        RunnerError: ``DatasetNotFound``, ``NoLabels``, ``UnknownClass``, ``BadSamples``; ``Interrupted``
            after ``stop``; the storage's reasons.
    """
    # Places first: from here on they are in the fields, as if somebody had written them there.
    dataset, found = layout.resolve(dataset, storage)
    folders = sources.find(dataset, storage)
    images = sum(len(source.listing.samples) for source in folders)
    hashes = fingerprint(dataset, storage, folders, StageProgress("survey", images, reporter, stop))
    # 16 hexadecimal digits make a readable folder name; the manifest has the digest in full, and it is
    # compared.
    uri = join(output_uri, "tfrecords", hashes.digest.removeprefix("sha256:")[:16])
    # From here on the labels are read by the conventions that the whole data set has shown.
    folders = hashes.conventions.applied(folders)
    preparation = _Preparation(dataset, storage, output_uri, anchors, reporter, hashes.conventions, found)
    existing = _existing(storage, uri, hashes.digest)
    # Records of the same content and options exist: nothing is converted.
    if existing is not None:
        log.info("%s: records of %s exist at %s", dataset.uri, hashes.digest, uri)
        records, result = existing
        result = preparation.publish_report(result, records)
        # The policy is no part of the digest, so it is applied to existing records, too.
        report.enforce_policy(result, dataset.bad_samples)
    else:
        progress = StageProgress("convert", images, reporter, stop)
        records, result = preparation.run(folders, hashes, uri, progress)
    for note in result.notes:
        log.info("%s: %s", dataset.uri, note)
    for warning in result.warnings:
        log.warning("%s: %s", dataset.uri, warning)
    return records


def _existing(storage: Storage, uri: str, digest: str) -> tuple[Records, DatasetReport] | None:
    """Open the records at an address with their report, if both are whole."""
    # The manifest is written last, so without it the records are not complete.
    if not storage.exists(join(uri, MANIFEST)):
        return None
    try:
        records = load_records(storage, uri, digest)
        return records, DatasetReport.model_validate_json((records.folder / REPORT).read_bytes())
    except RunnerError as error:
        # Damaged records are made again; a storage that fails is another matter, and ends the run.
        if error.reason != Reason.CHECKSUM_MISMATCH:
            raise
        log.warning("damaged files of the records are made again: %s", error.message)
    except (FileNotFoundError, ValidationError) as error:
        log.warning("%s: the report of the records is made again: %s", uri, error)
    return None


class _Preparation:
    """Makes records, and writes the report to the output and its summary to the status."""

    def __init__(
        self,
        dataset: Dataset,
        storage: Storage,
        output_uri: str,
        anchors: Anchors | None,
        reporter: Reporter | None,
        conventions: Conventions,
        found: Layout | None,
    ) -> None:
        self._found = found
        self._dataset = dataset
        self._conventions = conventions
        self._mapping = ClassMapping(dataset.target_class_mapping)
        self._storage = storage
        self._output_uri = output_uri
        self._anchors = anchors
        self._reporter = reporter

    def run(
        self, folders: Sequence[Source], hashes: Fingerprint, uri: str, progress: StageProgress
    ) -> tuple[Records, DatasetReport]:
        """Make the records of a fingerprint.

        Raises:
            RunnerError: ``UnknownClass``, ``BadSamples``, ``NoLabels``; then no records are left.
        """
        # shards imports TensorFlow, which takes seconds; records that exist are opened without it.
        from tlt_runner.data.preparation import shards

        plan = planning.plan(folders, self._dataset, self._storage, progress)
        # The plan has read the lists again; a change since they were hashed would belong to another digest.
        for file in hashes.lists:
            file.raise_if_changed()
        statistics = DatasetStatistics()
        statistics.add_listings([source.listing for source in folders])
        statistics.add_duplicates(*planning.duplicates(plan.items, hashes.images))
        # Before any image is converted: a wrong mapping should fail in seconds, not after hours.
        self._check_classes(plan.classes, statistics)

        # The plan is the same in every run of this digest, so shards of an interrupted run are taken over.
        planned = planning.shards(plan.items)
        folder = shards.ShardFolder(self._storage, uri, hashes.digest)
        # Partial files of killed runs would only fill the claim.
        folder.remove_abandoned()
        shards.make(
            folder,
            planned,
            lambda item: self._convert(item, hashes),
            lambda shard: _check_labels(shard, hashes),
            progress,
        )
        # From the sidecars, not from memory: shards of an earlier run count, too.
        finished = []
        for shard in planned:
            sidecar = folder.sidecar(shard)
            finished.append(sidecar.shard)
            statistics.merge(sidecar.tally)

        result = statistics.to_report(self._mapping)
        # The file of groups is no part of the statistics, so its warnings are added here.
        result = result.model_copy(update={"warnings": [*result.warnings, *plan.warnings]})
        try:
            self._require_usable(result, statistics)
        except RunnerError:
            # Without a manifest nobody reads the shards, and of refused data they only take space.
            self.publish_report(result)
            folder.remove([name for shard in planned for name in (shard.sidecar, shard.name)])
            raise
        manifest = self._manifest(hashes.digest, finished, statistics)
        folder.add(REPORT, result.model_dump_json(indent=1, exclude_none=True))
        # Last: with the manifest the records are complete.
        folder.add(MANIFEST, manifest.model_dump_json(indent=1))
        records = Records(folder.path, uri, hashes.digest, manifest)
        return records, self.publish_report(result, records)

    def publish_report(self, result: DatasetReport, records: Records | None = None) -> DatasetReport:
        """Write the report to the output and its summary to the status; of refused data without records.

        Returns:
            The report with warnings of objects that this job's anchors do not fit. The one beside the records
            is for all anchors.
        """
        result = self._write(result)
        if self._reporter is not None:
            page_uri = join(self._output_uri, REPORT_PAGE)
            digest, uri = (None, None) if records is None else (records.digest, records.uri)
            # The status gets the counts; lists of findings stay in the report, since etcd limits a resource
            # to 1.5 MB.
            self._reporter.report(report.to_status(result, page_uri, digest, uri))
        return result

    def _write(self, result: DatasetReport) -> DatasetReport:
        """Write the report, with conventions and warnings about the anchors, as JSON and as a page."""
        # By this job's spec, as the anchors below: records that exist may have been made for another setting
        # that came to the same.
        conventions = self._conventions
        result = result.model_copy(
            update={
                "coordinates": conventions.coordinates,
                "orientation": conventions.orientation,
                "layout": None if self._found is None else str(self._found),
                # What was decided for all labels comes first: the status shows the first five.
                "warnings": [*conventions.warnings, *result.warnings],
            }
        )
        fits: list[anchor_fit.Fit] = []
        if self._anchors is not None:
            fits = anchor_fit.by_class_and_size(result, self._anchors, self._dataset.image_size)
            warnings = [*result.warnings, *anchor_fit.warnings(fits, self._anchors)]
            result = result.model_copy(update={"warnings": warnings})
        pictures = html.thumbnails(result, self._image_of, conventions.turned)
        texts = {
            REPORT: result.model_dump_json(indent=1, exclude_none=True) + "\n",
            REPORT_PAGE: html.render(result, self._anchors, fits, pictures),
        }
        # The same name at the output for all preparations: the newest report is the one that people look for.
        for name, text in texts.items():
            with storage_errors(str(self._storage.scratch)):
                self._storage.scratch.mkdir(parents=True, exist_ok=True)
                # The storage publishes whole files: a reader of the output never meets half a report.
                local = self._storage.scratch / name
                local.write_text(text, encoding="utf-8")
            self._storage.publish(local, join(self._output_uri, name))
        return result

    def _image_of(self, file: str) -> Path | None:
        try:
            return self._storage.at_hand(join(self._dataset.uri, file))
        except RunnerError:  # a link that leads out of the claim, which the report names
            return None

    def _convert(self, item: PlannedSample, hashes: Fingerprint) -> SampleOutcome:
        from tlt_runner.data.images import decode
        from tlt_runner.data.preparation import convert

        sample = item.sample
        with storage_errors(self._dataset.uri):
            try:
                data = decode.read(sample.image)
            except decode.BadImageError as error:
                # Gone since it was listed: not a bad image, but a data set that changes under the run.
                if not sample.image.exists():
                    raise changed(sample.image_file) from error
                return convert.refused(sample, error)
        # The same bytes that were hashed: the records are what their digest says.
        if digest_of(data) != hashes.images[sample.name]:
            raise changed(sample.image_file)
        return convert.convert(sample, data, item.reader, self._mapping, self._dataset.image_size)

    def _check_classes(self, classes: Counter[str], statistics: DatasetStatistics) -> None:
        """Fail if no label has a class of the mapping; the report then lists the labels' classes."""
        # One matching class is enough: a mapping may name classes that this data set does not have.
        if not classes or any(self._mapping.target(name) for name in classes):
            return
        statistics.source_classes.update(classes)
        self._write(statistics.to_report(self._mapping))
        named = ", ".join(f"{name} ({count})" for name, count in classes.most_common(20))
        more = f" and {len(classes) - 20} more" if len(classes) > 20 else ""
        raise RunnerError(
            Reason.UNKNOWN_CLASS,
            f"no label has a class of targetClassMapping: the labels have {named}{more}; "
            f"the mapping's keys are {', '.join(sorted(self._mapping.targets))}",
        )

    def _require_usable(self, result: DatasetReport, statistics: DatasetStatistics) -> None:
        """Fail if the data cannot be trained on.

        Raises:
            RunnerError: ``BadSamples``, ``NoLabels``.
        """
        # The policy first: its message names the files at fault, which most often explain the other two.
        report.enforce_policy(result, self._dataset.bad_samples)
        report.require_both_subsets(result)
        objects = {"training": statistics.training_objects, "validation": statistics.validation_objects}
        # Without training objects there is nothing to learn, and without validation objects no mAP.
        without_objects = [subset for subset, counts in objects.items() if not counts.total()]
        difficult = statistics.difficult_validation_objects.total()
        if without_objects:
            # Why there is none: most often all labels are of one kind that counts for nothing.
            lines = {
                "ignored regions (iscrowd, DontCare)": result.ignored_regions,
                "lines of classes not in targetClassMapping": sum(result.unmapped_classes.values()),
                "lines dropped": sum(result.dropped_by_problem.values()),
            }
            counts = [f"{count} {kind}" for kind, count in lines.items() if count]
            reasons = [f"the labels have {', '.join(counts)}"] if counts else []
            raise RunnerError(
                Reason.NO_LABELS,
                "; ".join(
                    [
                        "expected objects to learn and to judge by, got none for "
                        f"{' and '.join(without_objects)}: of {result.images} images no label line there "
                        f"gives one (see {REPORT})",
                        *reasons,
                        # As many as a resource's status has room for.
                        *statistics.label_warnings[:3],
                    ]
                ),
                # The taxonomy's hint blames the folder of the labels, which were found.
                _NO_OBJECTS,
            )
        # Evaluation leaves them out of account: mAP would be empty, and no model the best one.
        if difficult == statistics.validation_objects.total():
            raise RunnerError(
                Reason.NO_LABELS,
                f"expected validation objects to judge by, got {difficult} that are all difficult (VOC "
                "<difficult>, KITTI occlusion of at least 1), which evaluation leaves out of account",
                "Correct these marks in the labels (a tool that writes one value for all objects knows "
                "nothing about them), or name validation images with other objects in "
                "spec.dataset.validation.",
            )

    def _manifest(self, digest: str, finished: list[Shard], statistics: DatasetStatistics) -> Manifest:
        classes = range(len(self._mapping.class_names))
        size = self._dataset.image_size
        return Manifest(
            digest=digest,
            class_names=list(self._mapping.class_names),
            height=size.height,
            width=size.width,
            mode=size.mode,
            orientation=self._conventions.view,
            training_images=statistics.usable_images["training"],
            validation_images=statistics.usable_images["validation"],
            training_objects=[statistics.training_objects[class_id] for class_id in classes],
            validation_objects=[statistics.validation_objects[class_id] for class_id in classes],
            objects_per_image=dict(sorted(statistics.objects_per_image.items())),
            ignored_per_image=dict(sorted(statistics.ignored_per_image.items())),
            shards=finished,
        )


def _check_labels(shard: PlannedShard, hashes: Fingerprint) -> None:
    """Check that the labels of a shard are those of the fingerprint."""
    # A set: all samples of a coco data set share one file, which is checked once.
    for name in {item.sample.label_file for item in shard.items}:
        if name in hashes.labels:
            hashes.labels[name].raise_if_changed()
