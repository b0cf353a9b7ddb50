"""Every graph shape: a pruned network computes what the whole one computes with those filters at zero.

In all networks here biases, and means and offsets of batch normalisation, are zero, so that a filter whose
kernel is zero has no effect whatever: that is the reference, and it knows nothing of groups or layouts.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from keras import layers as kl

from tlt_api.failures import Reason
from tlt_runner.errors import RunnerError
from tlt_runner.pruning import planning
from tlt_runner.pruning.graph import Connection, Network
from tlt_runner.pruning.plan import Options, PruningPlan
from tlt_runner.pruning.rebuild import rebuild

FINE = Options(granularity=1, min_filters=1)


def conv(x, name, filters, size=3, norm=True, activation="relu"):
    x = kl.Conv2D(filters, size, padding="same", use_bias=not norm, name=name)(x)
    x = kl.BatchNormalization(name=f"{name}_bn")(x) if norm else x
    return kl.Activation(activation, name=f"{name}_act")(x)


def image(size=8, channels=3):
    return keras.Input((size, size, channels), name="image")


def end(inputs, x):
    x = kl.GlobalAveragePooling2D(name="end_pool")(x)
    return keras.Model(inputs, kl.Dense(3, name="end")(x))


def sequential():
    i = image()
    return end(i, conv(conv(i, "a", 8), "b", 6))


def residual():
    i = image()
    x = conv(i, "stem", 8)
    y = conv(conv(x, "a", 5), "b", 8)
    return end(i, kl.ReLU(name="join")(kl.Add(name="add")([x, y])))


def chained_residual():
    i = image()
    x = conv(i, "stem", 8)
    for name in "abc":
        x = kl.Add(name=f"{name}_add")([x, conv(conv(x, f"{name}1", 4), f"{name}2", 8)])
    return end(i, x)


def concatenation():
    i = image()
    x = conv(i, "stem", 8)
    return end(i, conv(kl.Concatenate(name="cat")([conv(x, "a", 4), x, conv(x, "b", 6)]), "c", 8))


def cascaded_concatenation():
    i = image()
    x = conv(i, "a", 6)
    y = kl.Concatenate(name="cat1")([x, conv(x, "b", 4)])
    z = kl.Concatenate(name="cat2")([y, conv(y, "c", 4), x])
    return end(i, conv(z, "d", 6))


def concatenation_added():
    i = image()
    both = kl.Concatenate(name="cat")([conv(i, "a", 4), conv(i, "b", 6)])
    return end(i, conv(kl.Add(name="add")([both, conv(i, "c", 10)]), "d", 6))


def concatenated_with_itself():
    i = image()
    x = conv(i, "a", 4)
    twice = kl.Concatenate(name="cat")([x, x])
    return end(i, kl.Add(name="add")([twice, conv(i, "b", 8)]))


def flatten_dense():
    i = image(size=4)
    x = kl.MaxPooling2D(name="pool")(conv(i, "a", 6))
    x = kl.Dense(7, activation="relu", name="hidden")(kl.Flatten(name="flat")(x))
    return keras.Model(i, kl.Dense(2, name="end")(x))


def reshape_dense():
    i = image(size=4)
    x = kl.Reshape((4, -1), name="rows")(conv(i, "a", 6))
    x = kl.Reshape((96,), name="flat")(x)
    return keras.Model(i, kl.Dense(2, name="end")(x))


def depthwise():
    i = image()
    x = conv(i, "a", 8)
    x = kl.DepthwiseConv2D(3, padding="same", name="dw")(x)
    return end(i, conv(kl.ReLU(name="dw_act")(kl.BatchNormalization(name="dw_bn")(x)), "b", 6))


def inverted_residual():
    i = image()
    x = conv(i, "stem", 6)
    y = kl.DepthwiseConv2D(3, padding="same", use_bias=False, name="dw")(conv(x, "expand", 10))
    y = conv(kl.BatchNormalization(name="dw_bn")(y), "project", 6, size=1)
    return end(i, kl.Add(name="add")([x, y]))


def shared_layer():
    i = image()
    shared = kl.Conv2D(5, 3, padding="same", name="shared")
    x, y = conv(i, "a", 6), conv(i, "b", 6)
    return end(i, kl.Concatenate(name="cat")([shared(x), shared(y)]))


def shared_additions():
    i = image()
    x, y, z = (conv(i, name, 6) for name in "abc")
    first = kl.Add(name="add1")([x, y])
    return end(i, kl.Concatenate(name="cat")([conv(first, "d", 4), kl.Multiply(name="mul")([first, z])]))


def squeeze_and_excite():
    i = image()
    x = conv(i, "a", 8)
    gate = kl.Reshape((1, 1, 8), name="to_map")(kl.GlobalAveragePooling2D(name="squeeze")(x))
    gate = kl.Conv2D(4, 1, activation="relu", name="reduce")(gate)
    gate = kl.Conv2D(8, 1, activation="relu", name="expand")(gate)
    return end(i, kl.Multiply(name="scale")([x, gate]))


def single_channel_broadcast():
    i = image()
    x = conv(i, "a", 8)
    return end(i, conv(kl.Multiply(name="attend")([x, conv(x, "mask", 1)]), "b", 6))


def single_channel_output():
    i = image()
    return keras.Model(i, kl.Conv2D(1, 1, name="end")(conv(conv(i, "a", 8), "b", 8)))


def spatial_concatenation():
    i = image()
    both = kl.Concatenate(axis=1, name="cat")([conv(i, "a", 6), conv(i, "b", 6)])
    return end(i, conv(both, "c", 4))


def pool_pad_upsample():
    i = image()
    x = kl.AveragePooling2D(2, name="pool")(conv(kl.ZeroPadding2D(name="pad")(i), "a", 8))
    x = kl.Dropout(0.5, name="drop")(kl.UpSampling2D(name="up")(x))
    return end(i, conv(kl.Cropping2D(1, name="crop")(x), "b", 6, norm=False))


def several_outputs():
    i = image()
    x = conv(i, "a", 8)
    boxes = kl.Conv2D(8, 1, name="boxes")(conv(x, "b", 6))
    scores = kl.Reshape((64 * 2, 2), name="flat")(kl.Conv2D(4, 1, name="scores")(x))
    return keras.Model(i, {"scores": scores, "boxes": boxes})


SHAPES = [
    sequential,
    residual,
    chained_residual,
    concatenation,
    cascaded_concatenation,
    concatenation_added,
    concatenated_with_itself,
    flatten_dense,
    reshape_dense,
    depthwise,
    inverted_residual,
    shared_layer,
    shared_additions,
    squeeze_and_excite,
    single_channel_broadcast,
    single_channel_output,
    spatial_concatenation,
    pool_pad_upsample,
    several_outputs,
]


def randomize(model: keras.Model, seed: int = 0) -> keras.Model:
    """Random kernels, scales and variances; biases, offsets and means stay zero."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        values = []
        for weight in layer.weights:
            random = (
                rng.uniform(0.5, 1.5, weight.shape) if weight.name in ("gamma", "moving_variance") else None
            )
            if weight.name == "kernel":
                # Every filter its own size, so that thresholds cut between them.
                by_filter = rng.uniform(0.1, 1.0, weight.shape[-1])
                random = rng.normal(size=weight.shape) * by_filter
                if isinstance(layer, kl.DepthwiseConv2D):
                    random = rng.normal(size=weight.shape) * rng.uniform(0.1, 1.0, (weight.shape[2], 1))
            values.append(np.zeros(weight.shape) if random is None else random)
        layer.set_weights(values)
    return model


def zero_what_goes(model: keras.Model, plan: PruningPlan) -> keras.Model:
    """A copy with the kernels of the filters that the plan cuts at zero."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for layer_plan in plan.layers:
        layer = copy.get_layer(layer_plan.name)
        kernel, *rest = layer.get_weights()
        gone = np.setdiff1d(np.arange(layer_plan.filters), layer_plan.kept)
        if layer_plan.kind == "DepthwiseConv2D":
            kernel[:, :, gone] = 0
        else:
            kernel[..., gone] = 0
        layer.set_weights([kernel, *rest])
    return copy


def outputs(model: keras.Model, seed: int = 1) -> list[np.ndarray]:
    shape = (2, *model.inputs[0].shape[1:])
    images = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return [np.asarray(value) for value in keras.tree.flatten(model(images, training=False))]


def check(model: keras.Model, plan: PruningPlan) -> keras.Model:
    before = [np.array(value) for value in model.get_weights()]
    pruned = rebuild(Network({"net": model}), plan)["net"]
    assert pruned.count_params() == plan.parameters_after
    assert model.count_params() == plan.parameters_before
    for name, layer in ((item.name, pruned.get_layer(item.name)) for item in plan.layers):
        kept = next(item.kept for item in plan.layers if item.name == name)
        axis = 2 if isinstance(layer, kl.DepthwiseConv2D) else -1
        assert layer.kernel.shape[axis] == len(kept)
    for expected, got in zip(outputs(zero_what_goes(model, plan)), outputs(pruned), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-5)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    return pruned


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("equalization", ["union", "intersection"])
def test_a_pruned_network_computes_what_the_unpruned_one_does_with_those_filters_at_zero(shape, equalization):
    model = randomize(shape())
    options = FINE.model_copy(update={"equalization": equalization})
    plan = planning.make(Network({"net": model}), options, threshold=0.6)
    assert plan.parameters_after < plan.parameters_before
    check(model, plan)


def test_filters_of_zeros_are_pruned_without_a_change_of_the_outputs():
    model = randomize(chained_residual())
    rng = np.random.default_rng(3)
    gone = {"stem": [1, 4, 6], "a2": [1, 4, 6], "b2": [1, 4, 6], "c2": [1, 4, 6], "a1": [0], "c1": [2, 3]}
    for name in ("stem", "a1", "a2", "b1", "b2", "c1", "c2"):
        layer, norm = model.get_layer(name), model.get_layer(f"{name}_bn")
        (kernel,) = layer.get_weights()
        gamma, beta, mean, variance = norm.get_weights()
        beta, mean = rng.normal(size=beta.shape), rng.normal(size=mean.shape)
        kernel[..., gone.get(name, [])] = 0
        beta[gone.get(name, [])] = mean[gone.get(name, [])] = 0
        layer.set_weights([kernel])
        norm.set_weights([gamma, beta, mean, variance])
    plan = planning.make(Network({"net": model}), FINE, threshold=1e-6)
    for layer_plan in plan.layers:
        expected = np.setdiff1d(np.arange(layer_plan.filters), gone.get(layer_plan.name, []))
        assert list(layer_plan.kept) == expected.tolist()
    pruned = rebuild(Network({"net": model}), plan)["net"]
    for expected, got in zip(outputs(model), outputs(pruned), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-5)


def test_layers_that_are_added_are_one_group_and_keep_the_same_filters():
    plan = planning.make(Network({"net": randomize(chained_residual())}), FINE, threshold=0.6)
    layers = {layer.name: layer for layer in plan.layers}
    assert len({layers[name].group for name in ("stem", "a2", "b2", "c2")}) == 1
    assert len({layers[name].kept for name in ("stem", "a2", "b2", "c2")}) == 1
    assert len({layers[name].group for name in ("a1", "b1", "c1", "stem")}) == 4


def test_concatenated_layers_keep_filters_of_their_own_unless_their_sum_ties_them():
    plan = planning.make(Network({"net": randomize(concatenation_added())}), FINE, threshold=0.6)
    layers = {layer.name: layer for layer in plan.layers}
    assert layers["c"].kept == (*layers["a"].kept, *(4 + one for one in layers["b"].kept))
    plan = planning.make(Network({"net": randomize(concatenation())}), FINE, threshold=0.6)
    assert len({layer.group for layer in plan.layers}) == len(plan.layers)


def test_an_excluded_layer_keeps_its_whole_group_intact():
    model = randomize(chained_residual())
    options = FINE.model_copy(update={"excluded_layers": ("b2",)})
    plan = planning.make(Network({"net": model}), options, threshold=0.6)
    layers = {layer.name: layer for layer in plan.layers}
    for name in ("stem", "a2", "b2", "c2"):
        assert (layers[name].protection, len(layers[name].kept)) == ("excluded", 8)
    assert len(layers["a1"].kept) < 4
    check(model, plan)


def test_layers_that_make_the_outputs_keep_all_filters():
    plan = planning.make(Network({"net": randomize(several_outputs())}), FINE, threshold=0.6)
    whole = {layer.name: layer.protection for layer in plan.layers if layer.protection}
    assert whole == {"boxes": "model output", "scores": "split by flat"}


def test_tied_models_are_pruned_as_one():
    i = image()
    trunk = randomize(keras.Model(i, {"features": conv(conv(i, "a", 6), "b", 8), "extra": conv(i, "x", 4)}))
    j = keras.Input((4, 4, 8), name="pooled")
    head = randomize(end(j, conv(j, "c", 6)))
    network = Network(
        {"trunk": trunk, "head": head}, (Connection("trunk", "features", "head"),), runs={"head": 10}
    )
    plan = planning.make(network, FINE, threshold=0.6)
    pruned = rebuild(network, plan)
    kept = {layer.name: len(layer.kept) for layer in plan.layers}
    assert kept["b"] < 8
    assert kept["x"] == 4
    assert pruned["head"].inputs[0].shape[-1] == kept["b"] == pruned["trunk"].output["features"].shape[-1]
    assert plan.parameters_after == sum(model.count_params() for model in pruned.values())
    zeroed = PruningPlan.model_validate(
        {**plan.model_dump(), "layers": [layer for layer in plan.layers if layer.name in "abx"]}
    )
    whole_features = zero_what_goes(trunk, zeroed)(np.ones((1, 8, 8, 3)))["features"]
    features = pruned["trunk"](np.ones((1, 8, 8, 3)))["features"]
    b = next(layer for layer in plan.layers if layer.name == "b")
    np.testing.assert_allclose(features, np.asarray(whole_features)[..., b.kept], atol=1e-5)


def test_flops_are_two_for_each_multiply_add_and_count_the_head_for_each_proposal():
    i = image()
    x = kl.Conv2D(4, 3, strides=2, padding="same", name="a")(i)
    trunk = keras.Model(i, kl.DepthwiseConv2D(3, padding="same", name="dw")(x))
    j = keras.Input((2, 2, 4), name="pooled")
    head = keras.Model(j, kl.Dense(5, name="d")(kl.Flatten(name="f")(j)))
    network = Network(
        {"trunk": randomize(trunk), "head": randomize(head)},
        (Connection("trunk", 0, "head"),),
        runs={"head": 10},
    )
    plan = planning.make(network, FINE.model_copy(update={"min_filters": 2}), threshold=0.999)
    # conv: 4 x 4 places, 3 x 3 x 3 x 4; depthwise: 4 x 4 places, 3 x 3 x 4; dense: 16 x 5, ten times
    assert plan.flops_before == 2 * (16 * 108 + 16 * 36 + 10 * 80)
    kept = len(next(layer.kept for layer in plan.layers if layer.name == "a"))
    assert plan.flops_after == 2 * (16 * 27 * kept + 16 * 9 * kept + 10 * 20 * kept)


def unknown_layer():
    i = image()
    return end(i, kl.LayerNormalization(name="ln")(conv(i, "a", 8)))


def split():
    i = image()
    left, _ = keras.ops.split(conv(i, "a", 8), 2, axis=-1)
    return end(i, left)


def grouped():
    i = image()
    return end(i, kl.Conv2D(8, 3, groups=2, name="grouped")(conv(i, "a", 8)))


def depth_multiplier():
    i = image()
    return end(i, kl.DepthwiseConv2D(3, depth_multiplier=2, name="dw")(conv(i, "a", 8)))


@pytest.mark.parametrize(
    ("shape", "layer", "kind"),
    [
        (unknown_layer, "ln", "LayerNormalization"),
        (split, "split", "Split"),
        (grouped, "grouped", "Conv2D"),
        (depth_multiplier, "dw", "DepthwiseConv2D"),
    ],
)
def test_a_layer_that_cannot_be_followed_is_named_and_can_be_worked_around(shape, layer, kind):
    keras.backend.clear_session()
    model = randomize(shape())
    with pytest.raises(RunnerError) as error:
        planning.make(Network({"net": model}), FINE, threshold=0.6)
    assert error.value.reason == Reason.INVALID_SPEC
    assert repr(layer) in error.value.message
    assert kind in error.value.message
    assert "'a'" in error.value.hint
    excluded = FINE.model_copy(update={"excluded_layers": ("a",)})
    with pytest.raises(RunnerError) as error:
        planning.make(Network({"net": model}), excluded, threshold=0.6)
    assert error.value.reason == Reason.NOTHING_TO_PRUNE


def test_unknown_names_in_excluded_layers_are_refused_with_the_nearest_ones():
    options = FINE.model_copy(update={"excluded_layers": ("steam", "a1")})
    with pytest.raises(RunnerError) as error:
        planning.make(Network({"net": chained_residual()}), options, threshold=0.6)
    assert error.value.reason == Reason.INVALID_SPEC
    assert "'steam' (near: stem" in error.value.message
    assert "'a1'" not in error.value.message


def test_a_plan_that_prunes_nothing_fails_with_the_lowest_threshold_that_prunes():
    network = Network({"net": randomize(sequential())})
    with pytest.raises(RunnerError) as error:
        planning.make(network, FINE, threshold=0.01)
    assert error.value.reason == Reason.NOTHING_TO_PRUNE
    named = float(error.value.hint.split(" or more")[0].rsplit(" ", 1)[1])
    assert planning.make(network, FINE, threshold=named).parameters_kept < 1
    with pytest.raises(RunnerError):
        planning.make(network, FINE, threshold=named - 0.02)


def test_a_plan_that_prunes_nothing_at_any_threshold_is_refused():
    network = Network({"net": randomize(sequential())})
    with pytest.raises(RunnerError, match="at any threshold") as error:
        planning.make(network, FINE.model_copy(update={"min_filters": 8}), threshold=0.9)
    assert error.value.reason == Reason.NOTHING_TO_PRUNE


def test_weights_that_are_not_numbers_are_refused():
    model = randomize(sequential())
    kernel = model.get_layer("a").get_weights()[0]
    kernel[0] = np.nan
    model.get_layer("a").set_weights([kernel])
    with pytest.raises(RunnerError) as error:
        planning.make(Network({"net": model}), FINE, threshold=0.5)
    assert error.value.reason == Reason.UNREADABLE_MODEL


def test_a_plan_for_another_network_is_refused():
    model = randomize(sequential())
    plan = planning.make(Network({"net": model}), FINE, threshold=0.6)
    with pytest.raises(RunnerError) as error:
        rebuild(Network({"net": residual()}), plan)
    assert error.value.reason == Reason.MODEL_MISMATCH
    excluding = plan.options.model_copy(update={"excluded_layers": ("layer_of_the_other_network",)})
    with pytest.raises(RunnerError) as error:
        rebuild(Network({"net": residual()}), plan.model_copy(update={"options": excluding}))
    assert error.value.reason == Reason.MODEL_MISMATCH
    cut_output = [
        layer.model_copy(update={"kept": (0,)}) if layer.name == "end" else layer for layer in plan.layers
    ]
    with pytest.raises(RunnerError) as error:
        rebuild(Network({"net": model}), plan.model_copy(update={"layers": tuple(cut_output)}))
    assert error.value.reason == Reason.MODEL_MISMATCH


def test_a_plan_that_cuts_tied_layers_apart_is_refused():
    model = randomize(residual())
    plan = planning.make(Network({"net": model}), FINE, threshold=0.6)
    torn = [
        layer.model_copy(update={"kept": tuple(range(7))}) if layer.name == "stem" else layer
        for layer in plan.layers
    ]
    with pytest.raises(RunnerError) as error:
        rebuild(Network({"net": model}), plan.model_copy(update={"layers": tuple(torn)}))
    assert error.value.reason == Reason.MODEL_MISMATCH


STEP = st.tuples(
    st.sampled_from(["conv", "conv", "conv", "depthwise", "add", "concat", "pad", "shared"]),
    st.integers(0, 1000),  # the tensor it takes, of those made before
    st.integers(0, 1000),  # the other one, where it takes two
    st.integers(1, 6),  # filters
    st.booleans(),  # batch normalisation
)


def random_network(channels, steps):
    """A few layers, each on tensors made before; in the end all are concatenated."""
    i = image(size=4, channels=channels)
    tensors = [i]
    for number, (kind, one, other, filters, norm) in enumerate(steps):
        x = tensors[one % len(tensors)]
        same = [tensor for tensor in tensors if tensor.shape == x.shape]
        if kind == "conv":
            x = conv(x, f"conv{number}", filters, norm=norm)
        elif kind == "depthwise":
            x = kl.DepthwiseConv2D(3, padding="same", name=f"depthwise{number}")(x)
        elif kind == "add":
            x = kl.Add(name=f"add{number}")([x, same[other % len(same)]])
        elif kind == "concat":
            x = kl.Concatenate(name=f"concat{number}")([x, tensors[other % len(tensors)]])
        elif kind == "pad":
            x = kl.Cropping2D(1, name=f"crop{number}")(kl.ZeroPadding2D(name=f"pad{number}")(x))
        else:
            shared = kl.Conv2D(x.shape[-1], 1, name=f"shared{number}")
            x = shared(kl.ReLU(name=f"relu{number}")(shared(x)))
        tensors.append(x)
    joined = kl.Concatenate(name="join")(tensors)
    return keras.Model(i, kl.Dense(2, name="end")(kl.Flatten(name="flat")(joined)))


@settings(
    deadline=None,
    max_examples=25,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    st.integers(1, 3),
    st.lists(STEP, min_size=1, max_size=8),
    st.integers(0, 1000),
    st.sampled_from([0.3, 0.6, 0.9]),
    st.sampled_from(["union", "intersection", "arithmeticMean", "geometricMean"]),
    st.sampled_from([1, 2]),
)
def test_any_pruned_network_computes_the_same_as_with_its_filters_at_zero(
    channels, steps, seed, threshold, equalization, granularity
):
    model = randomize(random_network(channels, steps), seed)
    options = Options(equalization=equalization, granularity=granularity, min_filters=1)
    try:
        plan = planning.make(Network({"net": model}), options, threshold=threshold)
    except RunnerError as error:
        assert error.reason == Reason.NOTHING_TO_PRUNE
        return
    check(model, plan)
