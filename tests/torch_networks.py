"""Networks as torchvision defines them, in NumPy: random weights by torchvision's names, and what they give.

An independent reference for weights that come as ``.safetensors``: no Keras, and no code of the product.
``python benchmarks/pretrained_features.py`` compares it with torchvision itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Tensors = dict[str, np.ndarray]
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
EPSILON = 1e-5


def pixels(images: np.ndarray) -> np.ndarray:
    """Images [B, H, W, 3], RGB 0 to 255, as torchvision's weights take them: [B, 3, H, W]."""
    return ((images / 255 - MEAN) / DEVIATION).transpose(0, 3, 1, 2)


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int, groups: int = 1) -> np.ndarray:
    """Convolution [B, C, H, W] by [F, C / groups, k, k] with (k - 1) / 2 zeros on every side."""
    size = kernel.shape[-1]
    pad = (size - 1) // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = sliding_window_view(x, (size, size), (2, 3))[:, :, ::stride, ::stride]
    if groups == 1:
        return np.moveaxis(np.tensordot(windows, kernel, ((1, 4, 5), (1, 2, 3))), -1, 1)
    return np.einsum("bchwij,cij->bchw", windows, kernel[:, 0], optimize=True)


def max_pool(x: np.ndarray, size: int, stride: int, pad: int) -> np.ndarray:
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=-np.inf)
    return sliding_window_view(x, (size, size), (2, 3))[:, :, ::stride, ::stride].max((4, 5))


class Network:
    """Makes the weights of a network while it computes, or computes with given ones.

    Made weights are calibrated: each normalisation gets the statistics of what it sees, slightly off, so that
    values neither vanish nor explode on their way.

    Args:
        tensors: Weights by torchvision's names; filled if it is empty.
        seed: Seed of the weights.
    """

    def __init__(self, tensors: Tensors, seed: int = 0) -> None:
        self.tensors = tensors
        self._fresh = not tensors
        self._draws = np.random.default_rng(seed)

    def conv(
        self, x: np.ndarray, name: str, filters: int, size: int, stride: int = 1, groups: int = 1
    ) -> np.ndarray:
        inputs = x.shape[1] // groups
        if self._fresh:
            spread = np.sqrt(2 / (inputs * size * size))
            shape = (filters, inputs, size, size)
            self.tensors[f"{name}.weight"] = self._draws.normal(0, spread, shape).astype(np.float32)
        return convolve(x, self.tensors[f"{name}.weight"].astype(np.float64), stride, groups)

    def biased(self, x: np.ndarray, name: str) -> np.ndarray:
        if self._fresh:
            self.tensors[f"{name}.bias"] = self._draws.normal(0, 0.1, x.shape[1]).astype(np.float32)
        return x + self.tensors[f"{name}.bias"].astype(np.float64)[:, None, None]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        if self._fresh:
            drawn = self._draws.uniform(0.5, 1.5, (2, x.shape[1]))
            values = {
                "weight": drawn[0],
                "bias": drawn[1] - 1,
                "running_mean": x.mean((0, 2, 3)) + 0.1,
                "running_var": x.var((0, 2, 3)) * 1.1 + 0.1,
            }
            self.tensors |= {f"{name}.{key}": value.astype(np.float32) for key, value in values.items()}
            self.tensors[f"{name}.num_batches_tracked"] = np.array(7)
        names = ("weight", "bias", "running_mean", "running_var")
        gamma, beta, mean, variance = (
            self.tensors[f"{name}.{key}"].astype(np.float64)[:, None, None] for key in names
        )
        return (x - mean) / np.sqrt(variance + EPSILON) * gamma + beta


def relu(x: np.ndarray, most: float = np.inf) -> np.ndarray:
    return np.clip(x, 0, most)


def resnet(network: Network, x: np.ndarray, blocks: tuple[int, ...], bottleneck: bool) -> list[np.ndarray]:
    """Outputs of layer1 to layer4 (``torchvision/models/resnet.py``); bottlenecks stride in their 3x3."""
    x = relu(network.norm(network.conv(x, "conv1", 64, 7, 2), "bn1"))
    x = max_pool(x, 3, 2, 1)
    outputs = []
    for stage, count in enumerate(blocks, 1):
        for index in range(count):
            stride = 2 if stage > 1 and index == 0 else 1
            name, filters = f"layer{stage}.{index}", 32 * 2**stage
            end = 4 * filters if bottleneck else filters
            convolutions = ((filters, 1, 1), (filters, 3, stride), (end, 1, 1))
            if not bottleneck:
                convolutions = ((filters, 3, stride), (filters, 3, 1))
            y = x
            for number, (width, size, step) in enumerate(convolutions, 1):
                y = network.conv(relu(y) if number > 1 else y, f"{name}.conv{number}", width, size, step)
                y = network.norm(y, f"{name}.bn{number}")
            if stride > 1 or x.shape[1] != end:
                x = network.conv(x, f"{name}.downsample.0", end, 1, stride)
                x = network.norm(x, f"{name}.downsample.1")
            x = relu(x + y)
        outputs.append(x)
    return outputs


def vgg(
    network: Network, x: np.ndarray, convolutions: tuple[int, ...], normalised: bool
) -> Iterator[np.ndarray]:
    """Outputs of the blocks before their pooling (``torchvision/models/vgg.py``)."""
    index = 0
    for block, count in enumerate(convolutions):
        for _ in range(count):
            name = f"features.{index}"
            x = network.biased(network.conv(x, name, min(64 * 2**block, 512), 3), name)
            x = relu(network.norm(x, f"features.{index + 1}") if normalised else x)
            index += 3 if normalised else 2
        yield x
        x = max_pool(x, 2, 2, 0)
        index += 1


MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, filters, repeats and stride, from the paper's table 2."""


def mobilenet_v2(network: Network, x: np.ndarray) -> list[np.ndarray]:
    """Outputs of ``features[0]`` to ``features[18]`` (``torchvision/models/mobilenetv2.py``)."""
    x = relu(network.norm(network.conv(x, "features.0.0", 32, 3, 2), "features.0.1"), 6)
    outputs = [x]
    for expansion, filters, repeats, first_stride in MOBILENET_V2:
        for index in range(repeats):
            name, stride = f"features.{len(outputs)}.conv", first_stride if index == 0 else 1
            y, part = x, 0
            if expansion > 1:
                y = network.conv(y, f"{name}.0.0", expansion * x.shape[1], 1)
                y, part = relu(network.norm(y, f"{name}.0.1"), 6), 1
            y = network.conv(y, f"{name}.{part}.0", y.shape[1], 3, stride, groups=y.shape[1])
            y = relu(network.norm(y, f"{name}.{part}.1"), 6)
            y = network.norm(network.conv(y, f"{name}.{part + 1}", filters, 1), f"{name}.{part + 2}")
            x = x + y if stride == 1 and x.shape[1] == filters else y
            outputs.append(x)
    outputs.append(relu(network.norm(network.conv(x, "features.18.0", 1280, 1), "features.18.1"), 6))
    return outputs
