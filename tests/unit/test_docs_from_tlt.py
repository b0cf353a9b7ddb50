"""The page for people from TLT: its example is valid, its fields exist and have the defaults it prints."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic_core import PydanticUndefined

from tlt_api import resources
from tlt_api.base import ApiModel
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.data.images import geometry

PAGE = (Path(__file__).parents[2] / "docs" / "from-tlt.md").read_text(encoding="utf-8")
NO_SUCH_FIELD = "no such field"
REQUIRED = "required"
ABSENT = "absent"


def _rows() -> list[list[str]]:
    """Cells of the table's rows, without its head and the sections' names."""
    # The first table of the page.
    lines = [line for line in PAGE.split("\n## ")[0].splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return [row for row in rows if row[1:] != [""] * 4]


ROWS = _rows()
FIELDS = [(re.fullmatch(r"`([A-Za-z0-9.]+)`", row[2]), row[3]) for row in ROWS if row[2] != NO_SUCH_FIELD]
NAMED = sorted({(found[1], printed) for found, printed in FIELDS if found})


def _printed(cell: str) -> str:
    """A cell's default: JSON, ``required`` or ``absent``, without emphasis and explanation."""
    return re.sub(r"^(\w+) \(.+\)$", r"\1", cell.replace("**", "")).strip("`")


def _model_in(annotation: Any) -> type[ApiModel] | None:
    parts = (annotation, *get_args(annotation))
    return next((part for part in parts if isinstance(part, type) and issubclass(part, ApiModel)), None)


def default_of(path: str) -> str:
    """The default of a field below spec: JSON, ``required`` or ``absent``.

    That is what holds where only required fields are given: of ``validation.fraction`` the value in the
    default of ``validation``, of a field below an absent one (``earlyStopping``) the one of its class.
    """
    model: type[ApiModel] | None = TrainingJobSpec
    value: Any = PydanticUndefined
    for name in path.split("."):
        assert model is not None, f"{path}: nothing is below {name}"
        aliases = {field.alias: (key, field) for key, field in model.model_fields.items()}
        assert name in aliases, f"{path}: {model.__name__} has no {name}"
        key, field = aliases[name]
        value = getattr(value, key) if isinstance(value, ApiModel) else field.get_default()
        model = _model_in(field.annotation)
    if value is PydanticUndefined:
        return REQUIRED
    return ABSENT if value is None else json.dumps(value)


def test_the_defaults_are_read_as_a_manifest_gets_them() -> None:
    assert default_of("dataset.uri") == REQUIRED
    assert default_of("dataset.validation.fraction") == "0.2"
    assert default_of("dataset.validation.images") == ABSENT
    assert default_of("training.earlyStopping") == ABSENT
    assert default_of("training.earlyStopping.patience") == "10"
    assert default_of("model.proposals.training.preNms") == "2000"


def test_the_table_is_whole() -> None:
    assert len(ROWS) > 120
    assert [row for row in ROWS if len(row) != 5] == []
    assert [row for row in ROWS if row[2] == NO_SUCH_FIELD and row[3]] == []
    assert [printed for found, printed in FIELDS if found is None] == []


@pytest.mark.parametrize(("path", "printed"), NAMED, ids=lambda item: item)
def test_a_field_of_the_table_exists_with_the_default_that_it_prints(path: str, printed: str) -> None:
    assert _printed(printed) == default_of(path)


def test_every_field_without_a_counterpart_is_a_row_that_says_so() -> None:
    section = PAGE.split("\n## No counterpart\n")[1].split("\n## ")[0]
    listed = [line for line in section.splitlines() if line.startswith(("- ", "  "))]
    # Before the explanation: after a colon the names are ours or of files.
    names = [name for line in listed for name in re.findall(r"`([^`]+)`", line.split(": ")[0])]
    without = {name for row in ROWS if row[2] == NO_SUCH_FIELD for name in re.findall(r"`([^`]+)`", row[0])}
    assert len(names) > 12
    assert [name for name in names if name not in without | {"data_sources"}] == []


def test_size_min_has_tlts_scale_in_a_letterbox_of_the_size_that_the_page_gives() -> None:
    for height, width in ((375, 500), (500, 375)):
        (size,) = re.findall(
            rf"{width} x {height} \| `{{width: (\d+), height: (\d+), mode: letterbox}}`", PAGE
        )
        placement = geometry.placement(height, width, int(size[1]), int(size[0]), "letterbox")
        # TLT: the smaller side has 600 pixels.
        assert (placement.scale_y, placement.scale_x) == pytest.approx((600 / 375, 600 / 375))
        assert (placement.offset_y, placement.offset_x) == (0, 0)


def test_the_example_is_a_valid_trainingjob() -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    resource = resources.parse(yaml.safe_load(example))
    assert isinstance(resource.spec, TrainingJobSpec)
    assert resource.spec.model.proposals.training.pre_nms == 12000
