"""Training on CUDA: the quickstart's losses are those of a CPU, and a step waits for the device once."""

import warnings

import pytest
import torch

import hybridtron as ht
from hybridtron.api.configs import read_training_config
from hybridtron.data.loaders.batch_sizes import BatchSizes
from hybridtron.data.loaders.batches import global_batch
from hybridtron.data.loaders.sampler import BatchSampler
from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.distributed.recorded_passes import RecordedPasses
from hybridtron.mixers.registry import MIXERS
from hybridtron.training.corpus import open_corpus
from tests.gpu.conftest import QUICKSTART, losses, train_on, write_config
from tests.gpu.primitives import PRIMITIVES

pytestmark = pytest.mark.gpu

STEPS = 12
SHORT = [f"train.steps={STEPS}", "train.log_every=1", "train.eval_every=0", "train.sample_tokens=0"]
SHORT += ["checkpoint.save_every=0", "schedule.decay_steps=4", "schedule.warmup_steps=4"]
SAME_LOSS = 2e-3  # relative; float32 on both
NEAR_LOSS = 2e-2  # bfloat16 against float32


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    """The losses of the quickstart's first steps on a CPU."""
    folder = tmp_path_factory.mktemp("cpu")
    return losses(train_on("cpu", QUICKSTART, *SHORT, f"folder={folder / 'run'}"))


@pytest.mark.parametrize("backend", ["megatron", "torch"])
def test_the_quickstart_has_the_losses_of_a_cpu(tmp_path, on_cpu, backend):
    rows = train_on("cuda", QUICKSTART, *SHORT, f"folder={tmp_path / 'run'}", f"model.backend={backend}")
    assert len(on_cpu) == STEPS
    torch.testing.assert_close(losses(rows), on_cpu, rtol=SAME_LOSS, atol=0)


def test_the_quickstart_in_bfloat16_is_near_them(tmp_path, on_cpu):
    rows = train_on("cuda", QUICKSTART, *SHORT, f"folder={tmp_path / 'run'}", "precision.format=bf16")
    torch.testing.assert_close(losses(rows), on_cpu, rtol=NEAR_LOSS, atol=0)
    assert all(row["mfu"] is None or 0 < row["mfu"] < 1 for row in rows if "mfu" in row)


def test_all_primitives_train_together(tmp_path, corpus):
    """In bfloat16, with the distributed optimizer and recomputation."""
    blocks = {name: {"type": name, **PRIMITIVES[name]} for name in MIXERS}
    model = {"hidden_size": 256, "blocks": blocks, "pattern": " ".join(blocks)}
    config = write_config(tmp_path, corpus, model=model)
    more = ["precision.format=bf16", "parallel.distributed_optimizer=true", "parallel.recompute=selective"]
    rows = train_on("cuda", config, "train.steps=15", "optimizer.lr=1e-3", "data.seq_len=128", *more)
    found = losses(rows)
    assert found.isfinite().all()
    assert found[-3:].mean() < found[0] - 0.2


class TestCudaGraphs:
    @pytest.mark.parametrize("case", ["attention", "mamba2", "gated_deltanet", "hybrid in bfloat16, computed again"])
    def test_replayed_steps_have_the_losses_of_those_that_run(self, tmp_path, corpus, monkeypatch, cuda, case):
        """Ten steps, with a larger batch from the fifth on, evaluations and checkpoints."""
        names = [case] if case in PRIMITIVES else ["mamba2", "attention", "swiglu"]
        blocks = {name: {"type": name, **PRIMITIVES[name]} for name in names}
        model = {"hidden_size": 256, "blocks": blocks, "pattern": " ".join(names)}
        config = write_config(tmp_path, corpus, model=model)
        more = ["train.steps=10", "train.log_every=1", "train.eval_every=4", "checkpoint.save_every=3"]
        more += ["train.batch_warmup=[{steps: 4, global_batch_size: 2}]", "data.seq_len=128"]
        if case not in PRIMITIVES:
            more += ["precision.format=bf16", "parallel.recompute=full", "parallel.distributed_optimizer=true"]
        rows = ht.train(config, *more, f"folder={tmp_path / 'plain'}").metrics
        recorded, run = [], RecordedPasses.run

        def counted(self, *arguments, **options):
            recorded.append(self)
            return run(self, *arguments, **options)

        monkeypatch.setattr(RecordedPasses, "run", counted)
        found = ht.train(config, *more, "train.cuda_graphs=true", f"folder={tmp_path / 'recorded'}").metrics
        bound = SAME_LOSS if case in PRIMITIVES else NEAR_LOSS
        torch.testing.assert_close(losses(found), losses(rows), rtol=bound, atol=0)
        assert [each.replays for each in recorded] == [10] * 10 * (cuda.type == "cuda")


class TestActivationsInCPUMemory:
    """Of four layers of six, whose products are the same in each run."""

    def config(self, folder, corpus, count, tokens, width):
        """A file of a run whose layers save tensors of 4 KiB a token and more, and the key's override."""
        blocks = {"mlp": {"type": "swiglu", "ffn_hidden_size": 4 * width}}
        model = {"hidden_size": width, "blocks": blocks, "pattern": "6*mlp", "backend": "torch"}
        file = write_config(folder, corpus, model=model)
        batch = tokens // 256
        more = [f"train.micro_batch_size={batch}", f"train.global_batch_size={2 * batch}", "data.seq_len=256"]
        return file, *more, f"parallel.cpu_offload_layers={count}"

    def test_losses_are_the_same_bit_for_bit(self, tmp_path, corpus):
        found = []
        for count in (0, 4):
            (tmp_path / str(count)).mkdir()
            config = self.config(tmp_path / str(count), corpus, count, tokens=512, width=256)
            found.append(losses(train_on("cuda", *config, "train.steps=4", "train.eval_every=0")))
        assert torch.equal(*found)

    @pytest.mark.usefixtures("needs_cuda")
    def test_the_peak_of_memory_falls_by_what_the_plan_says(self, tmp_path, corpus):
        configs = [self.config(tmp_path, corpus, count, tokens=8192, width=1024) for count in (0, 4)]
        planned = [ht.plan(*config, gpus=1, dry_run=True).stages[0].total_bytes for config in configs]
        measured = [peak_of_a_step(*config) for config in configs]
        assert planned[0] - planned[1] > 2**28
        assert measured[0] - measured[1] == pytest.approx(planned[0] - planned[1], rel=0.1)


def peak_of_a_step(*config):
    """Return the most bytes of tensors at once in the second step of two micro-batches."""
    from hybridtron.training.build import build_engine  # imports megatron-core, which process_groups must come before

    run = read_training_config(*config)
    dataset = open_corpus(run).train
    with process_groups(run.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
        engine, _ = build_engine(run, parallel_context)
        for step in range(2):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            train = run.train
            engine.train_step(
                list(global_batch(dataset, step, BatchSampler(train.batch_sizes, train.micro_batch_size, 0, 1))), 1e-3
            )
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()


def test_compiled_layers_have_the_losses_of_layers_as_they_are(tmp_path, corpus):
    """A hybrid in bfloat16, with an evaluation between the steps."""
    blocks = {name: {"type": name, **PRIMITIVES[name]} for name in ("mamba2", "swiglu", "attention", "rwkv7")}
    model = {"hidden_size": 256, "blocks": blocks, "pattern": " ".join(blocks)}
    config = write_config(tmp_path, corpus, model=model)
    more = ["precision.format=bf16", "train.steps=6", "train.eval_every=3"]
    more.append("train.layer_statistics_every=2")
    plain, compiled = (
        train_on("cuda", config, *more, f"train.compile={key}", f"folder={tmp_path / key}") for key in ("false", "true")
    )
    torch.testing.assert_close(losses(compiled), losses(plain), rtol=NEAR_LOSS, atol=0)


@pytest.mark.usefixtures("needs_cuda")
class TestSynchronisations:
    """A step of the engine waits for the device once: to read loss, norm of the gradients and expert loads."""

    @pytest.mark.parametrize("block", [name for name in MIXERS if name not in ("moe", "parallel")])
    def test_one_for_a_step(self, tmp_path, corpus, block):
        assert waits_of_a_step(tmp_path, corpus, {"x": {"type": block, **PRIMITIVES[block]}}) == 1

    def test_with_experts_one_more_for_a_layer_and_micro_batch(self, tmp_path, corpus):
        """The counts of rows of each expert."""
        assert waits_of_a_step(tmp_path, corpus, {"x": {"type": "moe", **PRIMITIVES["moe"]}}) <= 1 + 2 * 2


def waits_of_a_step(folder, corpus, blocks):
    """Count what PyTorch reports as synchronising in the third step of two micro-batches of a model of two layers."""
    from hybridtron.training.build import build_engine  # imports megatron-core, which process_groups must come before

    model = {"hidden_size": 256, "blocks": blocks, "pattern": "2*x", "backend": "torch"}
    config = read_training_config(write_config(folder, corpus, model=model), "precision.format=bf16")
    dataset = open_corpus(config).train
    with process_groups(config.parallel, Environment(0, 1, 0, None, "single")) as parallel_context:
        engine, _ = build_engine(config, parallel_context)
        for step in range(3):
            batches = list(global_batch(dataset, step, BatchSampler(BatchSizes(4), 2, 0, 1)))
            torch.cuda.synchronize()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn" if step == 2 else "default")
                try:
                    engine.train_step(batches, 1e-3)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message).lower() for warning in caught)
