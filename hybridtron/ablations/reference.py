"""The reference page of an ablation's keys: `python -m hybridtron.ablations.reference > docs/ablation_keys.md`."""

from __future__ import annotations

from hybridtron.ablations.config import AblationConfig
from hybridtron.config.reference import render

INTRO = """Every key of an ablation's config, generated from the schema (`make docs`); [ablations.md](ablations.md)
tells what they are for. A file may begin with `base: OTHER.yaml`; on the command line, `key=value` changes a dotted
key last, and `hybridtron ablate CONFIG --print` shows the outcome. Paths of data and of other configs are relative to
the folder that the command is started in."""


def page() -> str:
    """Return the reference page of an ablation's keys, as Markdown."""
    return render(AblationConfig, "Configuration of an ablation", INTRO)


if __name__ == "__main__":
    print(page(), end="")
