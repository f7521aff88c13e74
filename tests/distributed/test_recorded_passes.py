"""Training with recorded passes is training without, bit for bit; tests/gpu/test_training.py records CUDA graphs."""

import pytest
import torch

from hybridtron.api.configs import read_training_config
from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.training.build import build_engine
from tests.conftest import TINY
from tests.distributed.models import BLOCKS
from tests.distributed.tape import tapes_for_graphs, without_c_kernels

SEQ_LEN = 32
EVERY_BLOCK = {name: block for name, block in BLOCKS.items() if block["type"] != "moe"}  # which waits for the device
WIDE = {"attn": {"type": "attention", "num_heads": 4}, "mlp": {"type": "swiglu", "ffn_hidden_size": 64}}
CASES = {
    "every block": {
        "model": {"blocks": EVERY_BLOCK, "pattern": " ".join(EVERY_BLOCK)}},
    "computed again, tied, further tokens": {
        "model": {"tie_embeddings": True, "mtp": {"depth": 2, "pattern": "attn ffn"}},
        "train": {"z_loss": 1e-2}, "parallel": {"recompute": "full"}},
    "bf16, sharded, Muon, limits": {
        "precision": {"format": "bf16"}, "optimizer": {"type": "muon", "clip_groups": {"attn": 0.01}},
        "parallel": {"distributed_optimizer": True, "recompute": "selective"}},
    "delayed scales, torch's linears": {
        "model": {"hidden_size": 64, "blocks": WIDE, "pattern": "attn mlp", "backend": "torch"},
        "precision": {"format": "fp8", "recipe": "delayed", "emulate": True}},
}  # fmt: skip
MOE = {"model": {"blocks": {"moe": {"type": "moe", "num_experts": 2, "ffn_hidden_size": 32}}, "pattern": "moe"}}


def config_of(**sections):
    config = {**TINY, "data": {**TINY["data"], "train": "none", "seq_len": SEQ_LEN}}
    for name, keys in sections.items():
        config[name] = {**config.get(name, {}), **keys}
    return read_training_config(config)


def trained(config, micro_batches, before_step=lambda engine, step: None):
    """Train steps of so many micro-batches; return their results, the parameters and the engine."""
    train = config.train.model_copy(update={"cuda_graphs": True})
    config = config.model_copy(update={"train": train})
    generator = torch.Generator().manual_seed(0)
    with process_groups(config.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
        engine, (model,) = build_engine(config, parallel_context)
        results = []
        for step, count in enumerate(micro_batches):
            ids = torch.randint(257, (count, 2, SEQ_LEN + 1), generator=generator)
            before_step(engine, step)
            results.append(engine.train_step([(each[:, :-1], each[:, 1:]) for each in ids], 1e-2))
        return results, {name: each.detach().clone() for name, each in model.named_parameters()}, engine


def with_and_without(config, micro_batches, before_step=lambda engine, step: None, most=1 << 30):
    """Train with tapes and as it is; both must be the same. Return the engine with tapes."""
    with without_c_kernels():
        expected, weights, _ = trained(config, micro_batches, before_step)
    with tapes_for_graphs(most):
        results, others, engine = trained(config, micro_batches, before_step)
    assert results == expected
    assert all(result.applied for result in results)
    assert all(torch.equal(others[name], weight) for name, weight in weights.items())
    return engine


@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_are_those_that_run(case):
    steps = [1, 1] if case == "every block" else [2, 2, 2]
    engine = with_and_without(config_of(**CASES[case]), steps)
    assert engine.recorded.replays == len(steps)


def test_the_latest_number_of_micro_batches_has_a_recording():
    engine = with_and_without(config_of(), [1, 1, 3, 3, 1])
    assert engine.recorded.replays == 5
    assert [shape[0] for shape, _ in engine.recorded.recorder.recordings] == [1]


def test_steps_that_are_watched_run_as_they_are_and_evaluations_are_not_recorded():
    found = []

    def look(engine, step):
        if step == 2:
            found.append(engine.collect_layer_statistics())
        if step == 3:
            found.append(found.pop().take())
            found.append(engine.evaluate([(torch.zeros(2, SEQ_LEN, dtype=torch.long),) * 2], 2))

    engine = with_and_without(config_of(), [2] * 4, look)
    assert engine.recorded.replays == 3
    statistics, loss, *of_tapes = found
    assert of_tapes == [statistics, loss]
    assert all(row["grad_norm"] > 0 for row in statistics.values())


@pytest.mark.parametrize("method", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_of_parameters_are_called(method):
    """A recording would leave them out, or have what they do in all later steps."""
    called, handles = [], []

    def look(engine, step):
        for handle in handles:
            handle.remove()
        if step in (0, 2):
            weight = engine.chunks[0].get_parameter("embedding.weight")
            handles.append(getattr(weight, method)(lambda _: called.append(step)))

    engine = with_and_without(config_of(), [2] * 4, look)
    assert called == [0, 0, 2, 2] * 2  # of two micro-batches, with and without
    assert engine.recorded.replays == 2


@pytest.mark.parametrize(
    ("sections", "most"), [(MOE, 1 << 30), ({}, 382)], ids=["waits for numbers of rows", "fails on its way back"]
)
def test_what_cannot_be_recorded_leaves_nothing_behind(sections, most, caplog, monkeypatch):
    monkeypatch.setattr("hybridtron.training.validation.resolve.check_cuda_graphs", lambda config: None)
    engine = with_and_without(config_of(**sections), [2, 2], most=most)
    assert engine.recorded.replays == 0
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("hybridtron")]
    assert warning.startswith("not recorded as a CUDA graph: ")
    assert "operation not permitted" in warning
