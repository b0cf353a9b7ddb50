"""Which image is held out: by its name and the seed alone."""

from pathlib import Path

import pytest

from tlt_api.trainingjob import Dataset
from tlt_runner.data import sources
from tlt_runner.data.formats.folders import Place
from tlt_runner.data.formats.kitti import KittiReader
from tlt_runner.data.sample import Listing, Sample
from tlt_runner.data.sources import Source

READER = KittiReader(Place(Path("i"), "i"), Place(Path("l"), "l"))


def _dataset(fraction: float = 0.2, seed: int = 42) -> Dataset:
    return Dataset.model_validate(
        {
            "uri": "file:///nowhere",
            "targetClassMapping": {"car": "car"},
            "imageSize": {"width": 64, "height": 64},
            "validation": {"fraction": fraction, "seed": seed},
        }
    )


def _source(stems: list[str], subset: str | None = None) -> Source:
    samples = [
        Sample(f"i/{s}", s, Path(f"i/{s}.jpg"), f"i/{s}.jpg", f"l/{s}.txt", Path(f"l/{s}.txt")) for s in stems
    ]
    return Source(READER, Listing(samples, len(samples), [], [], [], 0, []), subset)  # type: ignore[arg-type]


def _held_out(stems: list[str], dataset: Dataset) -> set[str]:
    planned = sources.plan([_source(stems)], dataset)
    return {item.sample.image.stem for item in planned if item.subset == "validation"}


STEMS = [f"{number:06d}" for number in range(1000)]


def test_the_draw_of_a_name_never_changes() -> None:
    # `printf 42:000000 | sha256sum` begins fa0305f7445949a7. Another value would move held-out images.
    assert sources.draw("000000", 42) == pytest.approx(0.97660863, abs=1e-8)


def test_the_fraction_is_kept_in_a_large_set() -> None:
    assert 160 <= len(_held_out(STEMS, _dataset(0.2))) <= 240


def test_images_that_come_or_go_do_not_move_the_others() -> None:
    before = _held_out(STEMS[:500], _dataset())
    after = _held_out(STEMS, _dataset())
    assert after & set(STEMS[:500]) == before


def test_another_seed_draws_another_set() -> None:
    assert _held_out(STEMS, _dataset(seed=1)) != _held_out(STEMS, _dataset(seed=2))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("fraction", [0.001, 0.999])
@pytest.mark.parametrize("count", [2, 3])
def test_a_small_set_has_an_image_on_either_side(count: int, fraction: float, seed: int) -> None:
    held_out = _held_out(STEMS[:count], _dataset(fraction, seed))
    assert 1 <= len(held_out) < count


def test_folders_of_their_own_are_not_drawn_from() -> None:
    planned = sources.plan([_source(["a", "b"], "training"), _source(["c"], "validation")], _dataset())
    assert [(item.sample.image.stem, item.subset) for item in planned] == [
        ("a", "training"),
        ("b", "training"),
        ("c", "validation"),
    ]
