"""Features of other packages' networks beside those of our trunk with their weights, on the same image.

The networks are torchvision's and KerasHub's own, in interpreters that have these packages
(peers-torchvision.txt with safetensors, peers-keras-hub.txt), with random weights whose statistics were set
on the image: no published weights can be downloaded here. For torchvision's, the NumPy reference of the tests
(``tests/torch_networks.py``) is compared as well.

    python benchmarks/pretrained_features.py --torchvision TORCH/bin/python --keras-hub HUB/bin/python

Prints a JSON line for each network: the largest difference from the package's features, as a fraction of the
largest feature.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SIZE = 128
TORCHVISION = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "vgg16": "vgg16",
    "vgg16_bn": "vgg16",
    "mobilenet_v2": "mobilenet_v2",
}
"""torchvision's name -> our backbone."""
KERAS_HUB = {"resnet_18": "resnet18", "resnet_50": "resnet50"}


def write_torchvision(folder: Path) -> None:
    """Write each network's weights and the features at its cut; runs in torchvision's interpreter."""
    import numpy as np
    import safetensors.torch
    import torch
    import torchvision

    image = np.load(folder / "image.npy")
    x = torch.from_numpy((image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])
    x = x.permute(0, 3, 1, 2).float()
    cuts = {"vgg16": "features.29", "vgg16_bn": "features.42", "mobilenet_v2": "features.13"}
    for name in TORCHVISION:
        torch.manual_seed(0)
        network = getattr(torchvision.models, name)(weights=None)
        kept: dict[str, Any] = {}
        cut = network.get_submodule(cuts.get(name, "layer3"))
        cut.register_forward_hook(lambda module, inputs, output, kept=kept: kept.update(features=output))
        with torch.no_grad():
            # The first passes set the statistics of the normalisations.
            network.train()
            for _ in range(5):
                network(torch.cat([x, x.flip(3)]))
            network.eval()(x)
        np.save(folder / f"{name}.npy", kept["features"].permute(0, 2, 3, 1).numpy())
        safetensors.torch.save_file(network.state_dict(), folder / f"{name}.safetensors")


def write_keras_hub(folder: Path) -> None:
    """Write each network's weights and the features at its cut; runs in KerasHub's interpreter."""
    import keras
    import numpy as np
    from retinanet import resnet

    image = np.load(folder / "image.npy")
    x = ((image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32)
    for name, blocks, block_type in (
        ("resnet_18", [2, 2, 2, 2], "basic_block"),
        ("resnet_50", [3, 4, 6, 3], "bottleneck_block"),
    ):
        keras.utils.set_random_seed(0)
        network = resnet(blocks, block_type, image_shape=(SIZE, SIZE, 3))
        for _ in range(20):
            network(np.concatenate([x, x[:, :, ::-1]]), training=True)
        features = keras.Model(network.input, network.pyramid_outputs["P4"])(x)
        np.save(folder / f"{name}.npy", features)
        network.save_weights(folder / f"{name}.weights.h5")


def compare(folder: Path, name: str, suffix: str, backbone: str) -> None:
    """Print the difference of our features, and of the NumPy reference's where it has the network."""
    import numpy as np

    sys.path.insert(0, str(FOLDER.parent / "tests"))
    import safetensors.numpy

    import torch_networks
    from tlt_runner.detector.config import DetectorConfig
    from tlt_runner.training.pretrained import load

    image, expected = np.load(folder / "image.npy"), np.load(folder / f"{name}.npy")
    config = DetectorConfig(class_names=["car"], height=SIZE, width=SIZE, backbone=backbone)
    model, taken = load.build(config, 1, folder / f"{name}{suffix}")

    def difference(features: Any) -> float:
        return float(np.abs(np.asarray(features) - expected).max() / np.abs(expected).max())

    line = {"network": name, "origin": taken.origin, "ours": difference(model.trunk(image)["features"])}
    if suffix == ".safetensors":
        network = torch_networks.Network(safetensors.numpy.load_file(folder / f"{name}{suffix}"))
        pixels = torch_networks.pixels(image)
        if backbone.startswith("resnet"):
            blocks = (2, 2, 2, 2) if backbone == "resnet18" else (3, 4, 6, 3)
            features = torch_networks.resnet(network, pixels, blocks, backbone == "resnet50")[2]
        elif backbone == "vgg16":
            features = list(torch_networks.vgg(network, pixels, (2, 2, 3, 3, 3), name == "vgg16_bn"))[4]
        else:
            features = torch_networks.mobilenet_v2(network, pixels)[13]
        line["reference"] = difference(features.transpose(0, 2, 3, 1))
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torchvision", help="Python with torchvision and safetensors")
    parser.add_argument("--keras-hub", help="Python with KerasHub")
    parser.add_argument("--write", choices=["torchvision", "keras-hub"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        (write_torchvision if options.write == "torchvision" else write_keras_hub)(options.folder)
        return
    import numpy as np

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        image = np.random.default_rng(0).uniform(0, 255, (1, SIZE, SIZE, 3)).astype(np.float32)
        np.save(folder / "image.npy", image)
        for package, python, networks, suffix in (
            ("torchvision", options.torchvision, TORCHVISION, ".safetensors"),
            ("keras-hub", options.keras_hub, KERAS_HUB, ".weights.h5"),
        ):
            if python is None:
                continue
            script = [python, __file__, "--write", package, "--folder", temporary]
            subprocess.run(script, check=True, stderr=subprocess.DEVNULL)
            for name, backbone in networks.items():
                compare(folder, name, suffix, backbone)


if __name__ == "__main__":
    main()
