"""Split: held-out shares by class, stability, groups."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlt_api.dataset import GroupBy
from tlt_runner.data.preparation import split
from tlt_runner.data.sample import Sample
from tlt_runner.errors import RunnerError

NAMES = [f"{number:06d}" for number in range(1000)]


def _held(names: list[str], classes: dict[str, set[str]], fraction: float = 0.2, seed: int = 42) -> set[str]:
    held = split.held_out(names, [classes.get(name, {"car"}) for name in names], fraction, seed)
    return {name for name, is_held in zip(names, held, strict=True) if is_held}


def test_the_draw_of_a_name_is_constant() -> None:
    # `printf 42:000000 | sha256sum` begins fa0305f7445949a7. Another value would move held-out images.
    assert split.draw("000000", 42) == pytest.approx(0.97660863, abs=1e-8)


def test_the_share_of_every_class_is_within_a_tenth_or_half_an_image() -> None:
    classes = {name: {"rare"} for name in NAMES[:30]} | {name: {"van", "car"} for name in NAMES[30:200]}
    held = _held(NAMES, classes)
    for members in (NAMES[:30], NAMES[30:200], NAMES[200:]):
        share = len(held.intersection(members)) / len(members)
        assert abs(share - 0.2) <= max(0.02, 0.5 / len(members))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sets(st.sampled_from("abcd"), max_size=3), min_size=2, max_size=60),
    st.floats(0.05, 0.9),
    st.integers(0, 9),
)
def test_a_class_of_two_images_is_on_both_sides(classes: list[set[str]], fraction: float, seed: int) -> None:
    names = [str(number) for number in range(len(classes))]
    alone = [{"only"}, {"only"}, *classes]
    held = split.held_out(["x", "y", *names], alone, fraction, seed)
    assert sorted(held[:2]) == [False, True]


def test_images_with_one_unique_class_each_are_stratified_by_their_shared_class() -> None:
    names = NAMES[:10]
    held = split.held_out(names, [{f"own {name}", "common"} for name in names], 0.2, 42)
    assert sum(held) == 2


def test_sequences_with_a_rare_class_each_are_held_out_as_wholes() -> None:
    groups = [f"s{number // 50}" for number in range(150)]
    classes = [{"car", ("tram", "truck", "van")[number // 50]} for number in range(150)]
    assert sum(split.held_out(groups, classes, 0.3, 42)) == 50


def test_showing_one_class_on_both_sides_takes_none_from_another() -> None:
    held = split.held_out(["0", "1", "2"], [{"a", "b", "c"}, {"b"}, {"a"}], 0.3, 1)
    assert held == [False, True, True]


def test_the_only_group_of_a_stratum_stays_in_training() -> None:
    # "b" and "c" are rarer than "a", so the first group is alone among those that "a" decides.
    held = split.held_out(["0", "1", "2"], [{"a"}, {"a", "b", "c"}, {"a", "b", "c"}], 0.3, 1)
    assert held == [False, False, True]


def test_some_of_the_images_without_a_shared_class_are_held_out() -> None:
    held = split.held_out(NAMES[:10], [{name} for name in NAMES[:10]], 0.2, 42)
    assert sum(held) == 2


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("123456"), st.sets(st.sampled_from("abcdef"))), min_size=2, max_size=40
    ),
    st.floats(0.05, 0.95),
    st.integers(0, 9),
)
def test_several_groups_leave_at_least_one_on_each_side(
    images: list[tuple[str, set[str]]], fraction: float, seed: int
) -> None:
    groups = [group for group, _ in images]
    held = split.held_out(groups, [classes for _, classes in images], fraction, seed)
    if len(set(groups)) > 1:
        assert any(held)
        assert not all(held)


def test_a_group_that_shares_no_class_goes_to_training() -> None:
    for seed in range(20):
        held = split.held_out(["a", *NAMES[:50]], [{"unique"}, *[{"car"}] * 50], 0.5, seed)
        assert not held[0]


def test_new_images_do_not_move_old_ones_in_a_large_set() -> None:
    before, after = _held(NAMES[:900], {}), _held(NAMES, {})
    assert before == after.intersection(NAMES[:900])


@settings(max_examples=50, deadline=None)
@given(st.integers(20, 60), st.integers(1, 10), st.integers(0, 1000))
def test_new_images_move_few_old_ones_in_a_small_set(old: int, new: int, seed: int) -> None:
    before = _held(NAMES[:old], {}, seed=seed)
    after = _held(NAMES[: old + new], {}, seed=seed).intersection(NAMES[:old])
    assert len(before ^ after) <= 1 + new


def test_another_seed_holds_out_other_images() -> None:
    assert _held(NAMES, {}, seed=1) != _held(NAMES, {}, seed=2)


def test_the_split_does_not_depend_on_the_order() -> None:
    assert _held(NAMES, {}) == _held(list(reversed(NAMES)), {})


def test_groups_stay_together() -> None:
    groups = [f"sequence {number // 40}" for number in range(1000)]
    held = split.held_out(groups, [{"car"}] * 1000, 0.2, 42)
    for start in range(0, 1000, 40):
        assert len(set(held[start : start + 40])) == 1
    assert abs(sum(held) - 200) <= 20


def _sample(stem: str) -> Sample:
    return Sample(f"images/{stem}", stem, Path(f"{stem}.jpg"), f"images/{stem}.jpg", f"{stem}.txt", None)


SAMPLES = [_sample(stem) for stem in ("a/street_0001", "a/street_0002", "b/street_0001", "yard")]


def test_a_separator_groups_by_the_stem_before_its_last_occurrence() -> None:
    by_folder = split.grouping(SAMPLES, GroupBy(separator="/"), {}).groups
    assert by_folder == ["a", "a", "b", "yard"]
    by_prefix = split.grouping(SAMPLES, GroupBy(separator="_"), {}).groups
    assert by_prefix == ["a/street", "a/street", "b/street", "yard"]
    in_folders = [_sample("seq_0/0001"), _sample("seq_1/0001")]
    assert split.grouping(in_folders, GroupBy(separator="_"), {}).groups == ["seq_0/0001", "seq_1/0001"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("g.json", json.dumps({"one": ["a/street_0001", "images/a/street_0002"], "two": ["yard", "gone"]})),
        (
            "g.csv",
            "image,group\na/street_0001.jpg,one\r\nimages/a/street_0002.png, one\nyard,two\ngone,two\n",
        ),
        ("g.txt", "\ufeffa/street_0001 one\nimages/a/street_0002\tone\n\nyard two\ngone two\n"),
    ],
)
def test_a_file_of_groups_is_a_sequence_map_or_a_table(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    table = split.read_groups(tmp_path / name, name)
    grouping = split.grouping(SAMPLES, GroupBy(file=name), table)
    assert grouping.groups == ["one", "one", "\0b/street_0001", "two"]
    assert (grouping.ungrouped, grouping.unused) == (1, 1)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("g.json", "[1]", "g.json: expected an object"),
        ("g.json", '{"a": [1]}', "g.json: 'a': expected a list of frame names"),
        ("g.json", "{", "g.json: expected JSON"),
        ("g.json", "[" * 100_000, "g.json: expected JSON"),
        ("g.csv", "a,b\nc\n", "g.csv: line 2: expected two columns"),
        ("g.csv", "a,b\na.jpg,c\n", "g.csv: line 2: expected one group for 'a.jpg', got 'b' and 'c'"),
        ("g.csv", "a,b\nb," + 200_000 * "x", "g.csv: line 2: field larger than"),
        ("g.csv", "a;b", "g.csv: line 1: expected two columns, image and group, with a comma or white space"),
        ("g.csv", "\udcff", "g.csv: expected UTF-8"),
    ],
)
def test_a_wrong_file_of_groups_is_refused_by_line(
    tmp_path: Path, name: str, content: str, expected: str
) -> None:
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(RunnerError, match=expected.replace("(", "\\(")):
        split.read_groups(tmp_path / name, name)
