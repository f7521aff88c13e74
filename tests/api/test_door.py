"""What `import hybridtron` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hybridtron as ht
from hybridtron.cli import convert
from tests.conftest import environment


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    ).stdout.strip()


def test_importing_is_quick_and_imports_nothing_heavy():
    heavy = "torch numpy megatron pydantic matplotlib"
    code = f"import sys, hybridtron; print(*[m for m in {heavy!r}.split() if m in sys.modules])"
    assert python(code) == ""
    code = "import time; t = time.process_time(); import hybridtron; print(time.process_time() - t)"
    assert min(float(python(code)) for _ in range(3)) < 0.2


@pytest.mark.parametrize("name", ht.__all__)
def test_every_public_name_exists(name):
    assert getattr(ht, name) is not None


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(AttributeError, match="did you mean 'describe'"):
        ht.descibe  # noqa: B018


def test_functions_stay_functions_whatever_is_imported():
    code = "import hybridtron as ht, hybridtron.planner.plan; print(callable(ht.plan))"
    assert python(code) == "True"


def test_a_model_needs_no_megatron():
    code = "import sys, hybridtron as ht; ht.build_model('attn mlp').loss([1, 2]); print('megatron' in sys.modules)"
    assert python(code) == "False"


def test_describe_and_plan_take_the_same_configs(tiny):
    account = ht.describe("2*(mamba mlp) attn mlp")
    assert account.total > account.embedding > 0
    assert len(account.layers) == 6
    assert ht.plan(tiny, gpus=2).gpus == 2
    with pytest.raises(ht.UserError, match=r"^gpus = 0"):
        ht.plan(tiny, gpus=0)


WRONG = {
    "a folder of runs": (lambda: ht.runs(3), "folder = 3: expected a path"),
    "runs": (lambda: ht.compare(3), "runs = 3: expected a path"),
    "a config": (lambda: ht.search(3), "config = 3: expected the path of a YAML file, or a dict"),
    "a checkpoint": (lambda: ht.convert.to_hf(3, "out"), "run = 3: expected a path"),
    "an output": (lambda: ht.convert.from_hf("folder", None), "out = None: expected a path"),
    "results of MAD": (lambda: ht.mad.read_scores(["none"]), "none: has no results.jsonl"),
    "layers": (lambda: ht.mad.score([3]), "pattern = [3]: expected text, a list of layers, or a factory"),
    "tasks": (lambda: ht.mad.score("attention", tasks=3), "tasks = 3: expected a task, or a list of them"),
    "seeds": (lambda: ht.mad.score("attention", seeds=1.5), "seeds = 1.5: expected a whole number of them, or a list"),
    "no seeds": (lambda: ht.mad.score("attention", seeds=[]), "seeds = []: expected whole numbers"),
    "a preset": (lambda: ht.mad.preset(3), "preset = 3: expected a name or a Preset"),
    "a field of a preset": (lambda: ht.mad.preset("search", max_step=3), "(nearest: max_steps)"),
    "lengths": (lambda: ht.measure_efficiency("attn", lengths=[]), "lengths = []: expected a list of whole numbers"),
    "one model": (lambda: ht.measure_efficiency("atn"), "unknown block 'atn'"),
    "a tolerance": (lambda: ht.match_size("attn", "attn", tolerance="x"), "tolerance = x: expected a number between"),
    "a multiple": (
        lambda: ht.match_size("attn", "attn", multiple_of=1.5),
        "multiple_of = 1.5: expected a whole number",
    ),
    "a key": (lambda: ht.match_size("attn", "attn", adjust=3), "adjust = 3: expected the name of a key"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_has_a_wrong_type_is_named_with_what_was_expected(what):
    call, message = WRONG[what]
    with pytest.raises(ht.UserError) as refused:
        call()
    assert message in str(refused.value)


def test_a_folder_that_is_no_run_is_no_pattern(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ht.UserError, match=r"^mine: neither a run folder \(config.yaml\) nor a checkpoint"):
        ht.describe("mine")


def test_every_conversion_has_its_function():
    names = [verb.replace("-", "_") for verb in convert.VERBS]
    assert all(callable(getattr(ht.convert, name)) for name in names)
