"""Write the reference page of all config keys: `python -m hybridtron.training.reference > docs/config.md`."""

from __future__ import annotations

from hybridtron.config.reference import render
from hybridtron.mixers.registry import MIXERS
from hybridtron.model.residual.config import RESIDUALS
from hybridtron.training.config import RunConfig

INTRO = """Every key of a run's config, generated from the schema (`make docs`). A file may begin with
`base: OTHER.yaml` (or a list), relative to itself: mappings merge key by key, everything else is replaced. On the
command line, `key=value` changes a dotted key last. `hybridtron train CONFIG --print` shows the outcome. An unknown key
is an error. A file with a table `sizes:` describes a model in several sizes; `size=1b` chooses one."""

PATTERN = """The pattern names blocks in order: `attn mlp` is two layers, `3*mlp` three, `2*(mamba mlp)` repeats a
group, and `|` marks where a pipeline stage may end. Each layer is norm, block, residual addition."""


def page() -> str:
    """Return the reference page of all config keys, as Markdown."""
    sections = [("Layer patterns", PATTERN)]
    return render(RunConfig, "Configuration", INTRO, {"model.blocks": MIXERS, "model.residual": RESIDUALS}, sections)


if __name__ == "__main__":
    print(page(), end="")
