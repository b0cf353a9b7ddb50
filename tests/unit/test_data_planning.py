"""Planning: the subset of each image, and the shards of the records."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tlt_api.dataset import Dataset
from tlt_runner.data.preparation import planning
from tlt_runner.data.preparation.planning import PlannedSample
from tlt_runner.data.preparation.sources import Source
from tlt_runner.data.sample import Labels, Listing, Sample
from tlt_runner.errors import RunnerError
from tlt_runner.storage import Storage


class Reader:
    """Knows the classes of its samples, by stem."""

    def __init__(self, classes: dict[str, list[str]]) -> None:
        self.of_stem = classes

    def listing(self) -> Listing:
        samples = [
            Sample(f"i/{s}", s, Path(f"i/{s}.jpg"), f"i/{s}.jpg", f"l/{s}.txt", s)
            for s in sorted(self.of_stem)
        ]
        return Listing(samples, len(samples), [], [], [], 0, [])

    def classes(self, sample: Sample) -> Counter[str]:
        return Counter(self.of_stem[sample.stem])

    def read(self, sample: Sample, image_size: tuple[int, int]) -> Labels:
        raise NotImplementedError


def _source(classes: dict[str, list[str]], subset: Any = None) -> Source:
    reader = Reader(classes)
    return Source(reader, reader.listing(), subset)


def _dataset(root: Path, **validation: Any) -> Dataset:
    return Dataset.model_validate(
        {
            "uri": f"file://{root}",
            "targetClassMapping": {"car": "vehicle", "van": "vehicle", "person": "person"},
            "imageSize": {"width": 64, "height": 64},
            "validation": validation,
        }
    )


def _held_out(plan: planning.Assignment) -> set[str]:
    return {item.sample.stem for item in plan.items if item.subset == "validation"}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(scratch=tmp_path / "scratch")


def test_the_split_is_stratified_by_the_classes_to_learn(storage: Storage, tmp_path: Path) -> None:
    # Cars and vans are one class, and trams none: of each class to learn, two images of ten.
    stems = {f"{number:02d}": ["car", "tram"] if number % 2 else ["van"] for number in range(10)}
    people = {f"p{number}": ["person"] for number in range(10)}
    plan = planning.plan([_source(stems | people)], _dataset(tmp_path, fraction=0.2), storage)
    held_out = _held_out(plan)
    assert [len(held_out & group.keys()) for group in (stems, people)] == [2, 2]
    assert plan.classes == {"car": 5, "tram": 5, "van": 5, "person": 10}


def test_separate_validation_folders_are_not_split(storage: Storage, tmp_path: Path) -> None:
    training, validation = _source({"a": ["car"], "b": []}, "training"), _source({"c": []}, "validation")
    plan = planning.plan([training, validation], _dataset(tmp_path, images="i", labels="l"), storage)
    assert [(item.sample.stem, item.subset) for item in plan.items] == [
        ("a", "training"),
        ("b", "training"),
        ("c", "validation"),
    ]


def test_the_file_of_groups_keeps_images_together_and_its_gaps_are_reported(
    storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "groups.csv").write_text(
        "".join(f"{number:02d},{'ab'[number % 2]}\n" for number in range(18)) + "nowhere,a\n"
    )
    stems = {f"{number:02d}": ["car"] for number in range(20)}
    dataset = _dataset(tmp_path, fraction=0.5, groupBy={"file": "groups.csv"})
    plan = planning.plan([_source(stems)], dataset, storage)
    held_out = _held_out(plan)
    for part in (0, 1):
        assert len(held_out & {f"{number:02d}" for number in range(part, 18, 2)}) in (0, 9)
    assert plan.warnings == [
        "2 images are not in the file of groups; each is a group of its own",
        "1 names in the file of groups are no usable images",
    ]


def _planned(count: int, subset: Any = "training") -> list[PlannedSample]:
    reader = Reader({f"{number:06d}": [] for number in range(count)})
    return [PlannedSample(sample, reader, subset) for sample in reader.listing().samples]


@pytest.mark.parametrize(
    ("images", "files"), [(0, 0), (1, 1), (63, 1), (64, 8), (2048, 8), (2049, 16), (5000, 24), (100_000, 392)]
)
def test_files_hold_about_256_images_and_are_shared_evenly_by_eight(images: int, files: int) -> None:
    assert planning.shard_count(images) == files


def test_every_image_is_in_one_file_and_files_differ_by_one_image_at_most() -> None:
    items = _planned(2100) + _planned(70, "validation")
    shards = planning.shards(items)
    assert [shard.name for shard in shards][15:17] == [
        "training-00015-of-00016.tfrecord",
        "validation-00000-of-00008.tfrecord",
    ]
    assert shards[0].sidecar == "training-00000-of-00016.json"
    # 2100 = 16 * 131 + 4, 70 = 8 * 8 + 6
    assert Counter(len(shard.items) for shard in shards) == {131: 12, 132: 4, 8: 2, 9: 6}
    assert sorted((item.subset, item.sample.name) for shard in shards for item in shard.items) == sorted(
        (item.subset, item.sample.name) for item in items
    )


def test_images_are_in_the_order_of_a_hash_of_their_name() -> None:
    (shard,) = planning.shards(_planned(50))
    names = [item.sample.name for item in shard.items]
    assert names == sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    (other,) = planning.shards(reversed(_planned(50)))
    assert [item.sample.name for item in other.items] == names


def test_images_that_occur_twice_are_named() -> None:
    items = _planned(3) + [
        PlannedSample(Sample(f"v/{s}", s, Path(s), f"v/{s}.jpg", "", s), Reader({}), "validation")
        for s in "ab"
    ]
    images = {"i/000000": b"x", "i/000001": b"y", "i/000002": b"x", "v/a": b"y", "v/b": b"z"}
    assert planning.duplicates(items, images) == (["v/a.jpg"], ["i/000002.jpg"])


def test_images_that_are_all_of_one_group_are_refused(tmp_path: Path, storage: Storage) -> None:
    source = _source({f"street_{number}": ["car"] for number in range(9)})
    dataset = _dataset(tmp_path, fraction=0.5, groupBy={"separator": "_"})
    with pytest.raises(RunnerError, match="groupBy: expected several groups.* all 9 images in one, 'street'"):
        planning.plan([source], dataset, storage)
