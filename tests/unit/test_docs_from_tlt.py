"""The page for people from TLT: its example is valid, its fields exist and have the defaults it prints."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic_core import PydanticUndefined

from tlt_api import resources
from tlt_api.base import ApiModel
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.data.images import geometry
from tlt_runner.from_tlt import fields, flow, report
from tlt_runner.from_tlt.paths import Maps

PAGE = (Path(__file__).parents[2] / "docs" / "from-tlt.md").read_text(encoding="utf-8")
NO_SUCH_FIELD = "no such field"
REQUIRED = "required"
ABSENT = "absent"


def _section(name: str) -> str:
    return PAGE.split(f"\n## {name}\n")[1].split("\n## ")[0]


def _rows() -> list[list[str]]:
    """Cells of the table's rows, without its head and the sections' names."""
    lines = [line for line in _section("Fields").splitlines() if line.startswith("|")]
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
    without = {name for row in ROWS if row[2] == NO_SUCH_FIELD for name in re.findall(r"`([^`]+)`", row[0])}
    names = _without_counterpart()
    assert len(names) > 12
    assert [name for name in names if name not in without | _BY_OTHER_WORDS] == []


_BY_OTHER_WORDS = {"sample_modifier_config", "data_sources.image_directory_path", "pretrained_weights"}
"""Names of the list that stand for several fields, or explain another one."""


def _without_counterpart() -> list[str]:
    """The names of the list of fields whose meaning is lost."""
    listed = [line for line in _section("No counterpart").splitlines() if line.startswith(("- ", "  "))]
    # Before the explanation: after a colon the names are ours or of files.
    return [name for line in listed for name in re.findall(r"`([^`]+)`", line.split(": ")[0])]


def _table() -> Iterator[tuple[str, str | None]]:
    """Yield the fields of the page's table: full name in TLT, and ours or None."""
    lines = [line for line in _section("Fields").splitlines() if line.startswith("|")][2:]
    section = ""
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[1:] == [""] * 4:
            name = cells[0].strip("*")
            section = "" if name in ("top level", "the spec of dataset_convert") else f"{name}."
            continue
        ours = re.fullmatch(r"`([A-Za-z0-9.]+)`", cells[2])
        for name in re.findall(r"`([^`]+)`", cells[0]):
            yield f"{section}{name}", ours[1] if ours else None


def test_the_table_is_that_of_the_importer() -> None:
    table = list(_table())
    assert set(fields.ROWS) == {name for name, _ in table} - fields.MESSAGES
    for name, ours in table:
        if name in fields.ROWS:
            to = fields.ROWS[name].to
            # Four rows of the page stand for the entries of one map.
            assert ours == to or (to and ours and ours.startswith(f"{to}.")), name


def test_the_fields_that_lose_their_meaning_are_those_of_the_importer() -> None:
    losing = {row.path for row in fields.ROWS.values() if row.neutral}
    # Not in the importer's table, because other fields decide with them.
    losing |= {
        "model_config.drop_connect_rate",
        "model_config.all_projections",
        "model_config.use_pooling",
        "dataset_config.data_sources.source_weight",
    }
    listed = set(_without_counterpart()) - {"pretrained_weights", "data_sources.image_directory_path"}
    missing = {path for path in losing if not any(f".{path}.".find(f".{name}.") >= 0 for name in listed)}
    assert missing == set()
    assert [name for name in listed if not any(f".{path}.".find(f".{name}.") >= 0 for path in losing)] == []


def test_old_names_are_those_of_the_importer() -> None:
    pairs = re.findall(r"^\| `([a-z_.]+)` \| `([a-z_.]+)` \|$", _section("Names of TLT 1.0"), re.MULTILINE)
    assert len(pairs) == len(fields.OLD_NAMES)
    for old, today in pairs:
        path = ""
        for name in old.split("."):
            path = f"{path}.{name}".lstrip(".")
            path = fields.OLD_NAMES.get(path, path)
        assert path == today


def test_the_example_is_what_the_importer_makes_of_the_specs_beside_it() -> None:
    kitti, convert, manifest = re.findall(
        r"^```(?:yaml)?\n(.*?)^```$", _section("Side by side"), re.MULTILINE | re.DOTALL
    )
    maps = Maps.parse(["/data=pvc://tlt-data"])
    result = flow.build([("kitti.txt", kitti), ("convert.txt", convert)], maps)
    assert yaml.safe_load(manifest) == result.manifests[0].body
    (shown,) = re.findall(r"^```\n(kitti\.txt: .*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    printed = iter(
        [*report.lines(result.reports), "written to kitti.yaml: TrainingJob/kitti, ExportJob/kitti-export"]
    )
    # In the same order; "..." stands for lines that are left out.
    assert [line for line in shown.splitlines() if line != "..." and line not in printed] == []


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
