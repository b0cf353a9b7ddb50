"""Decide over a whole data set by which conventions its labels are read, and say what decided it.

Two things no single label file can tell, because tools write the same fields for both:

- whether VOC edges count pixels from 1, as VOC defines it, or from 0, as many tools write them;
- whether the labels of photos with an EXIF orientation were drawn on the pixels as stored or on the turned
  view.

Called by :mod:`~tlt_runner.data.preparation.fingerprint`, which reads every file anyway and collects the
clues, and by :mod:`~tlt_runner.data.preparation.export_folder`. The decision depends on the files and the
spec alone; where it changes a record, it is part of the digest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tlt_api.dataset import Coordinates, Dataset, Orientation
from tlt_api.status import LabelConvention
from tlt_runner.data import formats
from tlt_runner.data.formats import lines
from tlt_runner.data.formats.format import EdgeEvidence
from tlt_runner.data.formats.voc import MAX_BYTES, VocReader
from tlt_runner.data.images import decode
from tlt_runner.data.images import orientation as exif
from tlt_runner.data.parallel import StageProgress, in_order, workers
from tlt_runner.data.preparation.sources import Source
from tlt_runner.data.sample import Reader, Sample
from tlt_runner.errors import storage_errors

EdgeCounter = Callable[[str, Path], EdgeEvidence]
View = Literal["stored", "exif"]
SLACK = 2.0
"""Pixels beyond an image's edge up to which a box counts as inside: tools round, and count from 0 or 1."""
BATCH = 16
"""Files that a thread reads at a time."""


@dataclass
class Clues:
    """Evidence in the files of a data set about its conventions.

    Attributes:
        edges: Boxes at the edges of their images; empty but for VOC.
        turned: Images with an EXIF orientation other than upright, with their readers and orientations.
    """

    edges: EdgeEvidence = EdgeEvidence()
    turned: list[tuple[Reader, Sample, int]] = field(default_factory=list)

    def add_image(self, reader: Reader, sample: Sample, orientation: int) -> None:
        """Add an image with its EXIF orientation."""
        if orientation != 1:
            self.turned.append((reader, sample, orientation))


@dataclass(frozen=True)
class Conventions:
    """Conventions of a data set.

    Attributes:
        zero_based: VOC edges count from 0.
        turned: Path of an image, relative to the root -> EXIF orientation to apply to it.
        coordinates: What decided the first; None for formats that leave no choice.
        orientation: What decided the second; None if no image has an EXIF orientation.
        warnings: Sentences for a person to look at: nothing decided, or contradictions.
    """

    zero_based: bool = False
    turned: dict[str, int] = field(default_factory=dict)
    coordinates: LabelConvention | None = None
    orientation: LabelConvention | None = None
    warnings: Sequence[str] = ()

    @property
    def changes(self) -> str:
        """Differences from edges as the format defines them and pixels as stored; "" for none."""
        changes = ["coordinates zeroBased\n"] if self.zero_based else []
        return "".join([*changes, *(f"turned {name} {how}\n" for name, how in sorted(self.turned.items()))])

    @property
    def view(self) -> View:
        """View that a detector trained on the data set has learnt: of most of the images with a tag."""
        return "exif" if self.orientation is not None and self.orientation.value == "exif" else "stored"

    def applied(self, sources: Sequence[Source]) -> list[Source]:
        """Return the sources with readers and samples that follow the conventions."""
        if not self.changes:
            return list(sources)
        return [
            replace(
                source,
                reader=_zero_based(source.reader) if self.zero_based else source.reader,
                listing=replace(
                    source.listing,
                    samples=[
                        replace(sample, orientation=self.turned.get(sample.image_file, 1))
                        for sample in source.listing.samples
                    ],
                ),
            )
            for source in sources
        ]


def _zero_based(reader: Reader) -> Reader:
    # Only VOC has clues about its edges, so only its reader comes here.
    return reader.zero_based() if isinstance(reader, VocReader) else reader


def edge_evidence_of(dataset: Dataset) -> EdgeCounter:
    """Return the function that counts a label file's boxes at the edges; of most formats it counts none."""
    count = formats.FORMATS[dataset.format].edge_evidence
    if count is None:
        return lambda name, path: EdgeEvidence()

    def counted(name: str, path: Path) -> EdgeEvidence:
        try:
            return count(lines.content(path, MAX_BYTES), name)
        except ValueError:  # its reader reports it
            return EdgeEvidence()

    return counted


def look(dataset: Dataset, sources: Sequence[Source], progress: StageProgress | None = None) -> Clues:
    """Read what a data set tells about its conventions, where no fingerprint is needed.

    Raises:
        RunnerError: The storage's reasons; ``Interrupted``.
    """
    clues = Clues()
    count = edge_evidence_of(dataset)
    with storage_errors(dataset.uri), ThreadPoolExecutor(workers()) as threads:
        for source in sources:
            for _, edges in in_order(
                threads, lambda item: count(*item), source.listing.label_files, progress, BATCH
            ):
                clues.edges += edges
            for sample, turned in in_order(threads, _orientation, source.listing.samples, progress, BATCH):
                clues.add_image(source.reader, sample, turned)
    return clues


def _orientation(sample: Sample) -> int:
    try:
        return exif.of_file(sample.image)
    except (PermissionError, FileNotFoundError):  # reported when it is converted
        return 1


def decide(dataset: Dataset, clues: Clues, progress: StageProgress | None = None) -> Conventions:
    """Decide the conventions of a data set; reads the labels of images with an EXIF orientation.

    Raises:
        RunnerError: The storage's reasons; ``Interrupted``.
    """
    warnings: list[str] = []
    coordinates = None
    if formats.FORMATS[dataset.format].edge_evidence is not None:
        coordinates, warning = decide_coordinates(dataset.coordinates, clues.edges)
        warnings += warning
    with storage_errors(dataset.uri):
        verdicts = _verdicts(clues.turned, progress)
        orientation, turned, warning = _decide_orientation(dataset.orientation, clues, verdicts)
    return Conventions(
        zero_based=coordinates is not None and coordinates.value == "zeroBased",
        turned=turned,
        coordinates=coordinates,
        orientation=orientation,
        warnings=[*warnings, *warning],
    )


def decide_coordinates(setting: Coordinates, edges: EdgeEvidence) -> tuple[LabelConvention, list[str]]:
    """Decide whether VOC edges count from 0 or from 1, by the boxes at the edges of all images.

    Counted from 1, no box begins below 1, so a box at 0 says that the tool counts from 0; such a tool puts
    the boxes that touch the left or top edge at 0, one that counts from 1 puts them at 1. Where both occur,
    the greater number decides, because a few slips are found in any data set. A box that ends at the width or
    height fits both, since edges counted from 0 end there, too; it tells that boxes touch edges at all.

    Returns:
        The decision, and warnings: of a contradiction, or that nothing decides.
    """
    counts = (
        f"boxes: {edges.boxes}; beginning at 0: {edges.at_zero}{_example(edges.zero_file)}, at 1: "
        f"{edges.at_one}{_example(edges.one_file)}; ending at the width or height: {edges.at_end}"
    )
    use = "if the tool counts from {}, set spec.dataset.coordinates: {}"
    warnings: list[str] = []
    if setting != "auto":
        opposite = edges.at_zero > edges.at_one if setting == "oneBased" else edges.at_one > edges.at_zero
        if opposite:
            warnings.append(f"spec.dataset.coordinates is {setting}, which the boxes contradict: {counts}")
        return LabelConvention(value=setting, decided_by="spec", evidence=counts), warnings
    if edges.at_zero and edges.at_zero >= edges.at_one:
        if edges.at_one:
            warnings.append(
                f"the VOC labels are taken to count pixels from 0: {counts}; {use.format(1, 'oneBased')}"
            )
        return LabelConvention(value="zeroBased", decided_by="evidence", evidence=counts), warnings
    if edges.at_zero:
        warnings.append(
            f"the VOC labels are taken to count pixels from 1, though some boxes begin at 0: {counts}; "
            f"{use.format(0, 'zeroBased')}"
        )
    elif not edges.at_one and not edges.at_end and edges.fractions:
        # VOC itself has whole numbers; fractions come from tools, most of which count from 0.
        warnings.append(
            f"nothing tells whether the VOC labels count pixels from 0 or from 1: {counts}; "
            f"with fractions: {edges.fractions}, which most often come from a tool that counts from 0. They "
            f"are taken to count from 1; {use.format(0, 'zeroBased')}"
        )
    decided: Literal["evidence", "default"] = "evidence" if edges.at_one or edges.at_end else "default"
    return LabelConvention(value="oneBased", decided_by=decided, evidence=counts), warnings


def _example(file: str) -> str:
    return f" (as in {file})" if file else ""


@dataclass(frozen=True)
class _Verdict:
    """Evidence in the label of one image about the view on which it was drawn.

    Attributes:
        view: The view; None if the label tells nothing.
        by_size: The label states the image's size in that view, which is proof for this image.
    """

    view: View | None = None
    by_size: bool = False


def _verdicts(
    turned: Sequence[tuple[Reader, Sample, int]], progress: StageProgress | None
) -> dict[str, _Verdict]:
    """Read the labels of images with an EXIF orientation: path of the image -> what its label tells."""
    with ThreadPoolExecutor(workers()) as threads:
        judged = in_order(threads, lambda item: _verdict(*item), turned, progress, BATCH)
        return {sample.image_file: verdict for (_, sample, _), verdict in judged}


def _decide_orientation(
    setting: Orientation, clues: Clues, verdicts: Mapping[str, _Verdict]
) -> tuple[LabelConvention | None, dict[str, int], list[str]]:
    """Decide which images are turned by their EXIF orientation.

    An image whose label states its size follows that size; the others follow the greater number, because one
    tool has labelled them all, whatever the turn: half turns and mirrored images tell nothing by themselves.
    """
    if not clues.turned:
        # Said nevertheless: a model that was trained so turns the photos that it is given.
        said = LabelConvention(value=setting, decided_by="spec", evidence="no image has an EXIF orientation")
        return (said if setting == "exif" else None), {}, []
    all_turned = {sample.image_file: how for _, sample, how in clues.turned}
    by_view = Counter(verdict.view for verdict in verdicts.values())
    example = {
        view: next((s.label_file for _, s, _ in clues.turned if verdicts[s.image_file].view == view), "")
        for view in ("stored", "exif")
    }
    counts = (
        f"images with an EXIF orientation: {len(all_turned)}; labels of the turned view: {by_view['exif']}"
        f"{_example(example['exif'])}, of the pixels as stored: {by_view['stored']}"
        f"{_example(example['stored'])}, that do not tell: {by_view[None]}"
    )
    warnings: list[str] = []
    if setting != "auto":
        if by_view["exif" if setting == "stored" else "stored"]:
            warnings.append(f"spec.dataset.orientation is {setting}, which labels contradict: {counts}")
        turned = all_turned if setting == "exif" else {}
        return LabelConvention(value=setting, decided_by="spec", evidence=counts), turned, warnings
    view: View = "exif" if by_view["exif"] > by_view["stored"] else "stored"
    if not by_view["exif"] and not by_view["stored"]:
        warnings.append(
            f"{counts}. Square images, half turns and coordinates that are shares of the size tell "
            "nothing. The labels are taken to be of the pixels as stored; if they were drawn on the turned "
            "view, as most annotation tools show it, set spec.dataset.orientation: exif"
        )
        return LabelConvention(value=view, decided_by="default", evidence=counts), {}, warnings
    if by_view["exif"] and by_view["stored"]:
        warnings.append(
            f"{counts}. Labels that state the image's size are read as they say, all others as of "
            f"{'the turned view' if view == 'exif' else 'the pixels as stored'}; spec.dataset.orientation "
            "says otherwise"
        )
    turned = {
        name: how
        for name, how in all_turned.items()
        if (verdicts[name].view if verdicts[name].by_size else view) == "exif"
    }
    return LabelConvention(value=view, decided_by="evidence", evidence=counts), turned, warnings


def _verdict(reader: Reader, sample: Sample, orientation: int) -> _Verdict:
    """Tell by a label on which view it was drawn."""
    try:
        stored = decode.size_of_file(sample.image)
    except decode.BadImageError:  # reported when it is converted
        return _Verdict()
    turned = exif.upright_size(*stored, orientation)
    if turned == stored:
        return _Verdict()
    labels = reader.read(sample, stored)
    if labels.image_size is not None:
        views: dict[tuple[int, int], View] = {stored: "stored", turned: "exif"}
        view = views.get(labels.image_size)
        return _Verdict(view, by_size=view is not None)
    # Shares of the image's size lie inside every view.
    if reader.read(sample, turned).boxes != labels.boxes:
        return _Verdict()
    # Without a size: boxes that lie outside of one view and all inside the other.
    ends = [box.yxyx[2:] for box in (*labels.boxes, *labels.ignored)]
    fits = {
        view: all(y2 <= height + SLACK and x2 <= width + SLACK for y2, x2 in ends)
        for view, (height, width) in (("stored", stored), ("exif", turned))
    }
    if fits["stored"] == fits["exif"]:
        return _Verdict()
    return _Verdict("stored" if fits["stored"] else "exif")
