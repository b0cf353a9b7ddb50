"""Pascal VOC labels: elements become objects, and a bad element or file becomes a finding."""

from pathlib import Path

import pytest

from tlt_runner.data.formats.folders import SourceFolder
from tlt_runner.data.formats.voc import MAX_BYTES, MAX_DEPTH, MAX_OBJECTS, VocReader
from tlt_runner.data.sample import LabelledBox, Labels, Problem, Sample

BOX = "<bndbox><xmin>11</xmin><ymin>21</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
DOG = f"<object><name>dog</name>{BOX}</object>"


def _annotation(*objects: str) -> str:
    return "\n".join(["<annotation>", *objects, "</annotation>"])


def _read(folder: Path, content: str | bytes) -> Labels:
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    (folder / "images" / "a.jpg").touch()
    (folder / "labels" / "a.xml").write_bytes(data)
    reader = VocReader(
        SourceFolder(folder / "images", "JPEGImages"), SourceFolder(folder / "labels", "Annotations")
    )
    listing = reader.listing()
    (sample,) = listing.samples
    labels = reader.read(sample, (100, 100))
    assert all(finding.file == "Annotations/a.xml" for finding in labels.findings)
    assert reader.classes(sample).total() == len(labels.boxes)
    return labels


def _verdict(labels: Labels) -> tuple[Problem, int | None, str]:
    (finding,) = labels.findings
    assert labels.boxes == ()
    return finding.problem, finding.line, finding.message


def test_pixels_count_from_1_and_the_last_one_belongs_to_the_box(tmp_path: Path) -> None:
    labels = _read(tmp_path, _annotation(DOG))
    assert labels.boxes == (LabelledBox("dog", (20.0, 10.0, 40.0, 30.0), line=2),)
    assert labels.findings == ()


def test_the_first_pixel_alone_is_one_pixel_wide(tmp_path: Path) -> None:
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>1</xmax><ymax>1</ymax></bndbox>"
    (labelled_box,) = _read(tmp_path, _annotation(f"<object><name>dog</name>{box}</object>")).boxes
    assert labelled_box.yxyx == (0.0, 0.0, 1.0, 1.0)


def test_coordinates_may_have_fractions_and_spaces(tmp_path: Path) -> None:
    box = "<bndbox><ymax> 40.5 </ymax><xmin>\n11.25</xmin><ymin>2e1</ymin><xmax>+30.75</xmax></bndbox>"
    (labelled_box,) = _read(tmp_path, _annotation(f"<object><name> dog </name>{box}</object>")).boxes
    assert labelled_box == LabelledBox("dog", (19.0, 10.25, 40.5, 30.75), line=2)


def test_flags_are_read(tmp_path: Path) -> None:
    flags = "<difficult>1</difficult><truncated>1</truncated><occluded>1</occluded>"
    (labelled_box,) = _read(tmp_path, _annotation(f"<object><name>dog</name>{flags}{BOX}</object>")).boxes
    assert (labelled_box.difficult, labelled_box.truncation, labelled_box.occlusion) == (True, 1.0, 1)


def test_empty_and_unspecified_flags_are_0(tmp_path: Path) -> None:
    flags = "<difficult/><truncated>Unspecified</truncated><occluded> </occluded><pose>Unspecified</pose>"
    labels = _read(tmp_path, _annotation(f"<object><name>dog</name>{flags}{BOX}</object>"))
    assert labels == Labels((LabelledBox("dog", (20.0, 10.0, 40.0, 30.0), line=2),))


def test_parts_are_neither_objects_nor_the_box_of_their_object(tmp_path: Path) -> None:
    part_box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"
    part = f"<part><name>head</name>{part_box}</part>"
    labels = _read(tmp_path, _annotation(f"<object>{part}<name>person</name>{BOX}{part}</object>"))
    assert labels == Labels((LabelledBox("person", (20.0, 10.0, 40.0, 30.0), line=2),))


def test_an_object_with_parts_only_has_no_box(tmp_path: Path) -> None:
    labels = _read(tmp_path, _annotation(f"<object><name>person</name><part>{BOX}</part></object>"))
    assert _verdict(labels)[0] == Problem.MISSING_FIELD


def test_each_box_has_the_line_of_its_object(tmp_path: Path) -> None:
    bad = "<object>\n<name>cat</name>\n</object>"
    labels = _read(tmp_path, '<?xml version="1.0"?>\n' + _annotation("<folder>x</folder>", DOG, bad, DOG))
    assert [box.line for box in labels.boxes] == [4, 8]
    assert [finding.line for finding in labels.findings] == [5]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("<size><width>640</width><height>480</height><depth>3</depth></size>", (480, 640)),
        ("<size><width>640.0</width><height>480</height></size>", (480, 640)),
        ("<size><width>0</width><height>0</height></size>", None),
        ("<size><width>640</width></size>", None),
        ("<size/>", None),
        ("", None),
    ],
)
def test_the_size_of_the_image_is_read(tmp_path: Path, size: str, expected: tuple[int, int] | None) -> None:
    labels = _read(tmp_path, _annotation(size, DOG))
    assert (labels.image_size, len(labels.boxes), labels.findings) == (expected, 1, ())


def test_a_size_that_is_no_number_is_a_finding_beside_the_objects(tmp_path: Path) -> None:
    size = "<size><width>wide</width><height>480</height></size>"
    labels = _read(tmp_path, _annotation(size, DOG))
    assert (labels.image_size, len(labels.boxes)) == (None, 1)
    assert [str(finding) for finding in labels.findings] == [
        "Annotations/a.xml:2: NotANumber: width: expected a whole number, got 'wide'"
    ]


def _edge(name: str, value: str) -> str:
    edges = {"xmin": "11", "ymin": "21", "xmax": "30", "ymax": "40", name: value}
    box = "".join(f"<{edge}>{text}</{edge}>" for edge, text in edges.items())
    return f"<object><name>dog</name><bndbox>{box}</bndbox></object>"


VERDICTS = [
    (f"<object>{BOX}</object>", Problem.MISSING_FIELD),
    (f"<object><name> </name>{BOX}</object>", Problem.MISSING_FIELD),
    ("<object><name>dog</name></object>", Problem.MISSING_FIELD),
    ("<object><name>dog</name><bndbox><xmin>1</xmin></bndbox></object>", Problem.MISSING_FIELD),
    ("<object/>", Problem.MISSING_FIELD),
    (_edge("xmin", ""), Problem.NOT_A_NUMBER),
    (_edge("xmin", "left"), Problem.NOT_A_NUMBER),
    (_edge("ymax", "NaN"), Problem.NOT_A_NUMBER),
    (_edge("ymax", "inf"), Problem.NOT_A_NUMBER),
    (_edge("ymax", "1e999"), Problem.NOT_A_NUMBER),
    (_edge("ymax", "4_0"), Problem.NOT_A_NUMBER),
    (_edge("ymax", "40,5"), Problem.NOT_A_NUMBER),
    (_edge("ymax", "2000000"), Problem.NOT_A_NUMBER),
    (_edge("xmax", "10"), Problem.INVERTED_BOX),
    (_edge("ymin", "41"), Problem.INVERTED_BOX),
    (DOG.replace("</name>", "</name><difficult>yes</difficult>"), Problem.NOT_A_NUMBER),
    (DOG.replace("</name>", "</name><truncated>2</truncated>"), Problem.NOT_A_NUMBER),
    (DOG.replace("</name>", "</name><occluded>0.5</occluded>"), Problem.NOT_A_NUMBER),
    (f"<object><name>dog</name>{BOX}{BOX}</object>", Problem.WRONG_COLUMNS),
    (f"<object><name>{'d' * 129}</name>{BOX}</object>", Problem.UNKNOWN_CLASS),
]


@pytest.mark.parametrize(("text", "problem"), VERDICTS)
def test_an_unusable_object_is_a_finding_with_its_line(tmp_path: Path, text: str, problem: Problem) -> None:
    labels = _read(tmp_path, _annotation(DOG, text, DOG))
    assert [(finding.problem, finding.line) for finding in labels.findings] == [(problem, 3)]
    assert [box.line for box in labels.boxes] == [2, 4]


BOMB = (
    '<!DOCTYPE bomb [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "]>\n<annotation><object><name>&i;</name></object></annotation>"
)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (BOMB, 1),
        ('\n<!DOCTYPE a SYSTEM "file:///etc/passwd">\n' + _annotation(DOG), None),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>\n<annotation>&b;</annotation>', 1),
        ('<!DOCTYPE a [<!ENTITY % b SYSTEM "http://localhost:9/x"> %b;]>\n' + _annotation(DOG), 1),
        (_annotation(DOG, "<object><name>&unknown;</name></object>"), 3),
    ],
)
def test_entities_and_document_types_are_refused(tmp_path: Path, content: str, line: int | None) -> None:
    problem, where, _ = _verdict(_read(tmp_path, content))
    assert (problem, where) == (Problem.UNREADABLE_LABEL, line or 2)


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("", 1, "no element found"),
        (_annotation(DOG, DOG)[:-5], 4, "unclosed token"),
        (_annotation(DOG, "<object></name>"), 3, "mismatched tag"),
        (_annotation(DOG) + DOG, 3, "junk after document element"),
        ("not XML", 1, "syntax error"),
        ("<annotations>\n</annotations>", 1, "expected <annotation>, got <annotations>"),
        (_annotation(f"<object><name>{'d' * 1001}</name></object>"), 2, "expected at most 1000 characters"),
        (_annotation("<a>" * MAX_DEPTH), 2, f"at most {MAX_DEPTH} deep"),
        (_annotation("<object/>" * (MAX_OBJECTS + 1)), 2, f"at most {MAX_OBJECTS} objects"),
        ("<annotation>" + " " * MAX_BYTES + "</annotation>", None, "expected at most 16 MiB"),
    ],
)
def test_an_incomplete_annotation_file_yields_no_objects(
    tmp_path: Path, content: str, line: int | None, message: str
) -> None:
    problem, where, got = _verdict(_read(tmp_path, content))
    assert (problem, where) == (Problem.UNREADABLE_LABEL, line)
    assert message in got


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + _annotation(DOG.replace("dog", "männchen")).encode(),
        b'<?xml version="1.0" encoding="ISO-8859-1"?>'
        + _annotation(DOG.replace("dog", "männchen")).encode("latin-1"),
        b'<?xml version="1.0" encoding="windows-1252"?>'
        + _annotation(DOG.replace("dog", "männchen")).encode("cp1252"),
        _annotation(DOG.replace("dog", "männchen")).encode("utf-16"),
    ],
)
def test_an_encoding_that_the_file_declares_is_read(tmp_path: Path, content: bytes) -> None:
    (box,) = _read(tmp_path, content).boxes
    assert box.class_name == "männchen"


@pytest.mark.parametrize(
    "content",
    [
        _annotation(DOG.replace("dog", "männchen")).encode("latin-1"),
        b'<?xml version="1.0" encoding="no-such-thing"?>' + _annotation(DOG).encode(),
        b'<?xml version="1.0" encoding="undefined"?>' + _annotation(DOG).encode(),
        b'<?xml version="1.0" encoding="shift_jis"?>' + _annotation(DOG).encode(),
        b"\x00\xff\xfe\x89PNG",
    ],
)
def test_an_unsupported_encoding_is_a_finding(tmp_path: Path, content: bytes) -> None:
    assert _verdict(_read(tmp_path, content))[0] == Problem.UNREADABLE_LABEL


def test_the_file_name_inside_the_xml_is_never_opened(tmp_path: Path) -> None:
    names = "<folder>/etc</folder><filename>../../../etc/passwd</filename><path>/etc/passwd</path>"
    assert len(_read(tmp_path, _annotation(names, DOG)).boxes) == 1


def test_an_image_without_objects_is_background(tmp_path: Path) -> None:
    assert _read(tmp_path, "<annotation/>") == Labels()


def test_a_failing_storage_is_an_error_and_not_a_finding_about_the_label() -> None:
    reader = VocReader(SourceFolder(Path("i"), "i"), SourceFolder(Path("l"), "l"))
    unreadable = Path("/proc/self/mem")  # its first byte cannot be read: EIO, as from a broken disk
    with pytest.raises(OSError, match="Input/output error"):
        reader.read(Sample("i/a", "a", Path("i/a.jpg"), "i/a.jpg", "l/a.xml", unreadable), (1, 1))


def test_a_missing_label_file_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.xml").write_text(_annotation(DOG))
    reader = VocReader(SourceFolder(tmp_path, ""), SourceFolder(tmp_path, ""))
    (sample,) = reader.listing().samples
    (tmp_path / "a.xml").unlink()
    assert _verdict(reader.read(sample, (1, 1)))[0] == Problem.UNREADABLE_LABEL
