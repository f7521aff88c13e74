"""A flat run of a tensor is cut into few boxes."""

import math
import random

import torch

from hybridtron.distributed.checkpoint.boxes import Box, boxes_of_run, pieces


def flat(shape, box):
    """The positions of a box's elements in the flat tensor, in order."""
    index = torch.arange(math.prod(shape)).view(shape)
    return index[tuple(slice(start, start + size) for start, size in zip(*box, strict=True))].flatten().tolist()


def test_the_boxes_of_a_run_are_its_elements_in_their_order_and_few():
    draw = random.Random(0)
    for _ in range(500):
        shape = tuple(draw.randint(1, 5) for _ in range(draw.randint(1, 4)))
        start, stop = sorted(draw.randint(0, math.prod(shape)) for _ in range(2))
        boxes = list(boxes_of_run(shape, start, stop))
        assert [position for box in boxes for position in flat(shape, box)] == list(range(start, stop))
        assert len(boxes) <= 2 * len(shape) - 1


def test_a_whole_tensor_is_one_box():
    assert list(boxes_of_run((3, 4, 5), 0, 60)) == [Box((0, 0, 0), (3, 4, 5))]
    assert list(boxes_of_run((), 0, 1)) == [Box((), ())]
    assert list(boxes_of_run((7,), 2, 2)) == []


def test_pieces_are_small_and_contiguous():
    draw = random.Random(1)
    for _ in range(200):
        shape = tuple(draw.randint(1, 6) for _ in range(draw.randint(1, 4)))
        most = draw.randint(1, 20)
        (box,) = boxes_of_run(shape, 0, math.prod(shape))
        parts = list(pieces(box, most))
        assert [position for part in parts for position in flat(shape, part)] == list(range(box.numel))
        assert max(part.numel for part in parts) <= most
