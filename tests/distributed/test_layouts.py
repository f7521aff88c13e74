"""Every layout trains the same, and a checkpoint of one goes on in any other.

One set of processes walks the whole table; the tests look at what it found.
"""

import json
import sys

import pytest
import torch

from hybridtron.convert.architectures.hybridtron import HYBRIDTRON
from hybridtron.convert.formats.checkpoint import CheckpointSource
from hybridtron.convert.formats.safetensors import SafetensorsSink
from hybridtron.convert.streaming import Table, infos_there, write_theirs
from hybridtron.mixers.registry import MIXERS
from tests.distributed.layouts import LAYOUTS, PROCESSES, RESUMED, TABLE
from tests.distributed.models import (
    BLOCKS,
    COMPARED,
    GLOBAL_BATCH,
    MODELS,
    OPTIMIZER,
    RESUMED_UNTIL,
    SAVED_AT,
    SEQ_LEN,
    STEPS,
)
from tests.distributed.walk import can_generate, run_config
from tests.warm import launch

LOSS, NORM, GRADIENT, STATISTICS = 1e-5, 1e-4, 1e-4, 2e-5
WALKED = tuple(TABLE)  # before other tests add to it
HALF = dict.fromkeys(("half", "halfmuon", "tensorwise", "delayed"), 200)  # times as far apart: bf16 and FP8


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The folder in which the walk leaves what it found, and checkpoints."""
    folder = tmp_path_factory.mktemp("layouts")
    code = launch([sys.executable, "-m", "tests.distributed.walk", str(folder)], PROCESSES)
    assert code == 0
    return folder


@pytest.fixture(scope="module")
def found(walked):
    """Layout -> losses, gradient norms, distance of gradients."""
    folder = walked
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in WALKED}


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("model", MODELS)
def test_one_process_learns(found, model):
    losses = found[model]["losses"]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("name", LAYOUTS)
def test_losses_and_gradient_norms_are_those_of_one_process(found, name):
    """From one checkpoint, which every layout reads in its own pieces."""
    assert_alike(found, name, LAYOUTS[name].model, 0, COMPARED)


def assert_alike(found, name, model, first, fewest):
    losses, norms = found[name]["losses"], found[name]["grad_norms"]
    steps = slice(first, first + len(losses))
    assert len(losses) == len(norms) >= fewest
    assert losses == pytest.approx(found[model]["losses"][steps], abs=LOSS * HALF.get(model, 1))
    assert norms == pytest.approx(found[model]["grad_norms"][steps], rel=NORM * HALF.get(model, 1))


@pytest.mark.parametrize("name", [n for n in LAYOUTS if "cpu_offload_layers" in LAYOUTS[n].parallel])
def test_activations_in_cpu_memory_change_no_bit(found, name):
    with_key, without = found[name], found[name.removesuffix(" offloaded")]
    assert with_key["gradient_distance"] == without["gradient_distance"]
    for key in ("losses", "grad_norms"):
        assert with_key[key][:COMPARED] == without[key][:COMPARED]


@pytest.mark.parametrize("name", [n for n in LAYOUTS if LAYOUTS[n].model == "moe"])
def test_experts_are_chosen_as_by_one_process(found, name):
    """But for one choice in a step that rounding may turn."""
    loads = found[name]["expert_loads"]
    for step, expected in zip(loads, found["moe"]["expert_loads"], strict=False):
        choices = GLOBAL_BATCH * SEQ_LEN * 2
        assert step == {layer: pytest.approx(shares, abs=1.5 / choices) for layer, shares in expected.items()}
        assert {layer: len(shares) for layer, shares in step.items()} == {"1": 4, "3": 8}
        assert [sum(shares) for shares in step.values()] == pytest.approx([1, 1])


@pytest.mark.parametrize("name", [n for n in LAYOUTS if not LAYOUTS[n].parallel.get("distributed_optimizer")])
def test_every_gradient_is_that_of_one_process(found, name):
    distances = found[name]["gradient_distance"]
    assert len(distances) >= 15
    assert all(far < GRADIENT for far in distances.values()), distances


@pytest.mark.parametrize("name", LAYOUTS)
def test_norms_of_every_layer_are_those_of_one_process(found, name):
    model = LAYOUTS[name].model
    layers, expected = found[name]["layer_statistics"], found[model]["layer_statistics"]
    assert len(layers) == len(MODELS[model]["pattern"].split()) + 2
    whole = sum(numbers["grad_norm"] ** 2 for numbers in layers.values()) ** 0.5
    if "clip_groups" in OPTIMIZER.get(model, {}):  # which comes before the norm of all gradients
        assert whole > found[name]["grad_norms"][0]
    else:
        assert whole == pytest.approx(found[name]["grad_norms"][0], rel=NORM)
    numbers, wanted = (
        {(layer, key): each[layer][key] for layer in each for key in each[layer]} for each in (layers, expected)
    )
    missing = {place for place, value in wanted.items() if value is None}
    assert {place for place, value in numbers.items() if value is None} == missing
    known = {place: value for place, value in wanted.items() if place not in missing}
    assert {place: numbers[place] for place in known} == pytest.approx(known, rel=STATISTICS * HALF.get(model, 1))


@pytest.mark.parametrize("name", [n for n in TABLE if "mtp" in MODELS[TABLE[n].model]])
def test_further_tokens_have_the_losses_of_one_process(found, name):
    model = TABLE[name].model
    expected = found[model]["mtp_losses"]
    assert expected[-1] < expected[0] - 0.3
    first = SAVED_AT if TABLE[name].after else 0
    losses = found[name]["mtp_losses"]
    assert losses == pytest.approx(expected[first : first + len(losses)], abs=LOSS)


@pytest.mark.parametrize("name", [n for n in LAYOUTS if can_generate(LAYOUTS[n])])
def test_prompts_and_steps_have_the_logits_of_one_process(found, name):
    expected = torch.tensor(found[LAYOUTS[name].model]["generated"])
    torch.testing.assert_close(torch.tensor(found[name]["generated"]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_goes_on_in_another_layout(found, name):
    assert_alike(found, name, RESUMED[name].model, SAVED_AT, RESUMED_UNTIL - SAVED_AT)


@pytest.mark.parametrize("name", [n for n in WALKED if TABLE[n].model in OPTIMIZER])
def test_the_average_of_weights_has_the_loss_of_one_process(found, name):
    """Also where a checkpoint of another layout brought it."""
    model = TABLE[name].model
    expected = found[model]["ema_loss"]
    assert abs(expected - found[model]["losses"][COMPARED - 1]) > 1e-2
    assert found[name]["ema_loss"] == pytest.approx(expected, abs=LOSS * HALF.get(model, 1))


@pytest.fixture(scope="module")
def exported(walked, tmp_path_factory):
    """Model -> the safetensors file of its checkpoint that one process wrote."""
    folder = tmp_path_factory.mktemp("exported")
    return {model: export(model, walked / f"{model}.start", folder / model) for model in MODELS}


def export(model, checkpoint, out):
    """Write a checkpoint as a Hugging Face folder and return its file of tensors."""
    source, table = CheckpointSource(checkpoint), Table.of(HYBRIDTRON, run_config(TABLE[model]).model)
    with SafetensorsSink(out, infos_there(table, source.tensors)) as sink:
        write_theirs(table, source, sink)
    return (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_of_every_layout_converts_to_the_same_bytes(walked, exported, tmp_path, name):
    model = LAYOUTS[name].model
    assert export(model, walked / f"{name}.read", tmp_path / "out") == exported[model]


def test_mapped_layers_begin_with_the_tensors_of_their_sources(walked):
    """In four processes, bit by bit; the same bytes as in one process are another test's."""
    source, mapped = CheckpointSource(walked / "hybrid.start"), CheckpointSource(walked / "mapped tp2 pp2.read")
    layers = {"0": "1", "1": "3", "2": "3", "3": "4"}
    compared = 0
    for name in mapped.tensors:
        first, _, rest = name.removeprefix("layers.").partition(".")
        if name.startswith("layers.") and first in layers:
            assert torch.equal(mapped.read(name), source.read(f"layers.{layers[first]}.{rest}")), name
            compared += 1
    assert compared >= 20
    for name in ("embedding.weight", "head.weight"):
        assert torch.equal(mapped.read(name)[:320], source.read(name))
        assert mapped.read(name)[320:].std() > 0.01
    assert not torch.equal(mapped.read("layers.4.mixer.down.weight"), source.read("layers.2.mixer.down.weight"))


def test_every_primitive_is_laid_out():
    laid_out = {name for layout in LAYOUTS.values() for name in MODELS[layout.model]["pattern"].split()}
    assert {BLOCKS[name]["type"] for name in laid_out} == set(MIXERS)


def test_the_table_is_as_large_as_it_should_be():
    assert len(LAYOUTS) >= 30
    assert len(RESUMED) >= 8
    assert PROCESSES == 8
