import math

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from hybridtron.ops.moe.routing import (
    balance_loss,
    balancing_step,
    capacity,
    choose,
    combining_weights,
    router_log_scores,
    router_z_loss,
    within_capacity,
)
from tests.ops.compare import assert_vmaps, leaf

S, B, EXPERTS = 11, 2, 5


def logits(dtype=torch.float64):
    return leaf(S, B, EXPERTS, dtype=dtype)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "sqrt_softplus"])
@pytest.mark.parametrize("top_k", [1, 2, EXPERTS])
class TestChoice:
    def test_takes_the_highest_scores(self, kind, top_k):
        scores = router_log_scores(logits(), kind)
        chosen = choose(scores, top_k)
        assert (chosen.sum(-1) == top_k).all()
        lowest = scores.masked_fill(~chosen, torch.inf).amin(-1)
        highest_left = scores.masked_fill(chosen, -torch.inf).amax(-1)
        assert (lowest > highest_left).all()

    @pytest.mark.parametrize("normalize", [False, True])
    def test_weights_are_the_chosen_scores(self, kind, top_k, normalize):
        scores = router_log_scores(logits(), kind)
        chosen = choose(scores, top_k)
        weights = combining_weights(scores, chosen, normalize, 2.5)
        scores = scores.detach()
        for t in range(S):
            for b in range(B):
                own = {i: math.exp(scores[t, b, i]) for i in range(EXPERTS) if chosen[t, b, i]}
                total = sum(own.values()) if normalize else 1
                expected = [2.5 * own.get(i, 0) / total for i in range(EXPERTS)]
                assert weights[t, b].tolist() == pytest.approx(expected, rel=1e-12)

    def test_gradients_in_float64(self, kind, top_k):
        x = logits()
        chosen = choose(router_log_scores(x, kind), top_k)
        assert torch.autograd.gradcheck(lambda x: combining_weights(router_log_scores(x, kind), chosen, True, 2.5), x)


def test_scores_are_shares_or_stand_alone():
    x = logits()
    torch.testing.assert_close(router_log_scores(x, "softmax").exp().sum(-1), torch.ones(S, B, dtype=torch.float64))
    torch.testing.assert_close(router_log_scores(x, "sigmoid").exp(), 1 / (1 + (-x).exp()))
    torch.testing.assert_close(router_log_scores(x, "sqrt_softplus").exp(), (1 + x.exp()).log().sqrt())


@pytest.mark.parametrize("level", [-1e4, -100.0, -20.5, -19.5, 0.0, 100.0])
def test_roots_of_softplus_hold_at_any_logits(level):
    x = (level + torch.tensor([0.0, 0.5, -1.0])).requires_grad_()
    log_scores = router_log_scores(x, "sqrt_softplus")
    double = x.detach().double()
    expected = 0.5 * (double if level < -700 else double.exp().log1p().log())
    torch.testing.assert_close(log_scores.double(), expected, rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(log_scores.sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, 0.5) if level < -10 else gradient)
    assert (gradient > 0).all()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("num_groups", "top_groups", "top_k"), [(4, 2, 3), (2, 1, 2), (8, 3, 2), (4, 4, 3)])
def test_choice_within_the_best_groups(biased, num_groups, top_groups, top_k):
    """Written out token by token; with all groups it is the choice without groups."""
    log_scores = router_log_scores(leaf(S, B, 8, dtype=torch.float64), "sigmoid").detach()
    bias = torch.linspace(-0.5, 0.5, 8, dtype=torch.float64) if biased else None
    values = log_scores.exp() + (bias if biased else 0)
    chosen = choose(log_scores, top_k, bias, num_groups, top_groups)
    size = 8 // num_groups
    for t in range(S):
        for b in range(B):
            own = values[t, b].tolist()
            strength = [sum(sorted(own[g * size : (g + 1) * size])[-2:]) for g in range(num_groups)]
            best = sorted(range(num_groups), key=lambda g: -strength[g])[:top_groups]
            allowed = [i for i in range(8) if i // size in best]
            expected = sorted(sorted(allowed, key=lambda i: -own[i])[:top_k])
            assert chosen[t, b].nonzero().flatten().tolist() == expected
    if top_groups == num_groups:
        assert torch.equal(chosen, choose(log_scores, top_k, bias))


def test_a_bias_matters_to_the_choice_alone():
    scores = router_log_scores(logits(), "sigmoid")
    bias = torch.tensor([0.0, 0, 0, 0, 2])
    chosen = choose(scores, 2, bias)
    assert chosen[..., 4].all()
    weights = combining_weights(scores, chosen, False, 1.0)
    torch.testing.assert_close(weights[..., 4], scores[..., 4].exp())


@pytest.mark.parametrize("level", [0.0, -20.0, -50.0, -90.0, -1e4, 90.0])
def test_weights_and_losses_of_sigmoids_hold_at_any_logits(level):
    """Their ratios depend on differences of logits alone where all are very negative, and are 1 where all are large."""
    x = (level + torch.tensor([0.0, 0.5, -1.0, 0.25, -0.5])).expand(S, B, -1).clone().requires_grad_()
    log_scores = router_log_scores(x, "sigmoid")
    chosen = choose(log_scores, 2)
    weights = combining_weights(log_scores, chosen, True, 2.5)
    loss = balance_loss(log_scores, chosen.sum(0), S, 2)
    exact = x.detach().double().sigmoid() if level > -700 else x.detach().double().sub(level).exp()
    if level < 90:  # beyond, all scores are 1 in float32, and any two are the highest
        assert chosen[..., [1, 3]].all()
    expected = 2.5 * exact * chosen / (exact * chosen).sum(-1, keepdim=True)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-6, atol=0)
    shares = exact / exact.sum(-1, keepdim=True)
    torch.testing.assert_close(loss.double(), EXPERTS / 2 * (shares * chosen).sum(-1).mean(), rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss + weights[..., 1].sum(), x)
    assert gradient.isfinite().all()
    assert level > 20 or gradient.abs().max() > 0.1


class TestCapacity:
    @pytest.mark.parametrize(("factor", "limit"), [(1.0, 8), (1.25, 10), (1.01, 9), (0.01, 1)])
    def test_is_a_multiple_of_an_even_share(self, factor, limit):
        assert capacity(seq_len=16, num_experts=4, top_k=2, factor=factor) == limit

    def test_the_first_tokens_of_each_sequence_are_kept(self):
        chosen = choose(router_log_scores(logits(), "softmax"), 3)
        kept = within_capacity(chosen, torch.zeros(B, EXPERTS, dtype=torch.int64), 4)
        for b in range(B):
            for i in range(EXPERTS):
                takers = chosen[:, b, i].nonzero().flatten().tolist()
                assert kept[:, b, i].nonzero().flatten().tolist() == takers[:4]

    def test_runs_of_a_sequence_keep_what_the_whole_does(self):
        chosen = choose(router_log_scores(logits(), "softmax"), 3)
        whole = within_capacity(chosen, torch.zeros(B, EXPERTS, dtype=torch.int64), 4)
        first, second = chosen[:6], chosen[6:]
        runs = [within_capacity(first, torch.zeros_like(first[0], dtype=torch.int64), 4)]
        runs.append(within_capacity(second, first.sum(0), 4))
        assert torch.equal(torch.cat(runs), whole)


class TestBalanceLoss:
    def test_is_one_where_load_is_even(self):
        scores = torch.full((10, B, EXPERTS), 1 / EXPERTS).log()
        counts = torch.full((B, EXPERTS), 4)
        torch.testing.assert_close(balance_loss(scores, counts, 10, 2), torch.tensor(1.0))

    def test_is_largest_where_some_experts_get_everything(self):
        scores = torch.full((10, B, EXPERTS), -torch.inf)
        scores[..., :2] = 0.0
        counts = choose(scores, 2).sum(0)
        torch.testing.assert_close(balance_loss(scores, counts, 10, 2), torch.tensor(EXPERTS / 2))

    @pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
    def test_equals_its_formula(self, kind):
        scores = router_log_scores(logits(), kind).detach()
        chosen = choose(scores, 2)
        expected = 0.0
        for b in range(B):
            for i in range(EXPERTS):
                f = sum(int(chosen[t, b, i]) for t in range(S)) / (S * 2)
                p = sum(float(scores[t, b, i].exp() / scores[t, b].exp().sum()) for t in range(S)) / S
                expected += EXPERTS * f * p / B
        assert float(balance_loss(scores, chosen.sum(0), S, 2)) == pytest.approx(expected, rel=1e-12)

    def test_of_one_sequence_is_that_of_transformers(self):
        """Which counts every choice as a whole token: top_k times as much."""
        x = logits(torch.float32)[:, :1]
        scores = router_log_scores(x, "softmax")
        theirs = load_balancing_loss_func((x[:, 0],), EXPERTS, top_k=2)
        torch.testing.assert_close(2 * balance_loss(scores, choose(scores, 2).sum(0), S, 2), theirs)

    def test_runs_of_a_sequence_add_up(self):
        scores = router_log_scores(logits(), "sigmoid")
        counts = choose(scores, 2).sum(0)
        parts = [balance_loss(run, counts, S, 2) for run in scores.split(4)]
        torch.testing.assert_close(sum(parts), balance_loss(scores, counts, S, 2))

    def test_gradients_in_float64(self):
        x = logits()
        counts = choose(x, 2).sum(0)
        assert torch.autograd.gradcheck(lambda x: balance_loss(router_log_scores(x, "sigmoid"), counts, S, 2), x)


def test_z_loss_is_the_mean_square_of_the_log_partition_function():
    x = logits()
    torch.testing.assert_close(router_z_loss(x, S), x.exp().sum(-1).log().square().mean())
    torch.testing.assert_close(router_z_loss(x[:4], S) + router_z_loss(x[4:], S), router_z_loss(x, S))


def test_the_bias_moves_by_the_sign_of_the_load_error():
    assert balancing_step(torch.tensor([10, 2, 6, 6]), 0.5).tolist() == [-0.5, 0.5, 0, 0]


@pytest.mark.parametrize(("kind", "num_groups"), [("softmax", 1), ("sigmoid", 1), ("sqrt_softplus", EXPERTS)])
def test_vmap(kind, num_groups):
    def everything(x):
        scores = router_log_scores(x, kind)
        chosen = choose(scores, 2, None, num_groups, max(1, num_groups - 2))
        kept = within_capacity(chosen, torch.zeros_like(chosen[0], dtype=torch.int64), 5)
        weights = combining_weights(scores, kept, True, 2.0)
        return weights, balance_loss(scores, chosen.sum(0), S, 2), router_z_loss(x, S)

    assert_vmaps(everything, [logits(torch.float32)])
