"""Run by test_data_fuzz: throws mutated files of one kind at its reader, under a limit on memory and time.

``data_fuzz_process.py KIND CASES FOLDER`` prints one line of JSON: how many cases, verdicts and objects. A
case that breaks a promise ends it with a traceback that names the case; a case that hangs, with all stacks.
"""

import faulthandler
import json
import math
import random
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import data_fuzz_mutations as mutations
import data_fuzz_worst as worst
import numpy as np

from tlt_api.dataset import Shapes
from tlt_runner.data.formats.coco import CocoReader
from tlt_runner.data.formats.folders import SourceFolder
from tlt_runner.data.formats.kitti import KittiReader
from tlt_runner.data.formats.voc import VocReader
from tlt_runner.data.formats.yolo import YoloReader
from tlt_runner.data.formats.yolo_names import read_class_names
from tlt_runner.data.images import decode
from tlt_runner.data.sample import Finding, Labels, Listing, Problem, Reader
from tlt_runner.errors import RunnerError

MEMORY = 384 << 20
"""Bytes that a process may take beyond what it has after its imports."""
SECONDS = 900
"""Limit on the time of all cases, many times what they take; a process that exceeds it hangs."""
LONGEST_MESSAGE = 1_000


def check_labels(labels: Labels) -> None:
    """Assert the guarantees of a reader for the labels of any file."""
    for box in (*labels.boxes, *labels.ignored):
        y1, x1, y2, x2 = box.yxyx
        assert all(map(math.isfinite, box.yxyx)) and y1 < y2 and x1 < x2, box
        assert len(box.class_name) <= 128, box
        box.class_name.encode()
        assert -1 <= box.truncation <= 1 and -1 <= box.occlusion <= 3, box
        assert box.line is None or box.line >= 1, box
    assert all(box.class_name for box in labels.boxes)
    assert labels.image_size is None or min(labels.image_size) > 0, labels.image_size
    check_findings(labels.findings)


def check_findings(findings: Any) -> None:
    """Assert that every finding can be written into a report and read by a person."""
    for finding in findings:
        assert isinstance(finding, Finding) and isinstance(finding.problem, Problem)
        assert finding.line is None or finding.line >= 1, finding
        assert 0 < len(finding.message) < LONGEST_MESSAGE, finding.message[:2000]
        str(finding).encode()


class Tried:
    """Counts the boxes and problems of the cases."""

    def __init__(self) -> None:
        self.cases = 0
        self.boxes = 0
        self.problems: Counter[str] = Counter()

    def reader(self, reader: Reader) -> None:
        """Run one case: list and read everything."""
        self.cases += 1
        try:
            listing = reader.listing()
        except RunnerError as error:
            self.problems[error.reason] += 1
            error.message.encode()
            return
        self._listing(listing)
        for sample in listing.samples:
            labels = reader.read(sample, (mutations.HEIGHT, mutations.WIDTH))
            check_labels(labels)
            assert reader.classes(sample) == Counter(box.class_name for box in labels.boxes)
            self.boxes += len(labels.boxes)
            self.problems.update(finding.problem for finding in labels.findings)

    def _listing(self, listing: Listing) -> None:
        for findings in (listing.skipped, listing.orphans, listing.findings):
            check_findings(findings)
            self.problems.update(finding.problem for finding in findings)
        assert listing.images == len(listing.samples) + len(listing.skipped)


def fuzz(kind: str, cases: int, folder: Path) -> Tried:
    """Try ``cases`` mutants, after the hand-made worst files."""
    tried = Tried()
    for number, data in enumerate(_contents(kind, cases)):
        try:
            _KINDS[kind][1](tried, folder, data)
        except BaseException as error:
            error.add_note(f"case {number} of {kind}, {len(data)} bytes: {data[:2000]!r}")
            raise
    return tried


def _contents(kind: str, cases: int) -> Iterator[bytes]:
    yield from _WORST[kind]()
    draw = random.Random(f"{kind} 1")
    for _ in range(cases):
        yield _KINDS[kind][0](draw)


def _pair(
    tried: Tried,
    folder: Path,
    data: bytes,
    suffix: str,
    reader: Callable[[SourceFolder, SourceFolder], Reader],
) -> None:
    (folder / f"a{suffix}").write_bytes(data)
    source = SourceFolder(folder, "")
    tried.reader(reader(source, source))


def _try_kitti(tried: Tried, folder: Path, data: bytes) -> None:
    _pair(tried, folder, data, ".txt", KittiReader)


def _try_voc(tried: Tried, folder: Path, data: bytes) -> None:
    _pair(tried, folder, data, ".xml", VocReader)


def _shapes(tried: Tried) -> Shapes:
    """Outlines become boxes in every second case."""
    return "boundingBox" if tried.cases % 2 else "refuse"


def _try_yolo(tried: Tried, folder: Path, data: bytes) -> None:
    shapes = _shapes(tried)
    _pair(tried, folder, data, ".txt", lambda *two: YoloReader(*two, {0: "car", 1: "person"}, shapes=shapes))


def _try_coco(tried: Tried, folder: Path, data: bytes) -> None:
    path = folder / "a.json"
    path.write_bytes(data)
    tried.reader(CocoReader(SourceFolder(folder, ""), [("a.json", path)], shapes=_shapes(tried)))


def _try_yaml(tried: Tried, folder: Path, data: bytes) -> None:
    path = folder / "data.yaml"
    path.write_bytes(data)
    tried.cases += 1
    try:
        names = read_class_names(path).names
    except RunnerError as error:
        error.message.encode()
        assert len(error.message) < LONGEST_MESSAGE
        tried.problems[error.reason] += 1
        return
    assert all(isinstance(number, int) and 1 <= len(name) <= 128 for number, name in names.items())
    tried.boxes += 1


def _try_image(tried: Tried, folder: Path, data: bytes) -> None:
    tried.cases += 1
    try:
        pixels = decode.decode(data, "a.jpg").pixels
    except decode.BadImageError as error:
        check_findings([Finding("a.jpg", error.problem, error.message)])
        tried.problems[error.problem] += 1
        assert _without_pixels(data) == error.problem
        return
    assert _without_pixels(data) is None
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    tried.boxes += 1


def _without_pixels(data: bytes) -> Problem | None:
    """Assert that :func:`decode.check` refuses the same files as :func:`decode.decode`."""
    try:
        decode.check(data, decode.header(data, "a.jpg"))
    except decode.BadImageError as error:
        return error.problem
    return None


_PICTURES = mutations.pictures()
_KINDS: dict[str, tuple[Callable[[random.Random], bytes], Callable[[Tried, Path, bytes], None]]] = {
    "kitti": (lambda draw: mutations.mutate(draw, mutations.KITTI), _try_kitti),
    "voc": (lambda draw: mutations.mutate_xml(draw, mutations.VOC), _try_voc),
    "yolo": (lambda draw: mutations.mutate(draw, mutations.YOLO), _try_yolo),
    "coco": (lambda draw: mutations.mutate_json(draw, mutations.COCO), _try_coco),
    "yaml": (lambda draw: mutations.mutate(draw, mutations.YAML), _try_yaml),
    "image": (lambda draw: mutations.mutate_picture(draw, _PICTURES), _try_image),
}
_WORST: dict[str, Callable[[], Iterator[bytes]]] = {
    "kitti": worst.lines,
    "voc": worst.xml,
    "yolo": worst.lines,
    "coco": worst.json,
    "yaml": worst.yaml,
    "image": worst.images,
}


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    """Run the cases of one kind in an empty folder."""
    kind, cases, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    (folder / "b").mkdir()
    for name in ("a.jpg", "b/c.jpg"):
        (folder / name).touch()
    cv2.setNumThreads(1)
    _limit_memory()
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    tried = fuzz(kind, cases, folder)
    print(json.dumps({"cases": tried.cases, "boxes": tried.boxes, "problems": tried.problems}))


if __name__ == "__main__":
    main()
