"""What `import hybridtron` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hybridtron as ht
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
