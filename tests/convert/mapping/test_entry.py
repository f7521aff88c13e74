"""Arrangements of another format: from our parts and back."""

import pytest
import torch

from hybridtron.convert.mapping.entry import Entry, assemble, check_complete, disassemble

SHAPES = {"q": (8, 5), "k": (4, 5), "v": (4, 5), "conv": (6, 3), "experts": (3, 4, 5)}
ENTRIES = [
    Entry("one", ("q",)),
    Entry("packed", ("q", "k", "v")),
    Entry("interleaved", ("q", "k", "v"), groups=2),
    Entry("transposed", ("q", "k"), transposed=True),
    Entry("conv", ("conv",), shape=(6, 1, 3)),
    Entry("expert", ("experts",), expert=1),
    Entry("rows of an expert in turn, transposed", ("experts", "experts"), expert=2, groups=4, transposed=True),
    Entry("rows of all experts in turn, transposed", ("experts", "experts"), axis=1, groups=4, transposed=True),
]


def boxes(entry: Entry) -> list[torch.Tensor]:
    """What of each part of an entry belongs to it, with values that differ."""
    found = []
    for number, part in enumerate(entry.parts):
        offsets, sizes = entry.box(SHAPES[part])
        whole = torch.arange(torch.Size(SHAPES[part]).numel()).view(SHAPES[part]) + 1000 * number
        found.append(whole[tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))])
    return found


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_what_is_assembled_is_cut_into_the_same_parts(entry):
    whole = assemble(entry, boxes(entry))
    assert whole.shape == entry.shape_there(SHAPES)
    assert whole.is_contiguous()
    for found, expected in zip(disassemble(entry, whole, SHAPES), boxes(entry), strict=True):
        assert torch.equal(found, expected)


def test_groups_interleave_runs_of_all_parts():
    q, k = torch.arange(4), torch.arange(10, 12)
    whole = assemble(Entry("x", ("q", "k"), groups=2), [q, k])
    assert whole.tolist() == [0, 1, 10, 2, 3, 11]


def test_a_table_names_every_element_once():
    entries = [Entry(f"experts.{i}", ("experts",), expert=i) for i in range(3)]
    check_complete(entries, {"experts": SHAPES["experts"]})
    with pytest.raises(AssertionError, match="experts: 40 of its 60"):
        check_complete(entries[:2], {"experts": SHAPES["experts"]})
    with pytest.raises(AssertionError, match="no stored part"):
        check_complete([Entry("x", ("absent",))], {})
