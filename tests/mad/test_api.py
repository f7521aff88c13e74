"""`hybridtron.mad.score`, as a Python program calls it."""

import subprocess
import sys

import pytest

from hybridtron import mad
from hybridtron.errors import UserError
from hybridtron.mad.models.architecture import from_pattern
from hybridtron.mad.training.presets import preset
from tests.conftest import environment

SMALL = {"preset": preset("smoke", max_steps=2), "tasks": "compression", "setting": {"seq_len": 8}}


def test_a_pattern_its_layers_and_its_architecture_have_one_score(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    score = mad.score("2*(mh-hyena swiglu)", seeds=[3], **SMALL)
    assert (score.pattern, score.seeds, list(score.tasks)) == ("2*(mh_hyena swiglu)", (3,), ["compression"])
    assert 0 < score.overall["micro"].mean < 1
    for other in (["mh-hyena", "swiglu"] * 2, from_pattern("2*(mh_hyena swiglu)")):
        assert mad.score(other, seeds=[3], **SMALL).as_json() == score.as_json()
    assert not list(tmp_path.iterdir())


def test_attention_goes_by_the_name_that_configs_give_it():
    assert from_pattern("attn mlp") == from_pattern("attention mlp")
    assert mad.score(["attn"], **SMALL).pattern == "attention"


def test_results_that_are_kept_are_not_trained_again(tmp_path):
    settings = []
    first = mad.score("mlp", seeds=2, out=tmp_path, on_progress=settings.append, **SMALL)
    again = mad.score("mlp", seeds=2, out=tmp_path, on_progress=settings.append, **SMALL)
    assert first.as_json() == again.as_json()
    assert [progress.unit.task for progress in settings] == ["compression"]
    assert mad.score("2*mamba", iso_state=True, **SMALL).state_size == 4096


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": 0}, "seeds = 0: expected at least 1"),
        ({"seeds": [-1]}, "seeds = -1: expected whole numbers from 0"),
        ({"processes": 0}, "processes = 0: expected at least 1"),
        ({"preset": "papr"}, r"preset 'papr': expected .*nearest: paper"),
        ({"device": "tpu"}, "device 'tpu': expected one of cpu, cuda"),
        ({"tasks": ["memory"]}, "tasks = memory: expected one of"),
        ({"tasks": []}, r"tasks = \[\]: expected at least one of .*, memorization, or None for all$"),
    ],
)
def test_errors_name_parameters(arguments, message):
    with pytest.raises(UserError, match=message):
        mad.score("mlp", **{**SMALL, **arguments})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": []}, r"lr = \[\]: expected at least one number"),
        ({"weight_decay": []}, r"weight_decay = \[\]: expected at least one number"),
        ({"max_step": 1, "batchsize": 2, "sed": 3, "epoch": 4, "dta": 5}, "^max_step: no setting of a preset"),
    ],
)
def test_a_preset_is_changed_in_what_it_has_and_to_something(changes, message):
    with pytest.raises(UserError, match=message):
        mad.preset("smoke", **changes)


def test_importing_the_laboratory_imports_neither_torch_nor_megatron():
    program = "import sys, hybridtron.mad; sys.exit(any(name in sys.modules for name in ('torch', 'megatron')))"
    assert subprocess.run([sys.executable, "-c", program], env=environment()).returncode == 0
    assert set(mad.__all__) <= {name for name in mad.__all__ if getattr(mad, name) is not None}
