"""The data set: folders, classes, validation split, from a training spec and those of dataset_convert.

TLT's training spec names records and the root of the images; which folders below it hold images and labels,
and how much is held out, only dataset_convert's spec says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tlt_runner.from_tlt import coco, paths
from tlt_runner.from_tlt.spec import Given, Spec
from tlt_runner.from_tlt.translation import Translation

_SOURCES = "dataset_config.data_sources"
_VALIDATION = "dataset_config.validation_data_source"
_USUAL = {"image_dir_name": "image_2", "label_dir_name": "label_2"}
"""Folders of TLT's samples, for a training spec that comes alone."""
_MODE = "kitti_config.partition_mode"
_FRACTION = 0.2
"""Our default share of validation images."""


@dataclass(frozen=True)
class _Folders:
    """Addresses of images and labels, with the fields that they come from."""

    images: str
    labels: str
    root: str


def translate(t: Translation) -> None:
    """Translate what describes the data set."""
    _classes(t)
    training, validation = _roles(t)
    _sources(t)
    dataset = _Dataset(t, training, validation)
    if training is not None and training.has("coco_config"):
        t.put("dataset.format", "coco")
    dataset.translate()


def _classes(t: Translation) -> None:
    to = "dataset.targetClassMapping"
    mapping: dict[str, str] = {}
    of_coco = any(one.has("coco_config") for one in t.converts)
    for item in t.of("dataset_config.target_class_mapping"):
        target = str(item.value[1]) if isinstance(item.value, tuple) else ""
        # TLT refuses these, and so does the API.
        if "background" in (item.key, target) or not item.key or not target:
            t.problem(item, "expected a class and its target, neither of them empty or background")
            continue
        # TLT removes spaces from the names of a COCO file, and specs have them so.
        key = coco.SPACED.get(item.key.lower(), item.key) if of_coco else item.key
        mapping[key] = target
        if key == item.key:
            t.taken(item, to)
        else:
            t.changed(item, to, f"{key}: {target}", "as COCO's file has the name; TLT removes spaces")
    if mapping:
        t.put(to, mapping)
    other = [key for key in mapping if key.lower() not in coco.CLASSES]
    if of_coco and other:
        words = (
            "TLT removes spaces from COCO's class names, and these are not COCO's: write them as the file's "
            "categories have them"
        )
        t.assume(f"{to} {', '.join(other)}", words, kept=False)


def _roles(t: Translation) -> tuple[Spec | None, Spec | None]:
    """Return the specs of dataset_convert for training and for validation."""
    if len(t.converts) < 2:
        return (t.converts[0] if t.converts else None), None
    first, second = t.converts
    trained = next((str(item.value).rstrip("/") for item in t.of(f"{_SOURCES}.image_directory_path")), "")
    held_out = str(t.value(f"{_VALIDATION}.image_directory_path", "")).rstrip("/")

    def agreement(training: Spec, validation: Spec) -> int:
        return (_root(training) == trained) + (_root(validation) == held_out)

    # By the roots that the training spec names; otherwise as given.
    return (second, first) if agreement(second, first) > agreement(first, second) else (first, second)


def _root(convert: Spec) -> str:
    message = "coco_config" if convert.has("coco_config") else "kitti_config"
    return str(convert.value(f"{message}.root_directory_path", "")).rstrip("/")


def _sources(t: Translation) -> None:
    """Account for the weights of the sources."""
    weights = t.of(f"{_SOURCES}.source_weight")
    equal = len({item.number for item in weights}) <= 1
    for item in weights:
        words = "all images have equal weight"
        t.without(item, words, kept=equal and (item.number == 0 or len(weights) == _count(t)))


def _count(t: Translation) -> int:
    return len({item.block for item in t.spec.effective() if item.path.startswith(f"{_SOURCES}.")})


def _fold_in(records: Given) -> int | None:
    """Return the fold that the name of records has, as in ``name-fold-001-of-002*``; None for all."""
    found = re.search(r"fold-(\d+)(?!\d|-of-0*1\b)", str(records.value))
    return int(found[1]) if found else None


class _Dataset:
    """Folders of training and validation, and the split between them."""

    def __init__(self, t: Translation, training: Spec | None, validation: Spec | None) -> None:
        self.t = t
        self.training = training
        self.validation = validation
        # Fields that name folders, and the field below spec that has the folder: said once all are known.
        self._named: list[tuple[Given, str]] = []
        # Roots of conversions that are not the root of the images that the training spec names.
        self._elsewhere: set[int] = set()

    def translate(self) -> None:
        """Set ``dataset.uri`` and all that is relative to it."""
        t = self.t
        held_out = t.of(f"{_VALIDATION}.image_directory_path")
        images = self._image_root()
        if self.training is not None and self.training.has("coco_config"):
            training, validation = self._coco(self.training, images)
        else:
            training, validation = self._kitti(self.training, images, "dataset"), None
        if held_out:
            validation = self._held_out(held_out[0], training, validation)
        self._rest()
        self._records(in_training_folder=validation is None)
        if training is None:
            return
        folders = {"dataset": training}
        if validation is not None:
            folders["dataset.validation"] = validation
        addresses = [address for one in folders.values() for address in (one.images, one.labels)]
        root = paths.root(training.root, addresses)
        if root is None:
            words = f"expected all images and labels in one claim or bucket, got {', '.join(addresses)}"
            t.problem(held_out[0] if held_out else images, words)
            return
        t.put("dataset.uri", root)
        for use, one in folders.items():
            t.put(f"{use}.images", paths.relative(root, one.images))
            t.put(f"{use}.labels", paths.relative(root, one.labels))
        self._say(root)
        if validation is None:
            self._split(root)
        for fold in t.of("dataset_config.validation_fold"):
            if t.account(fold) is None:
                t.changed(fold, "dataset.validation.images", t.got("dataset.validation.images"), "a folder")

    def _held_out(self, item: Given, training: _Folders | None, pair: _Folders | None) -> _Folders | None:
        """Return the folders that the training spec validates on; None where they are those of training.

        Args:
            item: Root of the images, as the training spec names it.
            training: Folders of training.
            pair: Validation that the COCO conversion of the training names.
        """
        if pair is not None:
            self._named.append((item, "dataset.validation.images"))
            return pair
        named = len(self._named)
        folders = self._kitti(self.validation, item, "dataset.validation")
        if folders is not None and training is not None and folders.images == training.images:
            # TLT tells the two apart by their records, of which each is one fold of the same images.
            del self._named[named:]
            self.t.withdraw("dataset.validation", "", kept=True)
            return None
        return folders

    def _fold(self) -> int:
        """Return the fold that is validated on: as given, or the one that the records' names have."""
        t = self.t
        for item in t.of("dataset_config.validation_fold"):
            return int(item.number)
        numbers = [_fold_in(item) for item in t.of(f"{_VALIDATION}.tfrecords_path")]
        return next((number for number in numbers if number is not None), 0)

    def _records(self, *, in_training_folder: bool) -> None:
        """Account for the records: those of one fold are a part of the images.

        Args:
            in_training_folder: True if validation images are held out of the training's folder.
        """
        t = self.t
        words = "records are made from images and labels"
        training, validation = t.of(f"{_SOURCES}.tfrecords_path"), t.of(f"{_VALIDATION}.tfrecords_path")
        trained = {fold for fold in map(_fold_in, training) if fold is not None}
        split = bool(validation) and in_training_folder
        # Two folds are a whole: one is trained on, and the other one held out.
        parts = int(str(self.training.value("kitti_config.num_partitions", 2))) if self.training else 2
        sequences = self.training is not None and self.training.value(_MODE) == "sequence"
        whole = len(trained) + 1 == (parts if sequences else 2) and self._fold() not in trained
        for item in training:
            number = _fold_in(item)
            if number is None or self._is_all(self.training, number):
                t.without(item, words)
            elif split and whole:
                t.without(item, f"{words}; the other fold is held out")
            else:
                t.without(
                    item, f"one fold, {number}, of the images; here all that are not held out", kept=False
                )
        for item in validation:
            number = _fold_in(item)
            whole = number is None or in_training_folder or self._is_all(self.validation, number)
            t.without(item, words if whole else f"one fold, {number}, of the images; here all", kept=whole)

    def _is_all(self, convert: Spec | None, fold: int) -> bool:
        """Tell whether a fold has all images: without a val_split fold 1 has."""
        if convert is None or not convert.has("kitti_config") or convert.value(_MODE) == "sequence":
            return False
        return convert.value("kitti_config.val_split", 0) == (0 if fold else 100)

    def _say(self, root: str) -> None:
        """Account for the fields that name folders."""
        t = self.t
        for item, to in self._named:
            result = t.got(to)
            if id(item) in self._elsewhere:
                words = "not the root of the images: images from there, labels from here"
                t.changed(item, to, result, words, kept=False)
            elif item.value == result:
                t.taken(item, to)
            elif str(item.value).startswith("/") and t.address(item) == root:
                t.taken(item, "dataset.uri", root)
            else:
                t.changed(item, to, result, f"below dataset.uri {root}")

    def _image_root(self) -> Given | None:
        """Return the first source's folder, and account for others."""
        sources = self.t.of(f"{_SOURCES}.image_directory_path")
        for item in sources[1:]:
            same = str(item.value).rstrip("/") == str(sources[0].value).rstrip("/")
            words = "the same folder" if same else "one root of images only: merge the folders"
            self.t.without(item, words, kept=same)
        return sources[0] if sources else None

    def _kitti(self, convert: Spec | None, images: Given | None, use: str) -> _Folders | None:
        """Return the folders of a KITTI data set: those that its conversion names below the root.

        Args:
            convert: Its dataset_convert spec.
            images: Folder that the training spec names.
            use: ``dataset`` or ``dataset.validation``.
        """
        t = self.t
        names = {}
        for name, to in (("image_dir_name", "images"), ("label_dir_name", "labels")):
            fields = convert.of(f"kitti_config.{name}") if convert else []
            names[name] = str(fields[0].value) if fields else self._usual(name)
            self._named += [(item, f"{use}.{to}") for item in fields]
            if not fields:
                words = "as in TLT's samples; the spec of dataset_convert, imported too, says it"
                t.assume(f"{use}.{to} {names[name]}", words)
        root = convert.of("kitti_config.root_directory_path") if convert else []
        return self._folders(images, next(iter(root), None), *names.values(), use=use)

    def _usual(self, name: str) -> str:
        """Return a folder that no spec names: that of the training images, or TLT's samples'."""
        training = self.training.value(f"kitti_config.{name}") if self.training else None
        return str(training or _USUAL[name])

    def _folders(
        self, images: Given | None, root: Given | None, image_name: str, label_name: str, *, use: str
    ) -> _Folders | None:
        """Return addresses: of images below the training spec's folder, of labels below the conversion's."""
        image_root, label_root = images or root, root or images
        if image_root is None or label_root is None:
            return None
        roots = {id(label_root): (label_root, f"{use}.labels"), id(image_root): (image_root, f"{use}.images")}
        addresses = [self.t.address(item) for item, _ in roots.values()]
        if None in addresses:
            return None
        self._named += list(roots.values())
        if len(set(addresses)) > 1:
            self._elsewhere.add(id(label_root))
        image_folder = self.t.address(image_root, paths.join(str(image_root.value), image_name))
        label_folder = self.t.address(label_root, paths.join(str(label_root.value), label_name))
        if image_folder is None or label_folder is None:
            return None
        return _Folders(image_folder, label_folder, self.t.maps.address(str(label_root.value)))

    def _coco(self, convert: Spec, given: Given | None) -> tuple[_Folders | None, _Folders | None]:
        """Return training and validation of a COCO data set: pairs of a folder and a file."""
        t = self.t
        root = next(iter(convert.of("coco_config.root_directory_path")), None)
        images, labels = convert.of("coco_config.img_dir_names"), convert.of("coco_config.annotation_files")
        named = t.of("dataset_config.validation_fold") or t.of(f"{_VALIDATION}.tfrecords_path")
        fold = self._fold() if named else None
        pairs = list(zip(images, labels, strict=False))
        chosen: dict[str, _Folders] = {}
        for index, (folder, file) in enumerate(pairs):
            held_out = len(pairs) > 1 and index == fold
            use = "dataset.validation" if held_out else "dataset"
            if use in chosen:
                for item in (folder, file):
                    t.without(item, "one folder of training images and its labels: merge them", kept=False)
            elif found := self._folders(given, root, str(folder.value), str(file.value), use=use):
                chosen[use] = found
                self._named += [(folder, f"{use}.images"), (file, f"{use}.labels")]
        for item in images[len(pairs) :] + labels[len(pairs) :]:
            t.without(item, "TLT refuses folders and files that are no pairs", kept=False)
        return chosen.get("dataset"), chosen.get("dataset.validation")

    def _split(self, root: str) -> None:
        """Hold out a fraction, where the spec names no folder of validation images."""
        t = self.t
        held_out = t.of(f"{_VALIDATION}.image_directory_path")
        folds = t.of("dataset_config.validation_fold") or held_out
        to = "dataset.validation.fraction"
        if not folds:
            t.put(to, _FRACTION)
            t.assume(f"{to} {_FRACTION}", "TLT would train on all images, without validation", kept=False)
            return
        mode = str(self.training.value(_MODE, "random")) if self.training else ""
        fraction, words, kept = _FRACTION, "", False
        if self.training is None or not self.training.has("kitti_config"):
            # A fold is a fraction at least; other records of the same folder can be any images.
            words, kept = "how much a fold holds is in the spec of dataset_convert; our default", not held_out
        elif mode == "sequence":
            fraction, words, kept = self._by_sequence(self._fold(), root)
        else:
            fraction, words, kept = self._at_random(self._fold())
        t.put(to, fraction)
        same = "the folder of the training images, of which a part is held out; " if held_out else ""
        t.changed(folds[0], to, fraction, f"{same}{words}", kept=kept)

    def _at_random(self, fold: int) -> tuple[float, str, bool]:
        assert self.training is not None
        percent = self.training.of("kitti_config.val_split")
        share = percent[0].number / 100 if percent else 0.0
        to = "dataset.validation.fraction"
        words = "drawn at random; TLT takes the first names"
        if not 0 < share < 1 or fold not in (0, 1):
            for item in percent:
                self.t.without(item, "a percentage between 0 and 100 is held out", kept=False)
            return _FRACTION, f"no such fold of {share:.0%}: our default", False
        fraction = round(share if fold == 0 else 1 - share, 6)
        for item in percent:
            self.t.changed(item, to, fraction, f"percent as a fraction, {words}")
        return fraction, f"fold {fold} of val_split, {words}", True

    def _by_sequence(self, fold: int, root: str) -> tuple[float, str, bool]:
        """Keep the images of a sequence together; a fold is one of as many equal parts."""
        t = self.t
        assert self.training is not None
        count = self.training.of("kitti_config.num_partitions")
        parts = int(count[0].number) if count else 1
        for item in self.training.of("kitti_config.kitti_sequence_to_frames_file"):
            base = str(self.training.value("kitti_config.root_directory_path", ""))
            address = t.address(item, paths.join(base, str(item.value)))
            file = paths.relative(root, address) if address else None
            if file is None:
                t.without(item, f"expected a file below {root}", kept=False)
                continue
            t.put("dataset.validation.groupBy", {"file": file})
            t.taken(item, "dataset.validation.groupBy.file", file)
        for item in self.training.of("kitti_config.val_split"):
            t.without(item, "TLT reads it with partition_mode random only")
        if parts < 2 or fold >= parts:
            return _FRACTION, f"no such fold of {parts}: our default", False
        to, fraction = "dataset.validation.fraction", round(1 / parts, 6)
        for item in count:
            t.changed(item, to, fraction, "one of as many equal parts")
        return fraction, f"one of {parts} folds, of whole sequences", True

    def _rest(self) -> None:
        """Account for the fields of dataset_convert that matter only in certain cases."""
        t = self.t
        for convert in t.converts:
            for item in convert.effective():
                if not item.row or not item.row.special:
                    continue
                name = item.path.rpartition(".")[2]
                if name == "partition_mode":
                    known = item.value in ("random", "sequence")
                    words = "by hash, with groupBy by sequence" if known else "TLT has random and sequence"
                    t.without(item, words, kept=known)
                elif name == "num_partitions":
                    t.without(item, "the split is made by dataset.validation")
                elif name in ("val_split", "kitti_sequence_to_frames_file"):
                    t.without(item, "the spec trained with names no fold of this conversion")
                elif t.account(item) is None:
                    t.without(item, "the spec trained with does not use it")
