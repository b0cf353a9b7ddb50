"""KerasHub's ResNet and RetinaNet with random weights: peers of ours in features, accuracy and speed."""

import keras


def resnet(blocks: list[int], block_type: str, **options: object) -> keras.Model:
    """Return a ResNet.

    Args:
        blocks: Number of residual blocks in each of the four stages: [2, 2, 2, 2] is ResNet-18.
        block_type: KerasHub's name of the residual block.
        options: More arguments of ``ResNetBackbone``.
    """
    # It is installed in an environment of its own, which the caller has put on the path.
    import keras_hub

    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=blocks,
        stackwise_num_strides=[1, 2, 2, 2],
        block_type=block_type,
        **options,
    )


def retinanet(classes: int, size: int, blocks: list[int], block_type: str, **options: object) -> keras.Model:
    """Return a detector for square images of this size.

    Args:
        classes: Number of classes.
        size: Pixels of a side.
        blocks: As for :func:`resnet`.
        block_type: As for :func:`resnet`.
        options: More arguments of ``RetinaNetObjectDetector``.
    """
    import keras_hub

    backbone = resnet(blocks, block_type)
    pyramid = keras_hub.models.RetinaNetBackbone(backbone, 3, 7, use_p5=False, image_shape=(size, size, 3))
    return keras_hub.models.RetinaNetObjectDetector(pyramid, classes, bounding_box_format="yxyx", **options)
