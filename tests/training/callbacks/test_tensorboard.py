"""TensorBoard's own reader on the events of a run that was resumed."""

from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

import hybridtron as ht
from hybridtron.training.callbacks.tensorboard import scalars, tag_of


@pytest.fixture
def run(tiny):
    changed = ["schedule.warmup_steps=1", "train.eval_every=2"]
    ht.train(tiny, *changed, "train.steps=2")
    return ht.train(tiny, *changed, "train.steps=4", resume=True)


def test_metrics_and_hyperparameters_are_one_run_with_the_losses_first(run):
    folder = run.folder / "tensorboard"
    assert all(path.is_file() for path in folder.iterdir())  # a folder would be another run
    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()["scalars"]
    assert sorted(tags)[:4] == ["loss/train", "loss/train_step", "loss/valid", "loss/valid_bits_per_byte"]
    assert {"optimizer/lr", "optimizer/grad_norm", "speed/tokens_per_s", "progress/tokens"} <= {*tags}
    for tag, key in {"loss/train": "loss", "loss/valid": "valid_loss", "optimizer/lr": "lr"}.items():
        expected = [(row["step"], pytest.approx(row[key])) for row in run.metrics if key in row]
        assert [(event.step, event.value) for event in events.Scalars(tag)] == expected

    (start,) = (text for tag, text in plugin_content(events).items() if tag == metadata.SESSION_START_INFO_TAG)
    found = metadata.parse_session_start_info_plugin_data(start).hparams
    assert found["name"].string_value == "tiny"
    assert found["model.pattern"].string_value == "mamba mlp attn ffn"
    assert found["parameters"].number_value == ht.describe(run.folder).total
    assert found["optimizer.lr"].number_value == 3e-3
    assert found["optimizer.betas"].string_value == "[0.9, 0.95]"
    assert found["model.blocks.mamba.head_dim"].number_value == 16
    experiment = metadata.parse_experiment_plugin_data(plugin_content(events)[metadata.EXPERIMENT_TAG])
    assert {metric.name.tag for metric in experiment.metric_infos} <= {*tags}
    assert [info.name for info in experiment.hparam_infos][:2] == ["name", "model.pattern"]


def plugin_content(events):
    """Return what the hparams plugin stored, by tag."""
    return {
        tag: data.plugin_data.content
        for tag, data in events.summary_metadata.items()
        if data.plugin_data.plugin_name == metadata.PLUGIN_NAME
    }


def test_numbers_that_are_not_finite_are_left_out_and_expert_loads_become_one_number():
    row = {"step": 3, "time": 1.0, "loss": float("nan"), "lr": 0.1, "mfu": None, "expert_load": {"3": [0.1, 0.9]}}
    assert list(scalars(row)) == [("lr", 0.1), ("busiest_expert/3", 1.8)]
    assert [tag_of(key) for key, _ in scalars(row)] == ["optimizer/lr", "routing/busiest_expert/3"]
    assert tag_of("a_new_number") == "more/a_new_number" > "loss"
