"""hybridtron: find, train, scale and study hybrid language models.

    import hybridtron as ht

    model = ht.build_model("2*(mamba mlp) attn mlp")       a model from a config file, a dict or a pattern
    model = ht.load("checkpoints/quickstart")              a trained one
    run = ht.train("configs/runs/quickstart.yaml")         a training run, with its metrics
    ht.describe(CONFIG), ht.plan(CONFIG, gpus=1024)        what a model is, what a layout costs
    ht.mad.score("mh-hyena swiglu", preset="smoke")        the six MAD tasks
    ht.search(CONFIG), ht.scale(PATTERN, TARGET)           find a small hybrid, grow it
    ht.laws.fit("parametric", "runs.csv")                  a scaling law, with intervals

Everything is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hybridtron import laws, mad
    from hybridtron.api.model import Model, build_model
    from hybridtron.api.study import describe, plan
    from hybridtron.errors import UserError

__all__ = [
    "Model",
    "UserError",
    "build_model",
    "describe",
    "laws",
    "mad",
    "plan",
]

_HOMES = {
    "Model": "hybridtron.api.model",
    "UserError": "hybridtron.errors",
    "build_model": "hybridtron.api.model",
    "describe": "hybridtron.api.study",
    "plan": "hybridtron.api.study",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in ("laws", "mad"):
        return importlib.import_module(f"hybridtron.{name}")
    if name not in _HOMES:
        from hybridtron.config.nearest import nearest

        close = nearest(name, __all__)
        hint = f"; did you mean {close!r}?" if close else ""
        raise AttributeError(f"module 'hybridtron' has no attribute {name!r}{hint}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
