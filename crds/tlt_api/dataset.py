"""The data set of a TrainingJob: where it is, how it is read, what is held out (``spec.dataset``)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tlt_api.base import ApiModel, Rule, exactly_one_of
from tlt_api.common import Fraction, OpenFraction, RelativePath, Uri

Multiple16 = Annotated[int, Field(ge=64, le=4096, multiple_of=16)]
LONGEST_CLASS = 128
"""Characters of a class's name."""
MOST_CLASSES = 500
"""Classes of a targetClassMapping."""
NOT_A_CLASS = "background"
"""The detector's own name for what is no object."""
ClassName = Annotated[str, Field(min_length=1, max_length=LONGEST_CLASS)]


LabelFormat = Literal["kitti", "voc", "coco", "yolo"]
"""Formats of labels; the runner's ``tlt_runner.data.formats`` reads and writes each."""


class ImageSize(ApiModel):
    """The size to which every image is brought, with its labels."""

    width: Multiple16
    """Pixels, a multiple of 16 (the detector's stride)."""
    height: Multiple16
    """Pixels, a multiple of 16 (the detector's stride)."""
    mode: Literal["stretch", "letterbox"] = "stretch"
    """stretch changes the aspect ratio; letterbox keeps it and pads."""


class GroupBy(ApiModel):
    """Which images belong together: near-duplicates must not be trained on and judged by."""

    separator: Annotated[str, Field(min_length=1, max_length=16)] | None = None
    """An image's group is what stands before the last such text: "/" groups by sub-folder, "_" groups
    a/street_0001 with a/street_0002. A name without it is a group of its own."""
    file: RelativePath | None = None
    """File that names the groups, relative to the data set's uri: TLT's sequence map (.json, sequence ->
    frames) or a table of two columns (image name, group) with a comma or white space between."""

    rules = (exactly_one_of("separator", "file", hint="group by a part of the name, or by a file"),)


class Validation(ApiModel):
    """The held-out images: a fraction drawn at random, a folder of their own, or a list of names."""

    fraction: OpenFraction | None = None
    """Share of the images that is held out, of every class alike, drawn by a hash of the name and the seed:
    images that come or go do not move the others."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of that draw."""
    group_by: GroupBy | None = None
    """Images that the draw keeps together."""
    images: RelativePath | None = None
    """Folder of validation images, relative to the data set's uri."""
    labels: RelativePath | None = None
    """Their labels: a folder, or for coco a file or a folder of files."""
    image_set: RelativePath | None = None
    """File with the names of the validation images, one a line, relative to the data set's uri: of VOC
    ImageSets/Main/val.txt."""

    rules = (
        exactly_one_of(
            "fraction",
            "images",
            "image_set",
            hint="hold out a fraction, or name a folder or a list of validation images",
        ),
        Rule(
            cel="has(self.images) == has(self.labels)",
            check=lambda self: (self.images is None) == (self.labels is None),
            message="expected images and labels together: give both or neither",
            given="'one of them'",
        ),
        Rule(
            cel="!has(self.groupBy) || has(self.fraction)",
            check=lambda self: self.group_by is None or self.fraction is not None,
            message="expected groupBy with fraction only: a folder or a list says already what is held out",
            given="'groupBy without fraction'",
        ),
    )


class BadSamples(ApiModel):
    """What happens to images and labels that cannot be used."""

    policy: Literal["Skip", "Fail"] = "Skip"
    """Skip leaves them out and counts them; Fail ends the job with the list of them."""
    max_fraction: Fraction = 0.01
    """With Skip: the share of images above which the job fails all the same."""


class Dataset(ApiModel):
    """Images and labels."""

    uri: Uri
    """Root of the data set."""
    format: LabelFormat = "kitti"
    """Format of the labels."""
    images: RelativePath | None = None
    """Folder of images, relative to uri, with its sub-folders. By default the format's own:
    training/image_2 (kitti), JPEGImages (voc), images (coco, yolo)."""
    labels: RelativePath | None = None
    """Labels, relative to uri: a folder, or for coco a .json file or a folder of them. By default the
    format's own: training/label_2 (kitti), Annotations (voc), annotations (coco), labels (yolo)."""
    image_set: RelativePath | None = None
    """File with the names of the images to use, one a line, relative to uri: of VOC
    ImageSets/Main/train.txt. By default all images are used."""
    class_names: Annotated[list[ClassName], Field(max_length=1000)] = []
    """Of yolo: the classes by number, from 0. By default those of data.yaml at uri."""
    target_class_mapping: Annotated[dict[str, ClassName], Field(min_length=1, max_length=MOST_CLASSES)]
    """Class in the labels -> class to learn. Labels of other classes are not objects."""
    image_size: ImageSize
    """Size of the network's input."""
    validation: Validation = Validation(fraction=0.2)
    """The held-out images."""
    bad_samples: BadSamples = BadSamples()
    """What happens to images and labels that cannot be used."""

    rules = (
        Rule(
            cel="self.targetClassMapping.all(k, !('background' in [k, self.targetClassMapping[k]]))",
            check=lambda self: (
                NOT_A_CLASS not in {*self.target_class_mapping, *self.target_class_mapping.values()}
            ),
            message="expected no class background in targetClassMapping: the detector adds it itself",
            given="'background'",
        ),
        Rule(
            cel="self.format == 'yolo' || !has(self.classNames) || size(self.classNames) == 0",
            check=lambda self: self.format == "yolo" or not self.class_names,
            message="expected classNames with format yolo only: labels of other formats name their classes",
            given="self.format",
        ),
    )

    @property
    def target_classes(self) -> list[str]:
        """The classes to learn, sorted; a class's id is its place here."""
        return sorted(set(self.target_class_mapping.values()))
