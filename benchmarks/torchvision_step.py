"""Training images a second of torchvision's Faster R-CNN: a child process of :mod:`gpu_throughput`.

ResNet-50 with a feature pyramid (torchvision has none with a C4 head), SGD with momentum, images on the
device already, as many proposals an image for the head as ours. Prints the figure.
"""

import argparse
from collections.abc import Callable

import torch
import torchvision
from random_batch import CLASSES, OBJECTS, PROPOSALS, examples
from step_rate import images_a_second


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--mixed", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    print(images_a_second(training(arguments), arguments.batch, arguments.steps))


def training(arguments: argparse.Namespace) -> Callable[[], object]:
    """A whole step; it waits for its loss."""
    device = torch.device("cpu" if arguments.cpu else "cuda")
    model = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        min_size=arguments.size,
        max_size=arguments.size,
        box_batch_size_per_image=PROPOSALS,
    ).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    batch = examples(arguments.size, arguments.batch, OBJECTS)
    images = [torch.tensor(image).permute(2, 0, 1).to(device).float() / 255 for image in batch["image"]]
    targets = [
        {
            "boxes": torch.tensor(boxes[:, [1, 0, 3, 2]]).to(device),
            "labels": torch.tensor(classes + 1).to(device).long(),
        }
        for boxes, classes in zip(batch["boxes"], batch["classes"], strict=True)
    ]

    def step() -> float:
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.mixed):
            total = sum(model(images, targets).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return float(total.detach())

    return step


if __name__ == "__main__":
    main()
