"""hybridtron: find, train, scale and study hybrid language models.

    import hybridtron as ht

    model = ht.build_model("2*(mamba mlp) attn mlp")       a model from a config file, a dict or a pattern
    model = ht.load("checkpoints/quickstart")              a trained one
    run = ht.train("configs/runs/quickstart.yaml")         a training run, with its metrics
    ht.launch(CONFIG, launch="configs/launch/slurm.yaml")  the same as a job, started again after failures
    ht.runs("checkpoints")                                 state and progress of the runs under a folder
    ht.compare(RUN, RUN, out=FOLDER)                       their losses, costs and settings that differ
    ht.describe(CONFIG), ht.plan(CONFIG, gpus=1024)        what a model is, what a layout costs
    ht.match_size(CONFIG, OTHER)                           the width at which a model is as large as another
    ht.measure_efficiency([CONFIG, OTHER])                 what models cost to train and to generate with, here
    ht.mad.score("mh-hyena swiglu", preset="smoke")        the six MAD tasks
    ht.search(CONFIG), ht.scale(PATTERN, TARGET)           find a small hybrid, grow it
    ht.search_transfer(FOLDER, TARGET, "stack")            does the search's order of patterns hold in large
    ht.ablate(CONFIG)                                      many runs from one file, compared over seeds
    ht.laws.fit("parametric", "runs.csv")                  a scaling law, with intervals
    ht.convert.to_hf(RUN, FOLDER), ht.convert.from_hf      checkpoints to Hugging Face folders and back

Everything is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybridtron.lazy import lazy_exports

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hybridtron import convert, laws, mad
    from hybridtron.ablations.run import ablate
    from hybridtron.api.efficiency import measure_efficiency
    from hybridtron.api.launching import launch
    from hybridtron.api.matching import match_size
    from hybridtron.api.model import build_model
    from hybridtron.api.monitoring import compare, runs
    from hybridtron.api.study import describe, plan
    from hybridtron.api.training import train
    from hybridtron.composer import scale, search, search_transfer
    from hybridtron.errors import UserError
    from hybridtron.training.callbacks.base import Callback, StopTraining
    from hybridtron.training.run import Run
    from hybridtron.training.single_process import Model, load

__all__ = [
    "Callback",
    "Model",
    "Run",
    "StopTraining",
    "UserError",
    "ablate",
    "build_model",
    "compare",
    "convert",
    "describe",
    "launch",
    "laws",
    "load",
    "mad",
    "match_size",
    "measure_efficiency",
    "plan",
    "runs",
    "scale",
    "search",
    "search_transfer",
    "train",
]

__getattr__, __dir__ = lazy_exports(__name__, __file__)
