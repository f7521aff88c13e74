"""What tensor-parallel linears compute while their messages travel, in two real processes.

As in megatron-core, messages of the backward pass of column-parallel linears overlap always; `parallel.tp_comm_overlap`
adds the others, in pieces. A linear's events are all of its products and messages, in their order.
"""

import json
import sys

import pytest

from hybridtron.backends.megatron.tensor_overlap import LEAST_ROWS, PIECES, pieces_of
from tests.backends.megatron.tensor_overlapped import TOKENS
from tests.warm import launch


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each of two processes saw: by kind of linear, for each number of tokens."""
    folder = tmp_path_factory.mktemp("linears")
    assert launch([sys.executable, "-m", "tests.backends.megatron.tensor_overlapped", str(folder)], 2) == 0
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def events(seen, linear):
    """Those of the first number of tokens, which are the same in both processes."""
    (first, *_), (same, *_) = (process[linear] for process in seen)
    assert first["forward"] == same["forward"]
    assert first["backward"] == same["backward"]
    return first["forward"], first["backward"]


class TestAlways:
    """Without the key, and where it changes nothing."""

    @pytest.mark.parametrize("linear", ["column", "column overlap"])
    def test_a_column_parallel_linear_sums_the_gradient_while_that_of_the_weight_is_computed(self, seen, linear):
        assert events(seen, linear) == (
            ["product 0"],
            ["product 0", "sum 0", "weight product 0", "wait for sum 0"],
        )

    def test_under_sequence_parallelism_it_gathers_and_scatters_beside_products(self, seen):
        """But in the forward pass."""
        assert events(seen, "column sequence") == (
            ["gather 0", "wait for gather 0", "product 0"],
            ["gather 0", "product 0", "wait for gather 0", "scatter 0", "weight product 0", "wait for scatter 0"],
        )

    def test_a_row_parallel_linear_computes_nothing_beside_its_messages(self, seen):
        assert events(seen, "row") == (
            ["product 0", "sum 0", "wait for sum 0"],
            ["product 0", "weight product 0"],
        )
        assert events(seen, "row sequence") == (
            ["product 0", "scatter 0", "wait for scatter 0"],
            ["gather 0", "wait for gather 0", "product 0", "weight product 0"],
        )


def summed_in_pieces(kind):
    """A piece is sent before the next multiplies, and none is waited for before the last has."""
    begun = [event for piece in range(PIECES) for event in (f"product {piece}", f"{kind} {piece}")]
    return begun + [f"wait for {kind} {piece}" for piece in range(PIECES)]


def gathered_in_pieces():
    """The next piece is under way before one multiplies."""
    steps = ["gather 0"]
    for piece in range(PIECES):
        steps += [f"gather {piece + 1}"] * (piece + 1 < PIECES) + [f"wait for gather {piece}", f"product {piece}"]
    return steps


class TestInPieces:
    def test_a_row_parallel_linear_sums_while_it_multiplies(self, seen):
        assert events(seen, "row overlap") == (summed_in_pieces("sum"), ["product 0", "weight product 0"])

    def test_under_sequence_parallelism_it_scatters_so_and_gathers_the_gradient_so(self, seen):
        """Its weight's gradient stays one product of all tokens."""
        assert events(seen, "row sequence overlap") == (
            summed_in_pieces("scatter"),
            [*gathered_in_pieces(), "weight product 0"],
        )

    def test_a_column_parallel_linear_gathers_while_it_multiplies(self, seen):
        """Its backward pass is the same."""
        assert events(seen, "column sequence overlap") == (
            gathered_in_pieces(),
            ["gather 0", "product 0", "wait for gather 0", "scatter 0", "weight product 0", "wait for scatter 0"],
        )

    def test_a_frozen_weight_has_neither_a_gradient_nor_its_messages(self, seen):
        assert events(seen, "column sequence overlap frozen")[1] == ["product 0", "scatter 0", "wait for scatter 0"]
        assert events(seen, "row sequence overlap frozen")[1] == gathered_in_pieces()
        assert events(seen, "row overlap frozen")[1] == ["product 0"]


def test_outputs_and_gradients_are_those_of_one_process(seen):
    """With a bias, of numbers of tokens that the pieces do not divide, and of tensors that are not contiguous."""
    for process in seen:
        assert len(process) == 12
        for linear, cases in process.items():
            frozen = linear.endswith("frozen")
            assert len(cases) == 1 if frozen else len(TOKENS)
            for case in cases:
                assert set(case["differences"]) == {"y", "dx"} if frozen else {"y", "dx", "dweight", "dbias"}
                assert max(case["differences"].values()) < 1e-5, linear


def test_fewer_tokens_make_fewer_pieces(seen):
    """One token of each process makes one, three make three."""
    counts = [
        len([event for event in case["forward"] if "product" in event]) for case in seen[0]["row sequence overlap"]
    ]
    assert counts == [min(PIECES, tokens * sequences // 2) for tokens, sequences in TOKENS]
    assert set(counts) == {1, 3, PIECES}


@pytest.mark.parametrize("rows", [0, 1, LEAST_ROWS - 1, 2 * LEAST_ROWS, 1001, PIECES * LEAST_ROWS, 8191])
def test_pieces_are_even_and_not_too_small(rows):
    pieces = pieces_of(rows)
    lengths = [piece.stop - piece.start for piece in pieces]
    assert [piece.start for piece in pieces] == [sum(lengths[:i]) for i in range(len(pieces))]
    assert sum(lengths) == rows
    assert max(lengths) - min(lengths) <= 1
    assert len(pieces) == max(1, min(PIECES, rows // LEAST_ROWS))
    assert min(lengths) >= min(rows, LEAST_ROWS)
