"""Reading of protobuf's text format with the line of every field."""

import pytest

from tlt_runner.from_tlt import text
from tlt_runner.from_tlt.text import Field, Message, Word


def test_every_way_to_write_a_field_is_read() -> None:
    content = """# a comment
    count: 1 name: 'it''s' " two" # adjacent texts are one
    inner { list: [1, 2.5]; empty: [] }
    with_colon: { flag: True } angle < number: -1e-4, >
    several: [{ a: 1 }, { a: 2 }] nothing {}
    hexadecimal: 0x10 name_of: RGB escaped: "a\\"b\\x41" minus: - 5
    """
    assert text.read(content) == Message(
        (
            Field("count", 2, Word("1")),
            Field("name", 2, Word("its two", quoted=True)),
            Field("inner", 3, Message((Field("list", 3, (Word("1"), Word("2.5"))), Field("empty", 3, ())))),
            Field("with_colon", 4, Message((Field("flag", 4, Word("True")),))),
            Field("angle", 4, Message((Field("number", 4, Word("-1e-4")),))),
            Field("several", 5, Message((Field("a", 5, Word("1")),))),
            Field("several", 5, Message((Field("a", 5, Word("2")),))),
            Field("nothing", 5, Message()),
            Field("hexadecimal", 6, Word("0x10")),
            Field("name_of", 6, Word("RGB")),
            Field("escaped", 6, Word('a"bA', quoted=True)),
            Field("minus", 6, Word("-5")),
        )
    )


@pytest.mark.parametrize(
    ("content", "line", "part"),
    [
        ("a {\n b: 1\n", 3, "expected '}' of a, which begins in line 1"),
        ("a: 1\nb:\n", 3, "expected a value of b"),
        ("a: 1\nb 2", 2, "expected ':' or '{' after b"),
        ("a: 1\n}", 2, "expected the name of a field, got '}'"),
        ("a: 'open\nb: 1", 1, "ending quote"),
        ("a: [1 2]", 1, "expected ',' or ']'"),
        ("\n\na: }", 3, "expected a value of a, got '}'"),
        ("a: 1\n= 2", 2, "expected the name of a field, got '='"),
        ("a: [1,\n", 2, "the end of the file"),
        ("a {" * 5000, 1, "hundred deep"),
    ],
)
def test_a_broken_text_is_refused_with_its_line(content: str, line: int, part: str) -> None:
    with pytest.raises(text.SyntaxProblemError) as refused:
        text.read(content)
    assert str(refused.value).startswith(f"{line}: ")
    assert part in str(refused.value)
