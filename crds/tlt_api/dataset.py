"""Dataset of a TrainingJob (``spec.dataset``): location, label format, classes and validation split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tlt_api.base import ApiModel, Rule, exactly_one_of
from tlt_api.common import Fraction, OpenFraction, RelativePath, Uri

Side = Annotated[int, Field(ge=64, le=4096)]
LONGEST_CLASS = 128
"""Maximum length of a class name, in characters."""
MOST_CLASSES = 500
"""Maximum number of entries of a targetClassMapping."""
NOT_A_CLASS = "background"
"""Class name that the detector reserves for everything that is not an object."""
ClassName = Annotated[str, Field(min_length=1, max_length=LONGEST_CLASS)]


LabelFormat = Literal["kitti", "voc", "coco", "yolo", "labelme"]
"""Formats of labels; the runner's ``tlt_runner.data.formats`` reads and writes each."""


ColorMode = Literal["rgb", "grayscale"]
Unlabelled = Literal["background", "bad"]
"""Meaning of an image without a label: an image without objects, or one that cannot be used."""
Shapes = Literal["refuse", "boundingBox"]
"""Treatment of labels that outline an object instead of boxing it."""
Layout = Literal["fields", "auto"]
Coordinates = Literal["auto", "zeroBased", "oneBased"]
Orientation = Literal["auto", "stored", "exif"]


class ImageSize(ApiModel):
    """Size of the network input, to which every image and its labels are resized."""

    width: Side
    """Width of the network input in pixels. Of a size that is no multiple of 16, the stride of the
    detector, the model itself pads the right border to the next one."""
    height: Side
    """Height of the network input in pixels. Of a size that is no multiple of 16, the stride of the
    detector, the model itself pads the bottom border to the next one."""
    mode: Literal["stretch", "letterbox"] = "stretch"
    """Resize mode: stretch changes the aspect ratio; letterbox keeps it and pads with black."""


class GroupBy(ApiModel):
    """Groups of near-duplicate images, which must not be divided between training and validation."""

    separator: Annotated[str, Field(min_length=1, max_length=16)] | None = None
    """Group images by the part of the name before the last occurrence of this text: "/" groups by sub-folder,
    "_" groups a/street_0001 with a/street_0002. A name without it forms its own group."""
    file: RelativePath | None = None
    """File with the groups, relative to the dataset's uri: TLT's sequence map (.json, sequence -> frames), or
    a table of two columns (image name, group) separated by a comma or white space."""

    rules = (exactly_one_of("separator", "file", hint="group by a part of the name, or by a file"),)


class Validation(ApiModel):
    """Validation split: a random fraction of the images, a separate folder, or a list of image names."""

    fraction: OpenFraction | None = None
    """Fraction of the images held out for validation, stratified by class. Drawn by a hash of name and seed,
    so that adding or removing images hardly moves the others."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Random seed of the validation split, with fraction."""
    group_by: GroupBy | None = None
    """Groups of near-duplicate images that the split keeps together, with fraction only."""
    images: RelativePath | None = None
    """Folder of validation images, relative to the dataset's uri. Requires labels."""
    labels: RelativePath | None = None
    """Labels of the validation images, relative to the dataset's uri: a folder, or for coco a .json file or a
    folder of them. Requires images."""
    image_set: RelativePath | None = None
    """File with the names of the validation images, one per line, relative to the dataset's uri; with VOC,
    ImageSets/Main/val.txt."""

    rules = (
        exactly_one_of(
            "fraction",
            "images",
            "image_set",
            hint="hold out a fraction, or name a folder or a list of validation images",
        ),
        Rule(
            # There is no default for a second folder of either.
            cel="has(self.images) == has(self.labels)",
            check=lambda self: (self.images is None) == (self.labels is None),
            message="expected images and labels together: give both or neither",
            given="'one of them'",
        ),
        Rule(
            cel="!has(self.groupBy) || has(self.fraction)",
            check=lambda self: self.group_by is None or self.fraction is not None,
            message="expected groupBy with fraction only: a folder or a list defines the split itself",
            given="'groupBy without fraction'",
        ),
    )


class BadSamples(ApiModel):
    """Handling of images and labels that cannot be used."""

    policy: Literal["Skip", "Fail"] = "Skip"
    """Policy for unusable images and labels: Skip leaves them out and counts them; Fail fails the job and
    lists them."""
    max_fraction: Fraction = 0.01
    """Maximum fraction of unusable images with policy Skip; the job fails above it."""


class Dataset(ApiModel):
    """Images and labels for training and validation."""

    uri: Uri
    """Root folder of the dataset: pvc://claim/path, s3://bucket/prefix, or file:///path in local runs."""
    layout: Layout = "fields"
    """Search for images and labels: fields takes format, images, labels and imageSet as given, or their
    defaults; auto looks at the folder and finds them, class names and a split into training and validation by
    itself (`tlt data` shows what it finds)."""
    format: LabelFormat = "kitti"
    """Label format: KITTI, Pascal VOC, COCO, YOLO or labelme JSON. With layout auto it is found, unless it is
    another one than kitti, which is then looked for alone."""
    images: RelativePath | None = None
    """Folder of images with its sub-folders, relative to uri. Defaults to training/image_2 (kitti),
    JPEGImages (voc) or images (coco, yolo, labelme)."""
    labels: RelativePath | None = None
    """Labels, relative to uri: a folder, or for coco a .json file or a folder of them. Defaults to
    training/label_2 (kitti), Annotations (voc), annotations (coco), labels (yolo) or images (labelme)."""
    image_set: RelativePath | None = None
    """File with the names of the images to use, one per line, relative to uri; with VOC,
    ImageSets/Main/train.txt. Defaults to all images."""
    class_names: Annotated[list[ClassName], Field(max_length=1000)] = []
    """Class names by class number, from 0; with format yolo only. Defaults to those of the file that tools
    write with the labels: data.yaml, obj.data, obj.names, classes.txt or _darknet.labels."""
    unlabelled: Unlabelled | None = None
    """Images without a label: background trains on them as images without objects; bad counts them as bad
    samples. Defaults to background (yolo), bad (kitti, voc, labelme), and for coco to neither: an image that
    no .json file lists is no part of the dataset. Without this field, images without a label are bad in a
    dataset that has at least as many labels without an image, because the names may not match."""
    shapes: Shapes = "refuse"
    """Objects without a box: polygons and rotated boxes in yolo labels, annotations of coco with polygons and
    no bbox. refuse counts their image as a bad sample; boundingBox takes the smallest upright box around
    each."""
    coordinates: Coordinates = "auto"
    """Number of the first pixel in VOC labels: oneBased (VOC's definition, the maximum is included),
    zeroBased (CVAT, datumaro, VoTT, Label Studio, labelme), or auto: decided by the boxes at the edges of all
    images, oneBased where there is none. With format voc only; the other formats count from 0."""
    orientation: Orientation = "auto"
    """View of photos with an EXIF orientation on which the labels were drawn: stored (the tag is ignored),
    exif (as viewers show it: the images are turned), or auto: decided by the image sizes in the labels and by
    boxes outside the image, stored where nothing tells."""
    target_class_mapping: Annotated[dict[str, ClassName], Field(min_length=1, max_length=MOST_CLASSES)]
    """Map from a class name in the labels to the class to learn. Labels of all other classes are ignored."""
    image_size: ImageSize
    """Size of the network input, to which every image and its labels are resized."""
    validation: Validation = Validation(fraction=0.2)
    """Validation split: a random fraction of the images, a separate folder, or a list of image names."""
    color_mode: ColorMode = "rgb"
    """Colour of the network input (TLT: image_type). grayscale: one channel, the luma of colour images; rgb:
    three channels, equal ones for grayscale images. Must be the model's if spec.model.from is set."""
    bad_samples: BadSamples = BadSamples()
    """Handling of images and labels that cannot be used."""

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
            # kubectl makes the text "false" of the YAML keys no, off and n, and "true" of yes, on and y. They
            # are refused when a resource is created: one that was stored before this rule goes on as it is.
            cel="!self.targetClassMapping.exists(k, k in ['true', 'false'])",
            check=lambda self: True,
            message=(
                "expected no class true or false as a key of targetClassMapping: YAML reads yes, no, on, "
                "off, y and n as these: quote the key"
            ),
            given="self.targetClassMapping.exists(k, k == 'true') ? 'true' : 'false'",
        ),
        Rule(
            # Labels of YOLO have numbers only.
            cel="self.format == 'yolo' || self.layout == 'auto' || !has(self.classNames) || "
            "size(self.classNames) == 0",
            check=lambda self: self.format == "yolo" or self.layout == "auto" or not self.class_names,
            message="expected classNames with format yolo only: labels of other formats name their classes",
            given="self.format",
        ),
        Rule(
            # The other formats have nothing but boxes.
            cel="self.format in ['coco', 'yolo'] || self.layout == 'auto' || !has(self.shapes) || "
            "self.shapes == 'refuse'",
            check=lambda self: (
                self.format in ("coco", "yolo") or self.layout == "auto" or self.shapes == "refuse"
            ),
            message="expected shapes with format coco or yolo only: labels of the other formats have boxes",
            given="self.format",
        ),
        Rule(
            cel="self.layout != 'auto' || !(has(self.images) || has(self.labels) || has(self.imageSet))",
            check=lambda self: (
                self.layout != "auto" or (self.images, self.labels, self.image_set) == (None, None, None)
            ),
            message="expected no images, labels or imageSet with layout auto, which finds them",
            given="'one of them'",
        ),
        Rule(
            cel="self.format == 'voc' || self.layout == 'auto' || self.coordinates == 'auto'",
            check=lambda self: "auto" in (self.layout, self.coordinates) or self.format == "voc",
            message="expected coordinates with format voc only: the other formats count from 0",
            given="self.format",
        ),
    )

    @property
    def target_classes(self) -> list[str]:
        """Sorted names of the classes to learn; the id of a class is its index in this list."""
        # A map has no order: the API server gives its keys in another one than the manifest.
        return sorted(set(self.target_class_mapping.values()))
