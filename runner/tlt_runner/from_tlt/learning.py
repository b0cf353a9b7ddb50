"""Training: augmentation, optimizer, schedule, loss, evaluation."""

from __future__ import annotations

from tlt_runner.from_tlt import ours
from tlt_runner.from_tlt.fields import ROWS
from tlt_runner.from_tlt.translation import LACKING, Translation

_SPATIAL = "augmentation_config.spatial_augmentation"
_COLOUR = "augmentation_config.color_augmentation"
_RATE = "training.learningRate"


def translate(t: Translation) -> None:
    """Translate what describes the training."""
    _augmentation(t)
    _optimizer(t)
    if t.spec.has("training_config.learning_rate.step"):
        _step(t)
    else:
        _soft_start(t)
    _loss(t)
    _course(t)
    _evaluation(t)


def _augmentation(t: Translation) -> None:
    fields = [row.path for row in ROWS.values() if row.path.startswith((f"{_SPATIAL}.", f"{_COLOUR}."))]
    enabled = bool(t.value("training_config.enable_augmentation"))
    for item in t.of("training_config.enable_augmentation"):
        t.without(item, "each option is on or off by itself" if enabled else "all options are left off")
    grey = t.got("dataset.colorMode") == "grayscale"
    for path in fields:
        for item in t.of(path):
            to = str(ROWS[path].to)
            value = item.number
            if not enabled:
                t.without(item, "off: enable_augmentation is not True")
            elif grey and path.endswith(("hue_rotation_max", "saturation_shift_max")):
                t.without(item, "a grey has neither hue nor saturation")
            elif value == 0 and path.endswith(("zoom_min", "zoom_max")):
                t.without(item, "0: no zoom")
            else:
                t.number(item, to, value)
    # Ours is on without being asked for.
    if t.got("training.augmentation.horizontalFlip") is None:
        t.put("training.augmentation.horizontalFlip", 0.0)
        absent = "hflip_probability" if enabled else "enable_augmentation"
        t.assume("training.augmentation.horizontalFlip 0", f"TLT's value without {absent}")
    if t.got("training.augmentation.rotateRadMax"):
        to = "training.augmentation.rotateProbability"
        # TLT's loader: `rotate_probability if rotate_probability else 1.0`.
        if t.got(to) is None:
            t.put(to, 1.0)
            t.assume(f"{to} 1", "TLT's value without rotate_probability")
        elif t.got(to) == 0:
            t.put(to, 1.0)
            for item in t.of(f"{_SPATIAL}.rotate_probability"):
                t.changed(item, to, 1.0, "TLT takes 0 for absent, which is 1")
    to = "training.augmentation.contrastCenter"
    # Absent it is 0 in TLT; here it has another default.
    if t.got("training.augmentation.contrastScaleMax") and t.got(to) is None:
        t.put(to, 0.0)
        t.assume(f"{to} 0", "TLT's value without contrast_center")


def _optimizer(t: Translation) -> None:
    prefix = "training_config.optimizer"
    chosen = next((name for name in ("adam", "sgd", "rmsprop") if t.spec.has(f"{prefix}.{name}")), None)
    if chosen is None:
        t.assume("training.optimizer.type sgd", LACKING)
        return
    t.put("training.optimizer.type", chosen)
    for item in t.spec.given:  # rmsprop {} is a choice, too
        if item.row is None and item.overridden is None and item.path == f"{prefix}.{chosen}":
            t.taken(item, "training.optimizer.type", chosen)
    absent = {"adam": (("beta_1", "momentum"), ("beta_2", "beta2")), "sgd": (("momentum", "momentum"),)}
    for name, own in absent.get(chosen, ()):
        if not t.of(f"{prefix}.{chosen}.{name}"):
            t.put(f"training.optimizer.{own}", 0.0)
            t.assume(f"training.optimizer.{own} 0", f"TLT's value without {name}")
    for item in t.of(f"{prefix}.sgd.nesterov"):
        to = "training.optimizer.nesterov"
        if item.value and t.got("training.optimizer.momentum") == 0:
            t.put(to, False)
            t.changed(item, to, False, "without momentum it is the same")
        else:
            t.put(to, item.value)
            t.taken(item, to)


def _soft_start(t: Translation) -> None:
    """Translate a linear warm-up, a plateau, and a division at each annealing point."""
    prefix = "training_config.learning_rate.soft_start"
    if not t.spec.has(prefix):
        t.assume(f"{_RATE}.schedule", LACKING)
        return
    t.put(f"{_RATE}.schedule", "multiStep")
    for item in t.of(f"{prefix}.base_lr"):
        t.number(item, f"{_RATE}.max", item.number)
    soft_start = 0.0
    for item in t.of(f"{prefix}.soft_start"):
        soft_start = float(t.number(item, f"{_RATE}.softStart", item.number) or 0.0)
    _milestones(t, f"{prefix}.annealing_points", soft_start)
    highest = t.got(f"{_RATE}.max") or ours.field(f"{_RATE}.max")["default"]
    for item in t.of(f"{prefix}.start_lr"):
        if not soft_start:
            t.without(item, "no warm-up: soft_start is 0")
        elif item.number > highest:
            t.without(item, "a warm-up does not fall: start_lr is above base_lr", kept=False)
        elif item.number == 0:
            t.number(item, f"{_RATE}.min", highest * 1e-6, "0 is not allowed; a millionth of base_lr")
        else:
            t.number(item, f"{_RATE}.min", item.number)
    for item in t.of(f"{prefix}.annealing_divider"):
        # Below 1 the rate would rise; 0 is an infinite one.
        if item.number < 1:
            t.without(item, "the rate does not rise: at least 1", kept=False)
        else:
            t.number(item, f"{_RATE}.gamma", 1 / item.number, "1 / annealing_divider")
    if t.got(f"{_RATE}.gamma") is None:
        t.put(f"{_RATE}.gamma", 1.0)
        lost = bool(t.of(f"{prefix}.annealing_points"))
        t.assume(f"{_RATE}.gamma 1", "TLT fails without annealing_divider: a constant rate", kept=not lost)


def _milestones(t: Translation, path: str, soft_start: float) -> None:
    points: list[float] = []
    to = f"{_RATE}.milestones"
    for item in t.of(path):
        point = item.number
        # TLT refuses such points.
        if not soft_start < point <= 1 or (points and point < points[-1]):
            t.without(item, "expected rising points above soft_start, up to 1", kept=False)
            continue
        points.append(point)
        t.taken(item, to)
    # The schedule needs one: the end of the training is reached only by its last step.
    t.put(to, points or [1.0])
    if not points:
        t.assume(f"{to} [1]", "no annealing point: the rate is constant after the warm-up")


def _step(t: Translation) -> None:
    """Translate a rate that falls steadily, by gamma over each step_size percent of the training."""
    prefix = "training_config.learning_rate.step"
    t.put(f"{_RATE}.schedule", "exponential")
    for item in t.of(f"{prefix}.base_lr"):
        t.number(item, f"{_RATE}.max", item.number)
    for item in t.of(f"{prefix}.gamma"):
        t.number(item, f"{_RATE}.gamma", item.number)
    for item in t.of(f"{prefix}.step_size"):
        t.number(item, f"{_RATE}.stepSize", item.number / 100, "percent as a fraction")


def _loss(t: Translation) -> None:
    for item in t.of("training_config.regularizer.type"):
        to = "training.regularizer.type"
        norm = "none" if item.value == "NO_REG" else str(item.value).lower()
        t.put(to, norm)
        t.taken(item, to, norm)
    for item in t.of("training_config.classifier_regr_std"):
        if item.key in ("x", "y", "w", "h"):
            t.number(item, f"model.roi.deltaScales.{item.key}", item.number)
        else:
            t.without(item, "TLT reads x, y, w and h")


def _course(t: Translation) -> None:
    for path, to in (
        ("training_config.checkpoint_interval", "training.checkpointInterval"),
        ("evaluation_config.validation_period_during_training", "evaluation.intervalEpochs"),
    ):
        for item in t.of(path):
            t.number(item, to, item.number or 1, "" if item.value else "TLT's 0 is 1")
    for item in t.of("training_config.early_stopping.monitor"):
        t.put("training.earlyStopping.monitor", "loss")
        if item.value == "loss":
            t.taken(item, "training.earlyStopping.monitor")
        else:
            t.changed(item, "training.earlyStopping.monitor", "loss", "TLT has loss only", kept=False)
    if t.got("training.earlyStopping") and not t.got("training.earlyStopping.monitor"):
        t.put("training.earlyStopping.monitor", "loss")
        t.assume("training.earlyStopping.monitor loss", "TLT has no other")
    if t.got("training.earlyStopping") and not t.got("training.earlyStopping.patience"):
        t.assume("training.earlyStopping.patience 10", LACKING)


def _evaluation(t: Translation) -> None:
    for item in t.of("evaluation_config.use_voc07_11point_metric"):
        to = "evaluation.averagePrecision"
        t.put(to, "voc07" if item.value else "area")
        t.taken(item, to, t.got(to))
