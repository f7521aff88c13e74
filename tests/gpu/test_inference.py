"""Evaluation and generation on CUDA give what they give on a CPU, of one trained run."""

import pytest
import torch

import hybridtron as ht
from hybridtron.training.evaluate import evaluate_run
from tests.gpu.comparison import distance
from tests.gpu.conftest import write_config

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus):
    return ht.train(write_config(tmp_path_factory.mktemp("run"), corpus))


@pytest.fixture(scope="module")
def models(run, cuda):
    """The model on CUDA and on a CPU."""
    return ht.load(run.folder, device=cuda), ht.load(run.folder)


def test_evaluation_gives_the_loss_of_training(run):
    found = evaluate_run(run.folder, None, 8)
    assert found["loss"] == pytest.approx(run.summary["valid_loss"], rel=1e-4)


def test_logits_are_those_of_the_cpu(models):
    ids = torch.randint(256, (3, 32), generator=torch.Generator().manual_seed(0))
    on_cuda, on_cpu = (model.logits(ids) for model in models)
    assert distance(on_cuda, on_cpu) < 1e-4


def test_the_likeliest_text_is_that_of_the_cpu(models):
    on_cuda, on_cpu = (model.generate(["the ", "a model of"], 40, temperature=0) for model in models)
    assert on_cuda == on_cpu


def test_drawn_text_does_not_depend_on_the_other_prompts(models):
    both = models[0].generate(["the ", "a model of"], 20, seed=3)
    assert models[0].generate("a model of", 20, seed=3) == both[1:]
