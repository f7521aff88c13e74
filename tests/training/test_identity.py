"""What of a config decides whether results are those of the same run."""

from hybridtron.config.load import build, load
from hybridtron.mixers.registry import MIXERS
from hybridtron.model.config import ModelConfig
from hybridtron.training.config import RunConfig
from tests.conftest import ROOT


def identity(*overrides):
    return load(ROOT / "configs" / "runs" / "quickstart.yaml", list(overrides), RunConfig).identity()


def test_keys_that_came_later_do_not_part_older_results():
    """As of the release before `model.backend: auto`, `data.loader` and the keys of FP8."""
    found = identity()
    assert found["model"]["backend"] == "megatron"
    assert found["precision"] == {"format": "fp32"}
    assert set(found["optimizer"]) == {"lr", "weight_decay", "betas", "eps", "clip_grad"}
    assert set(found["schedule"]) == {"type", "warmup_steps", "decay_steps", "min_lr_ratio"}
    assert "batch_warmup" not in found["train"]
    assert "residual" not in found["model"]
    assert set(found["data"]) == {"train", "valid", "tokenizer", "seq_len"}
    assert set(found["parallel"]) == {
        "tensor", "sequence", "context", "pipeline", "virtual_pipeline", "data", "expert", "expert_tensor",
        "distributed_optimizer", "overlap_grad_reduce", "overlap_param_gather", "recompute",
    }  # fmt: skip
    speed = ("parallel.cpu_offload_layers=1", "train.compile=true", "train.cuda_graphs=true")
    assert found == identity("name=other", "data.loader=dali", "precision.change_on_resume=true")
    assert all(found == identity(override) for override in speed)


def test_later_keys_of_blocks_count_where_they_are_set():
    """Those of branches too; at their default they part no older results."""

    def of_moe(**keys):
        block = {"type": "moe", "num_experts": 4, "ffn_hidden_size": 8, **keys}
        both = {"type": "parallel", "branches": [block, {"type": "swiglu", "ffn_hidden_size": 8}]}
        model = {"hidden_size": 16, "pattern": "moe both", "blocks": {"moe": block, "both": both}}
        return build(model, ModelConfig).identity()

    plain = of_moe()
    assert {*MIXERS["moe"].first_keys.split()} == {*plain["blocks"]["moe"]} - {"type", "norm_position"}
    assert plain["blocks"]["both"]["branches"][0].keys() == plain["blocks"]["moe"].keys()
    assert of_moe(latent_size=0, num_groups=1) == plain
    latent = of_moe(latent_size=8)
    assert latent["blocks"]["moe"] == plain["blocks"]["moe"] | {"latent_size": 8}
    assert latent["blocks"]["both"]["branches"][0]["latent_size"] == 8


def test_what_changes_a_result_is_told_apart():
    fp8 = ("precision.format=fp8", "precision.emulate=true")
    configs = ((), ("model.backend=megatron",), ("model.backend=torch",), ("seed=2",), ("optimizer.type=muon",), fp8)
    configs += (("schedule.decay_shape=1-sqrt",), ("schedule.type=power",), ("model.residual.type=sandwich",))
    configs += (
        ("optimizer.ema.decay=0.9",),
        ("train.batch_warmup=[{steps: 9, global_batch_size: 16}]",),
    )
    found = [identity(*overrides) for overrides in (*configs, (*fp8, "precision.recipe=delayed"))]
    assert all(one != other for i, one in enumerate(found) for other in found[:i])
