"""Names of COCO's classes. TLT's conversion removes their spaces, and so do the specs made for it."""

from __future__ import annotations

_TEXT = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush
"""
CLASSES = frozenset(" ".join(name.split()) for name in _TEXT.split(","))
"""The 80 classes of COCO."""
SPACED = {name.replace(" ", ""): name for name in CLASSES if " " in name}
"""Names without spaces -> COCO's names, of the classes whose names have some."""
