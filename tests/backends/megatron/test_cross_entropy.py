"""Cross entropy over a vocabulary cut over two processes equals the one over the whole."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hybridtron.backends.megatron.cross_entropy import vocab_parallel_cross_entropy
from hybridtron.ops.elementwise.cross_entropy import cross_entropy

VOCAB, RANKS = 24, 2


def example():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, VOCAB, generator=generator) * 10
    targets = torch.randint(VOCAB, (5, 3), generator=generator)
    weights = torch.randn(2, 5, 3, generator=generator)  # of the two results in the value that is differentiated
    return logits, targets, weights


def worker(rank, rendezvous, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=RANKS)
    logits, targets, weights = example()
    local = logits.chunk(RANKS, -1)[rank].clone().requires_grad_()
    nll, log_z = vocab_parallel_cross_entropy(local, targets, dist.group.WORLD)
    (weights[0] * nll + weights[1] * log_z).sum().backward()
    torch.save((nll.detach(), log_z.detach(), local.grad), f"{out}.{rank}")
    dist.destroy_process_group()


def test_values_and_gradients(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(worker, (str(tmp_path / "rendezvous"), str(tmp_path / "out")), nprocs=RANKS)
    logits, targets, weights = example()
    logits.requires_grad_()
    nll, log_z = cross_entropy(logits, targets)
    (weights[0] * nll + weights[1] * log_z).sum().backward()
    results = [torch.load(tmp_path / f"out.{rank}", weights_only=True) for rank in range(RANKS)]
    for mine, log_z_mine, _ in results:
        torch.testing.assert_close(mine, nll.detach())
        torch.testing.assert_close(log_z_mine, log_z.detach())
    torch.testing.assert_close(torch.cat([grad for _, _, grad in results], -1), logits.grad)
