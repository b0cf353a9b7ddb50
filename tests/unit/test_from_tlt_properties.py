"""Generated specs: every field is taken, changed with words, or refused with words, and none is forgotten."""

import re
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tlt_api import resources
from tlt_runner.errors import RunnerError
from tlt_runner.from_tlt import flow
from tlt_runner.from_tlt.fields import OLD_NAMES, ROWS, Row, Type
from tlt_runner.from_tlt.paths import Maps
from tlt_runner.from_tlt.report import Entry, Outcome

EXAMPLES = 40
MAPS = Maps.parse(["/data=pvc://tlt-data"])
NAMES_TODAY = {today: old for old, today in OLD_NAMES.items()}

# Values that TLT accepts, where its checks go beyond the type.
LEGAL: dict[str, st.SearchStrategy[str]] = {
    "model_config.arch": st.sampled_from(
        ["'resnet:10'", "'resnet:50'", "'vgg16'", "'mobilenet_v1'", "'darknet:53'", "'efficientnet:b3'"]
    ),
    "model_config.input_image_config.size_height_width.height": st.integers(160, 2000).map(str),
    "model_config.input_image_config.size_height_width.width": st.integers(160, 2000).map(str),
    "model_config.input_image_config.size_min.min": st.integers(160, 1000).map(str),
    "model_config.input_image_config.image_channel_order": st.sampled_from(["'rgb'", "'bgr'", "'l'"]),
    "model_config.input_image_config.image_scaling_factor": st.sampled_from(["1.0", "127.5", "255"]),
    "model_config.freeze_blocks": st.sampled_from(["1", "2.0", "3"]),
    "training_config.rpn_min_overlap": st.sampled_from(["0.2", "0.3"]),
    "training_config.rpn_max_overlap": st.sampled_from(["0.6", "0.7", "1.0"]),
    "training_config.classifier_min_overlap": st.sampled_from(["0.0", "0.1"]),
    "training_config.classifier_max_overlap": st.sampled_from(["0.5", "0.6"]),
    "training_config.pretrained_weights": st.sampled_from(
        ["'/data/a.hdf5'", "'/data/a.tlt'", "''", "'/data/a'"]
    ),
    "training_config.retrain_pruned_model": st.sampled_from(["''", "'/data/b.tlt'", "'/data/b.keras'"]),
    "dataset_config.validation_fold": st.sampled_from(["0", "1"]),
    "training_config.learning_rate.soft_start.base_lr": st.sampled_from(["0.02", "1e-4"]),
    "training_config.learning_rate.soft_start.start_lr": st.sampled_from(["0", "1e-5", "0.5"]),
}
for _section in ("training_config", "inference_config", "evaluation_config"):
    LEGAL[f"{_section}.rpn_pre_nms_top_N"] = st.sampled_from(["4001", "6000", "12000", "20000"])
    LEGAL[f"{_section}.rpn_nms_max_boxes"] = st.sampled_from(["100", "300", "2000"])
TOGETHER = [
    {f"{section}.rpn_pre_nms_top_N", f"{section}.rpn_nms_max_boxes"}
    for section in ("training_config", "inference_config", "evaluation_config")
]
KEYS = {
    "dataset_config.target_class_mapping": ["car", "bus"],
    "training_config.classifier_regr_std": ["x", "y", "w", "h", "z"],
    "model_config.input_image_config.image_channel_mean": ["r", "g", "b", "l"],
}
ALWAYS = {
    "model_config.input_image_config.size_height_width.height",
    "model_config.input_image_config.size_height_width.width",
    "dataset_config.target_class_mapping",
    "dataset_config.data_sources.image_directory_path",
}


@dataclass(frozen=True)
class Line:
    """One field of a generated spec."""

    path: str
    text: str
    known: bool = True

    def written(self, names: dict[str, str]) -> str:
        """The field in its messages, on one line."""
        parts = self.path.split(".")
        if names and self.known:
            for depth in range(len(parts), 0, -1):
                old = names.get(".".join(parts[:depth]))
                # The beginnings of the old names are those of today, and are translated in turn.
                if old:
                    parts = [*old.split("."), *parts[depth:]]
                    if old.partition(".")[0] == "model_config":
                        parts[0] = "network_config"
                    break
        return f"{' { '.join(parts)}{self.text}{' }' * (len(parts) - 1)}"


def scalar(row: Row, wild: bool) -> st.SearchStrategy[str]:
    if not wild and row.path in LEGAL:
        return LEGAL[row.path]
    if row.names:
        return st.sampled_from([*row.names, *(str(i) for i in range(len(row.names)))])
    if row.type is Type.TEXT:
        return st.sampled_from(
            ["''", "'/data/x'", '"resnet:18"', "'name'", '"0.5"', "'/other/x'"][: 6 if wild else 5]
        )
    if row.type is Type.FLAG:
        return st.sampled_from(["True", "False", "true", "false", "t", "f", "0", "1"])
    if row.type is Type.COUNT:
        return st.sampled_from(["0", "1", "7", "0x20", "300", "4294967295"] if wild else ["2", "7", "64"])
    return st.sampled_from(
        ["0", "-1", "0.5", "1.0", "2.5", "100", "1e-5", "1e30", "-0.0"]
        if wild
        else ["0.1", "0.5", "0.9", "1e-3"]
    )


@st.composite
def lines_of(draw: st.DrawFn, row: Row, wild: bool) -> list[Line]:
    if row.type is Type.ANY:
        return [Line(row.path, " { enabled: True tags: ['a', 'b'] }")]
    if row.type in (Type.TEXT_MAP, Type.NUMBER_MAP):
        keys = draw(st.lists(st.sampled_from(KEYS.get(row.path, ["k"])), min_size=1, max_size=4))
        value = "'target'" if row.type is Type.TEXT_MAP else draw(scalar(row, wild))
        return [Line(row.path, f" {{ key: '{key}' value: {value} }}") for key in keys]
    count = draw(st.integers(1, 3)) if row.repeated else draw(st.sampled_from([1, 1, 1, 2]))
    return [Line(row.path, f": {draw(scalar(row, wild))}") for _ in range(count)]


@st.composite
def specs(draw: st.DrawFn, *, wild: bool) -> list[Line]:
    """Lines of a training spec, each with one field."""
    rows = [
        row
        for row in ROWS.values()
        if not row.path.startswith(("kitti", "coco", "sample", "image_dir", "target"))
    ]
    chosen = draw(st.sets(st.sampled_from(rows), max_size=40))
    paths = {row.path for row in chosen} | ALWAYS
    if not wild:  # a union keeps its last member, and with it one side of a size
        paths.discard("model_config.input_image_config.size_min.min")
    for pair in TOGETHER:
        if not wild and paths & pair:
            paths |= pair
    lines = []
    for path in sorted(paths):
        if path == "dataset_config.data_sources.image_directory_path":
            lines.append(Line(path, ": '/data/images'"))
        elif path == "dataset_config.validation_data_source.image_directory_path":
            lines.append(Line(path, ": '/data/validation'"))
        elif path == "training_config.output_model":
            lines.append(Line(path, ": '/data/out/model.tlt'"))
        else:
            lines += draw(lines_of(ROWS[path], wild))
    for name in draw(st.lists(st.sampled_from(["foo", "num_epoch", "rpn_stride"]), max_size=3)):
        lines.append(
            Line(f"training_config.{name}", draw(st.sampled_from([": 1", " { a: 1 }", ": [1, 2]"])), False)
        )
    return draw(st.permutations(lines))


CONVERT_LEGAL = {
    "root_directory_path": st.sampled_from(
        ["'/data/images'", "'/data/images/'", "'/data/labels'", "'/data'"]
    ),
    "img_dir_names": st.sampled_from(["'a'", "'b/c'", "'.'"]),
    "annotation_files": st.sampled_from(["'a.json'", "'b/c.json'"]),
    "image_dir_name": st.sampled_from(["'image_2'", "'.'", "'deep/er'"]),
    "label_dir_name": st.sampled_from(["'label_2'", "'image_2'"]),
    "partition_mode": st.sampled_from(["'random'", "'sequence'", "'other'"]),
    "kitti_sequence_to_frames_file": st.sampled_from(["'map.json'", "'/data/map.json'"]),
    "val_split": st.sampled_from(["0", "14", "33.3", "100"]),
    "num_partitions": st.sampled_from(["0", "1", "2", "5"]),
}


@st.composite
def converts(draw: st.DrawFn) -> list[Line]:
    """Lines of a spec of dataset_convert, each with one field."""
    message = draw(st.sampled_from(["kitti_config", "coco_config"]))
    known = [row for row in ROWS.values() if row.path.startswith((message, "sample_modifier", "image_dir"))]
    paths = {row.path for row in draw(st.sets(st.sampled_from(known), max_size=12))} | {
        path for path in ROWS if path.startswith(message) and ROWS[path].required
    }
    lines = []
    for path in sorted(paths):
        values = CONVERT_LEGAL.get(path.rpartition(".")[2])
        if values is None:
            lines += draw(lines_of(ROWS[path], wild=False))
        else:
            count = draw(st.integers(1, 3)) if ROWS[path].repeated else 1
            lines += [Line(path, f": {draw(values)}") for _ in range(count)]
    return draw(st.permutations(lines))


def written(lines: list[Line], old: bool = False) -> str:
    return "\n".join(line.written(NAMES_TODAY if old else {}) for line in lines)


def check(result: flow.Flow, *specs: list[Line]) -> None:
    for lines, report in zip(specs, result.reports, strict=True):
        # One field a line: the report names each line once.
        assert [entry.line for entry in report.entries] == list(range(1, len(lines) + 1))
        assert sum(report.counts().values()) == len(lines)
        for line, entry in zip(lines, report.entries, strict=True):
            assert (entry.outcome is Outcome.UNKNOWN) == (not line.known)
            if entry.outcome is Outcome.TAKEN:
                assert entry.kept and holds(result, entry), entry
            else:
                assert entry.words
    for manifest in result.manifests:
        resources.parse(manifest.body)


def holds(result: flow.Flow, entry: Entry) -> bool:
    """Tell whether a manifest has the value of a field that was taken, at the place that the report names."""
    path, _, index = entry.to.partition("[")
    for manifest in result.manifests:
        node: Any = manifest.body["spec"]
        for name in path.split("."):
            node = node.get(name) if isinstance(node, dict) else None
        if index and node is not None:
            node = node[int(index.rstrip("]"))]
        wanted = entry.result or entry.value.rpartition(": ")[2] if not isinstance(node, dict) else ""
        if any(same(value, wanted) for value in (node if isinstance(node, list) else [node])):
            return True
        if isinstance(node, dict):
            key, _, target = entry.value.partition(": ")
            if node.get(key) == target or node.get("uri") == entry.result:
                return True
    return False


def same(value: Any, text: str) -> bool:
    if isinstance(value, bool):
        return str(value).lower() == text.lower()
    if isinstance(value, int | float):
        return re.fullmatch(r"[-+.0-9e]+", text) is not None and abs(float(text) - value) <= 1e-5 * abs(value)
    return str(value) == text


@settings(max_examples=EXAMPLES, deadline=None)
@given(specs(wild=False), st.booleans())
def test_a_spec_that_tlt_accepts_becomes_valid_manifests_with_every_field_accounted_for(
    lines: list[Line], old: bool
) -> None:
    check(flow.build([("a.txt", written(lines, old))], MAPS), lines)


@settings(max_examples=EXAMPLES, deadline=None)
@given(specs(wild=False), converts())
def test_a_training_with_its_conversion_is_accounted_for(lines: list[Line], convert: list[Line]) -> None:
    check(flow.build([("a.txt", written(lines)), ("b.txt", written(convert))], MAPS), lines, convert)


@settings(max_examples=EXAMPLES, deadline=None)
@given(specs(wild=False), specs(wild=False))
def test_a_training_with_its_retraining_is_accounted_for(lines: list[Line], others: list[Line]) -> None:
    pruned = "training_config.retrain_pruned_model"
    lines = [line for line in lines if line.path != pruned]
    others = [line for line in others if line.path != pruned] + [Line(pruned, ": '/data/pruned.hdf5'")]
    check(flow.build([("a.txt", written(lines)), ("b.txt", written(others))], MAPS), lines, others)


@settings(max_examples=EXAMPLES, deadline=None)
@given(specs(wild=True))
def test_any_spec_is_accounted_for_or_refused_by_file_and_line(lines: list[Line]) -> None:
    try:
        result = flow.build([("a.txt", written(lines))], MAPS)
    except RunnerError as refused:
        for problem in refused.message.split("\n  "):
            assert (found := re.match(r"a\.txt:(\d+): ", problem)), problem
            # The field at fault stands in that line.
            assert lines[int(found[1]) - 1].path.rpartition(".")[2] in problem
    else:
        check(result, lines)
