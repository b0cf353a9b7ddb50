"""Page of the report: its content, names that stay text, and pictures of the worst images."""

import base64
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from tlt_api.dataset import ImageSize
from tlt_api.model import Anchors
from tlt_api.status import LabelConvention
from tlt_runner.data.class_mapping import ClassMapping
from tlt_runner.data.report import anchor_fit, html
from tlt_runner.data.report.report import DatasetReport
from tlt_runner.data.report.statistics import DatasetStatistics
from tlt_runner.data.report.thumbnails import SHOWN, worst
from tlt_runner.data.sample import Finding, Listing, Oddity, Problem, Sample, SampleOutcome
from tlt_runner.storage import Storage, join

MAPPING = ClassMapping({"car": "vehicle", "man": "person"})
EVIL = "<script>alert('x')</script>&\"\x07\udcff.jpg"
VOID = {"meta", "img", "br", "rect", "circle", "path"}


class Parsed(HTMLParser):
    """Tags, texts and addresses of a page; fails where a tag is not closed by its own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _sample(image: str) -> Sample:
    return Sample(image[:-4], image[:-4], Path(image), image, f"l/{image}.txt", image)


def _bad(
    image: str, *problems: Problem, box: tuple[float, float, float, float] | None = None
) -> SampleOutcome:
    findings = [Finding(f"l/{image}.txt", problem, "wrong", 3, box) for problem in problems]
    sizes = [(60.0, 70.0), (64.0, 64.0)]
    return SampleOutcome(
        example=b"x", dropped=findings, objects=[0, 1], sizes=sizes, source_classes=["car", "man"]
    )


def _report(*images: tuple[str, SampleOutcome]) -> DatasetReport:
    statistics = DatasetStatistics()
    statistics.add_listings([Listing([], len(images), [], [], [], 0, [])])
    for image, converted in images:
        statistics.add(_sample(image), converted, "training")
    return statistics.to_report(MAPPING)


def _fits(report: DatasetReport, anchors: Anchors = Anchors()) -> list[anchor_fit.Fit]:  # noqa: B008
    return anchor_fit.by_class_and_size(report, anchors, ImageSize(width=640, height=384))


def test_the_page_is_well_formed_and_loads_nothing() -> None:
    report = _report(("a.jpg", _bad("a.jpg", Problem.INVERTED_BOX)))
    parsed = Parsed(html.render(report, Anchors(), _fits(report), html.thumbnails(report, lambda _: None)))
    assert "script" not in parsed.tags
    assert parsed.tags.count("svg") == 2
    assert all(address.startswith("data:") for address in parsed.addresses)
    for expected in ("Data set report", "vehicle", "InvertedBox", "100.0% of the objects have an anchor"):
        assert expected in parsed.text


def test_names_with_markup_stay_text() -> None:
    statistics = DatasetStatistics()
    finding = Finding(EVIL, Problem.EMPTY_FILE, EVIL)
    statistics.add_listings([Listing([], 1, [finding], [finding], [finding], 0, [])])
    converted = SampleOutcome(example=b"x", dropped=[finding], source_classes=[EVIL], oddities=tuple(Oddity))
    statistics.add(_sample(EVIL), converted, "training")
    statistics.add_duplicates([EVIL], [EVIL])
    report = statistics.to_report(MAPPING)
    text = html.render(report, Anchors(), _fits(report), html.thumbnails(report, lambda _: None))
    parsed = Parsed(text)
    assert "script" not in parsed.tags
    shown = "<script>alert('x')</script>&\"\\x07\\udcff.jpg"
    assert parsed.text.count(shown) >= 14
    assert text.encode("utf-8")
    # The report and the statistics can be written, too.
    assert DatasetReport.model_validate_json(report.model_dump_json()) == report
    assert DatasetStatistics.model_validate_json(statistics.model_dump_json()) == statistics


def test_class_names_with_markup_stay_text_in_the_chart() -> None:
    evil = "<svg/onload=x>\x07"
    report = DatasetStatistics().to_report(ClassMapping({"car": evil}))
    parsed = Parsed(html.render(report, Anchors(), _fits(report), []))
    assert parsed.tags.count("svg") == 1
    assert "<svg/onload=x>\\x07" in parsed.text


def test_long_tables_are_cut_and_give_the_total() -> None:
    statistics = DatasetStatistics()
    skipped = [Finding(f"i/{number:04}.jpg", Problem.EMPTY_FILE, "0 bytes") for number in range(1234)]
    statistics.add_listings([Listing([], 1234, skipped, [], [], 0, [])])
    text = html.render(statistics.to_report(MAPPING), Anchors(), [], [])
    assert "200 of 1,234" in text
    assert "and 1,034 more: see dataset-report.json" in text
    assert ("i/0199.jpg" in text, "i/0200.jpg" in text) == (True, False)


def test_the_page_of_a_clean_data_set_reports_nothing_left_out() -> None:
    report = _report(("a.jpg", SampleOutcome(example=b"x", objects=[0, 1], sizes=[(9.0, 9.0)] * 2)))
    parsed = Parsed(html.render(report, Anchors(), _fits(report), []))
    assert "Nothing: every image and every label line is used." in parsed.text


def test_anchors_that_are_chosen_later_are_not_drawn() -> None:
    report = _report(("a.jpg", _bad("a.jpg")))
    text = html.render(report, Anchors(auto=True), _fits(report, Anchors(auto=True)), [])
    assert ("<circle" in text, "anchors.auto" in text) == (False, True)


def test_the_worst_images_come_first_and_every_problem_once() -> None:
    many = [Problem.INVERTED_BOX] * 3
    images = [(f"{number:02d}.jpg", _bad("x", *many)) for number in range(30)]
    images.append(("rare.jpg", _bad("x", Problem.NOT_A_NUMBER)))
    images.append(("small.jpg", _bad("x", *[Problem.TOO_SMALL] * 9)))
    shown = [image for image, _ in worst(_report(*images))]
    assert shown == ["00.jpg", "rare.jpg", "small.jpg", *(f"{number:02d}.jpg" for number in range(1, 22))]
    assert len(shown) == SHOWN


def test_a_picture_is_small_and_shows_the_dropped_box(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((480, 960, 3), 90, np.uint8))
    report = _report(("a.png", _bad("a.png", Problem.INVERTED_BOX, box=(400.0, 40.0, 80.0, 800.0))))
    (thumbnail,) = html.thumbnails(report, lambda image: tmp_path / image)
    assert thumbnail.jpeg is not None
    pixels = cv2.imdecode(np.frombuffer(thumbnail.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape == (120, 240, 3)
    # A quarter of the size: the frame runs through rows 20 and 100 and columns 10 and 200.
    red = pixels[..., 2].astype(int) - pixels[..., 1] > 60
    assert red[20, 12:198].mean() > 0.9
    assert red[100, 12:198].mean() > 0.9
    assert not red[60, 20:190].any()
    assert base64.b64encode(thumbnail.jpeg).decode() in html.render(
        report, Anchors(), _fits(report), [thumbnail]
    )


def test_a_box_of_the_turned_view_is_drawn_on_the_turned_picture(tmp_path: Path) -> None:
    picture = np.full((480, 960, 3), 90, np.uint8)
    picture[:, :480] = 200
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    # Turned a quarter clockwise: 960 rows, the bright half above.
    report = _report(("a.png", _bad("a.png", Problem.INVERTED_BOX, box=(400.0, 40.0, 800.0, 440.0))))
    (thumbnail,) = html.thumbnails(report, lambda image: tmp_path / image, {"a.png": 6})
    assert thumbnail.jpeg is not None
    pixels = cv2.imdecode(np.frombuffer(thumbnail.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape == (240, 120, 3)
    assert (pixels[10, 60, 0], pixels[230, 60, 0]) == (pytest.approx(200, abs=9), pytest.approx(90, abs=9))
    red = pixels[..., 2].astype(int) - pixels[..., 1] > 60
    assert red[100, 12:108].mean() > 0.9
    assert red[200, 12:108].mean() > 0.9


def test_the_page_says_how_the_labels_were_read() -> None:
    convention = LabelConvention(value="zeroBased", decided_by="evidence", evidence="boxes: 3 <&>")
    report = _report().model_copy(update={"coordinates": convention, "layout": "format: voc"})
    text = html.render(report, Anchors(), [], [])
    assert "<li>coordinates: zeroBased, by evidence (boxes: 3 &lt;&amp;&gt;)</li>" in text
    assert "<li>layout auto found format: voc</li>" in text
    assert "How the labels were read" not in html.render(_report(), Anchors(), [], [])


def test_an_image_that_cannot_be_drawn_gets_a_tile_with_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"GIF89a no picture")
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    (tmp_path / "bomb.png").write_bytes(png)
    (tmp_path / "folder.jpg").mkdir()
    names = ("a.jpg", "bomb.png", "folder.jpg", "gone.jpg", "nul\0.jpg", "a/../../b.jpg", f"{'x' * 300}.jpg")
    report = _report(*((name, _bad(name, Problem.INVERTED_BOX)) for name in names))
    storage = Storage(scratch=tmp_path / "scratch")

    def image_of(image: str) -> Path | None:
        return storage.at_hand(join(f"file://{tmp_path}", image))

    tiles = {item.image: item for item in html.thumbnails(report, image_of)}
    assert {item.jpeg for item in tiles.values()} == {None}
    assert tiles["a.jpg"].first_bytes == b"GIF89a no picture"
    assert tiles["gone.jpg"].first_bytes == b""
    text = html.render(report, Anchors(), _fits(report), list(tiles.values()))
    assert "47 49 46 38 39 61" in text


def test_a_cut_image_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    whole = cv2.imencode(".jpg", pixels)[1].tobytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    report = _report(("cut.jpg", SampleOutcome(skipped=Finding("cut.jpg", Problem.TRUNCATED_IMAGE, "cut"))))
    (thumbnail,) = html.thumbnails(report, lambda image: tmp_path / image)
    assert thumbnail.jpeg is not None
    assert len(thumbnail.jpeg) <= 8000


def test_a_page_with_everything_stays_small(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "noise.jpg"), noise)
    images = [(f"{number:03d}.jpg", _bad("x" * 60, *list(Problem)[:9])) for number in range(300)]
    report = _report(*images)
    pictures = html.thumbnails(report, lambda _: tmp_path / "noise.jpg")
    assert len(html.render(report, Anchors(), _fits(report), pictures)) < 500_000
