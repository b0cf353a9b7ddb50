"""``tlt infer``: detect objects in a folder of images, without a resource and without a cluster.

The output folder gets ``images/`` with copies of the images, detections drawn in; ``labels/`` with a KITTI
file of 16 columns an image, the last of which is the score; ``inference-report.json``. Unusable images are
left out and reported, and no existing file is touched unless an earlier inference has made it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from posixpath import splitext

import numpy as np
import numpy.typing as npt

from tlt_api.failures import Reason
from tlt_runner.cancel import Stop
from tlt_runner.context import Reporter
from tlt_runner.data.formats.kitti import KittiWriter
from tlt_runner.data.formats.names import stem
from tlt_runner.data.images import decode, geometry, orientation
from tlt_runner.data.images.decode import BadImageError
from tlt_runner.data.images.geometry import Placement
from tlt_runner.data.parallel import StageProgress, workers
from tlt_runner.data.report.report import ReportedFinding
from tlt_runner.data.sample import Finding, Oddity, Problem
from tlt_runner.detector import model as detector
from tlt_runner.detector.model import FasterRCNN
from tlt_runner.errors import InterruptedRunError, RunnerError, storage_errors
from tlt_runner.evaluation import visualize
from tlt_runner.evaluation.evaluate import keras_detector
from tlt_runner.files import sha256_of
from tlt_runner.inference import detections
from tlt_runner.inference.detections import ImageDetections
from tlt_runner.inference.output_folder import OutputFolder
from tlt_runner.inference.report import REPORT, InferenceReport, named
from tlt_runner.inference.request import CheckedRequest, Request

log = logging.getLogger(__name__)
BATCH = 4
"""Images that go through the model at once; twice as many are decoded at a time."""


@dataclass(frozen=True)
class _Loaded:
    """An image: path, pixels in the model's view (BGR), as the network takes them (RGB), and oddities."""

    name: str
    pixels: npt.NDArray[np.uint8]
    network: npt.NDArray[np.uint8]
    placement: Placement
    oddities: tuple[Oddity, ...]


def run(request: Request, checked: CheckedRequest, reporter: Reporter, stop: Stop) -> InferenceReport:
    """Infer, and write images, labels and the report.

    Args:
        request: The command's arguments.
        checked: The request's model and images, as :func:`tlt_runner.inference.request.check` gives them.
        reporter: Receives progress (stage ``infer``).
        stop: Ends the run after the images in work.

    Raises:
        RunnerError: BadSamples where no image can be used (with the report written); InvalidSpec for an
            output folder of someone else; Interrupted; UnreadableModel; the storage's reasons.
    """
    with OutputFolder.opened(request.output) as output:
        # The model is loaded after the folder is open: a folder that is refused costs no seconds.
        model = detector.load(checked.model)
        inference = _Inference(request, model, output, checked.unusable)
        progress = StageProgress("infer", len(checked.images), reporter, stop)
        interrupted: InterruptedRunError | None = None
        # Interrupted, it still writes its report: what it lists belongs to us, and the next run replaces it.
        try:
            inference.run(checked.images, progress)
        except InterruptedRunError as error:
            interrupted = error
        report = inference.report(sha256_of(checked.model), whole=interrupted is None)
        # Counts of what the folder holds, beside those of what went through the model.
        listed = {
            "images": len(checked.images) + len(checked.unusable),
            "other_files": list(checked.other_files),
        }
        report = output.finish(report.model_copy(update=listed))
    if interrupted is not None:
        raise InterruptedRunError(
            f"{interrupted.message}; {len(report.files)} files are in {request.output}",
            "The same command does the whole again.",
        )
    _require_inferred(report)
    return report


class _Inference:
    """A running inference: detects, draws and counts."""

    def __init__(
        self, request: Request, model: FasterRCNN, output: OutputFolder, skipped: Sequence[Finding]
    ) -> None:
        self._request = request
        self._config = model.config
        self._detect = keras_detector(model)
        self._output = output
        self._skipped = list(skipped)
        # Keys: inferred, empty, clipped, outside.
        self._counts: Counter[str] = Counter()
        self._by_class: Counter[int] = Counter()
        self._oddities: Counter[Oddity] = Counter()
        self._label_names = [KittiWriter.class_name(name) for name in self._config.class_names]
        self._stems: dict[str, str] = {}
        # Without --score the thresholds of the model's evaluation; older models have none.
        own = self._config.score_thresholds if request.score is None else None
        self._by_model = own is not None
        same = visualize.DEFAULT_SCORE if request.score is None else request.score
        self._scores = own or [same] * self._config.classes

    def run(self, names: Sequence[str], progress: StageProgress) -> None:
        """Infer all images."""
        floor = self._config.detections.score_threshold
        # Detections below the model's own threshold never leave it, whatever --score says.
        if min(self._scores) < floor:
            log.warning("the model itself leaves out detections with a score below %g", floor)
        # a.jpg and a.png would share the label file a.txt: the first one in order is used.
        usable = [name for name in names if self._has_own_label(name)]
        progress.skip(len(names) - len(usable))
        with ThreadPoolExecutor(workers()) as threads:
            for chunk in _chunks(threads, self._load, usable):
                progress.raise_if_stopped()
                loaded = [item for item in chunk if isinstance(item, _Loaded)]
                for item in chunk:
                    if isinstance(item, Finding):
                        self._skip(item)
                if loaded:
                    # In this thread: the model uses all cores by itself.
                    self._infer(loaded, threads)
                # Skipped images count as done, too: the progress is of all files.
                for _ in chunk:
                    progress.advance()

    def report(self, model_sha256: str, *, whole: bool) -> InferenceReport:
        """Return the report so far."""
        names = self._config.class_names
        skipped = sorted(self._skipped, key=lambda finding: finding.file)
        by_problem = Counter(finding.problem for finding in skipped)
        return InferenceReport(
            model=self._request.model,
            model_sha256=model_sha256,
            images_folder=str(self._request.images),
            score=None if self._by_model else self._scores[0],
            class_scores=dict(zip(names, self._scores, strict=True)) if self._by_model else {},
            whole=whole,
            inferred_images=self._counts["inferred"],
            images_without_detections=self._counts["empty"],
            odd_images=dict(sorted(self._oddities.items())),
            detections={name: self._by_class[index] for index, name in enumerate(names)},
            clipped_boxes=self._counts["clipped"],
            outside_boxes=self._counts["outside"],
            label_names={
                name: written
                for name, written in zip(names, self._label_names, strict=True)
                if name != written
            },
            skipped_by_problem=dict(sorted(by_problem.items())),
            skipped=[
                ReportedFinding(file=item.file, problem=item.problem, message=item.message)
                for item in skipped
            ],
        )

    def _has_own_label(self, name: str) -> bool:
        """Return True if no image before has the same label file; else report the image as skipped."""
        used = self._stems.setdefault(stem(name), name)
        if used != name:
            message = f"{used} has the same stem, so the same label file, and is used"
            self._skip(Finding(name, Problem.DUPLICATE_NAME, message))
        return used == name

    def _skip(self, finding: Finding) -> None:
        self._skipped.append(finding)
        log.warning("left out: %s", finding)

    def _load(self, name: str) -> _Loaded | Finding:
        import cv2

        try:
            # An error of the storage ends the inference; only a bad image is skipped.
            with storage_errors(str(self._request.images)):
                data = decode.read(self._request.images / name)
            decoded = decode.decode(data, name)
        except BadImageError as error:
            return Finding(name, error.problem, error.message)
        config = self._config
        pixels, oddities = decoded.pixels, decoded.header.oddities
        # Trained on photos as viewers show them: detected, drawn and listed in that view.
        if config.orientation == "exif" and Oddity.TURNED in oddities:
            pixels = orientation.upright(pixels, decoded.header.orientation)
            oddities = orientation.applied(oddities)
        height, width = pixels.shape[:2]
        placement = geometry.placement(height, width, config.height, config.width, config.mode)
        # OpenCV decodes to BGR, which drawing and encoding keep; the network takes RGB or luma.
        placed = geometry.place_image(pixels, placement)
        network = (
            cv2.cvtColor(placed, cv2.COLOR_BGR2GRAY)[..., None] if config.channels == 1 else placed[..., ::-1]
        )
        return _Loaded(name, pixels, network, placement, oddities)

    def _infer(self, loaded: Sequence[_Loaded], threads: ThreadPoolExecutor) -> None:
        # A last, smaller batch is filled up with zeros: another shape would make TensorFlow trace anew.
        batch = np.zeros((BATCH, self._config.height, self._config.width, self._config.channels), np.uint8)
        for index, item in enumerate(loaded):
            batch[index] = item.network
        # [BATCH, ...]; rows beyond the loaded images are of zeros, and are not looked at.
        outputs = dict(self._detect(batch))
        per_image = [
            detections.in_image(outputs, index, item.pixels.shape[:2], item.placement, self._scores)
            for index, item in enumerate(loaded)
        ]
        # Drawing and JPEG encoding release the GIL; files are written in order, here.
        drawings = threads.map(self._draw, loaded, per_image)
        for item, objects, drawing in zip(loaded, per_image, drawings, strict=True):
            self._output.write(f"images/{item.name}", drawing)
            # The label stands beside a copy of the image, under the same name: each pair can be opened in a
            # labelling tool.
            text = detections.label_text(objects, self._label_names)
            self._output.write(f"labels/{splitext(item.name)[0]}.txt", text.encode())
            self._counts.update(
                inferred=1, empty=not objects.class_ids, clipped=objects.clipped, outside=objects.outside
            )
            self._by_class.update(objects.class_ids)
            self._oddities.update(item.oddities)

    def _draw(self, item: _Loaded, objects: ImageDetections) -> bytes:
        pairs = zip(objects.class_ids, objects.scores, strict=True)
        captions = [f"{self._config.class_names[class_id]}: {score:.2f}" for class_id, score in pairs]
        drawn = visualize.draw(item.pixels, objects.boxes, captions, objects.class_ids)
        return visualize.encode(drawn, splitext(item.name)[1])


def _chunks(
    threads: ThreadPoolExecutor, load: Callable[[str], _Loaded | Finding], names: Sequence[str]
) -> Iterator[list[_Loaded | Finding]]:
    """Yield the images in batches; the next batch is loaded while one is worked on."""
    starts = range(0, len(names), BATCH)
    # Two batches are in memory at a time: the one that is yielded and the one that is being loaded.
    loading = [threads.submit(load, name) for name in names[:BATCH]]
    for start in starts:
        following = [threads.submit(load, name) for name in names[start + BATCH : start + 2 * BATCH]]
        yield [item.result() for item in loading]
        loading = following


def _require_inferred(report: InferenceReport) -> None:
    # The report is written by now, so that the user finds every reason.
    if not report.inferred_images:
        raise RunnerError(
            Reason.BAD_SAMPLES,
            f"expected images that can be used, got none among {report.images}: {named(report.skipped)}",
            f"Repair the files, or convert them to JPEG or PNG; {REPORT} lists all of them.",
        )
