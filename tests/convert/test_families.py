"""Models of Hugging Face and ours of equal values: logits, loss and gradients, in one process and in two."""

from __future__ import annotations

import sys

import pytest
import torch

from hybridtron.convert.architectures import ARCHITECTURES
from tests.convert.families import FAMILIES, build_ours, make_ours, read_folder, to_ours, to_theirs
from tests.warm import launch

LOGITS, LOSS, GRADIENT = 1e-4, 1e-5, 1e-4


@pytest.fixture(scope="session")
def ours(theirs):
    """The models as ours; a row that cannot be read fails its own tests."""
    found = {}
    for name in FAMILIES:
        try:
            found[name] = make_ours(theirs[name])
        except Exception as error:
            found[name] = error
    return found


def known(found, name):
    if isinstance(found[name], Exception):
        raise found[name]
    return found[name]


@pytest.fixture(scope="session")
def two_processes(theirs, ours, tmp_path_factory):
    """Family -> logits, loss and gradients with tensor parallelism over two processes, which walk the whole table."""
    folder = tmp_path_factory.mktemp("two")
    rows = {
        name: {"model": own.config.model_dump(mode="json", serialize_as_any=True, exclude={"backend"}),
               "parameters": own.parameters, "tokens": theirs[name].tokens}
        for name, own in ours.items() if not isinstance(own, Exception)
    }  # fmt: skip
    torch.save(rows, folder / "rows.pt")
    assert launch([sys.executable, "-m", "tests.convert.tensor_parallel", str(folder)], 2) == 0
    return torch.load(folder / "found.pt")


def assert_gradients(ours, found, expected):
    """Compare by our names, each relative to its norm."""
    wanted = to_ours(ours.config, ours.table, expected)
    assert found.keys() == wanted.keys()
    far = {name: float((found[name] - wanted[name]).norm() / wanted[name].norm().clamp_min(1e-6)) for name in wanted}
    assert {name: distance for name, distance in far.items() if not distance < GRADIENT} == {}


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_loss_and_gradients_are_equal(theirs, ours, name):
    expected, own = theirs[name], known(ours, name)
    model = build_ours(own).eval()
    inputs, labels = expected.tokens[:, :-1].contiguous(), expected.tokens[:, 1:].contiguous()
    with torch.no_grad():
        torch.testing.assert_close(model.logits(inputs), expected.logits, rtol=0, atol=LOGITS)
    loss = model(inputs, labels)[0].mean()
    assert loss.item() == pytest.approx(expected.loss, abs=LOSS)
    loss.backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.requires_grad}
    untrained = {key: torch.zeros_like(value) for key, value in own.parameters.items() if key not in gradients}
    assert_gradients(own, gradients | untrained, expected.gradients)


@pytest.mark.parametrize("name", FAMILIES)
def test_two_processes_compute_the_same(theirs, ours, two_processes, name):
    own, expected = known(ours, name), theirs[name]
    found = two_processes[name]
    torch.testing.assert_close(found["logits"], expected.logits, rtol=0, atol=LOGITS)
    assert found["loss"] == pytest.approx(expected.loss, abs=LOSS)
    untrained = {key: torch.zeros_like(v) for key, v in own.parameters.items() if key not in found["gradients"]}
    assert_gradients(own, found["gradients"] | untrained, expected.gradients)


@pytest.mark.parametrize("name", FAMILIES)
def test_our_parameters_under_their_names_are_the_original(theirs, ours, name):
    own, original = known(ours, name), read_folder(theirs[name].folder)
    written = to_theirs(own.config, own.table, own.parameters)
    for entry in own.table:
        if not entry.parts:  # theirs alone
            written[entry.name] = torch.full(entry.shape, entry.fill)
    assert sorted(written) == sorted(original)
    for key, tensor in written.items():
        assert tensor.dtype == original[key].dtype
        assert torch.equal(tensor, original[key]), key


@pytest.mark.parametrize("name", FAMILIES)
def test_the_settings_that_we_write_are_those_of_the_same_model(theirs, ours, name):
    """transformers builds the original again from them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    own = known(ours, name)
    architecture = ARCHITECTURES[FAMILIES[name].architecture]
    config = AutoConfig.for_model(architecture.name, **architecture.to_theirs(own.config))
    model = AutoModelForCausalLM.from_pretrained(theirs[name].folder, config=config).eval()
    assert type(model).__name__ == architecture.class_name
    with torch.no_grad():
        found = model(input_ids=theirs[name].tokens).logits[:, :-1]
    torch.testing.assert_close(found, theirs[name].logits, rtol=0, atol=1e-6)
