import torch

from hybridtron.ops.cuts import runs
from hybridtron.ops.elementwise.row_blocks import as_rows, block_length, from_rows, row_order, split_rows


def test_runs_cover_everything_once():
    assert [list(range(7))[run] for run in runs(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_block_has_at_least_one_row():
    assert block_length(1 << 30, torch.device("cpu")) == 1


def test_blocks_of_a_wide_tensor_are_shorter():
    assert block_length(64, torch.device("cpu")) == 2 * block_length(128, torch.device("cpu"))


def test_split_rows_keeps_tensors_together():
    x, y = torch.arange(200000.0).view(2000, 100), torch.arange(2000.0).unsqueeze(1)
    parts = list(split_rows(x, y))
    assert len(parts) > 1
    assert all(torch.equal(a[:, :1], b * 100) for a, b in parts)


def test_rows_of_a_transposed_view_need_no_copy():
    memory = torch.randn(5, 2, 3)
    x = memory.transpose(0, 1)
    order = row_order(x)
    rows = as_rows(x, order)
    assert rows.data_ptr() == memory.data_ptr()
    torch.testing.assert_close(from_rows(rows, x.shape, order), x)
