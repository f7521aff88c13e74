"""The reference page of a search's keys: `python -m hybridtron.composer.nas.reference > docs/search.md`."""

from __future__ import annotations

from hybridtron.composer.nas.config import SearchConfig
from hybridtron.config.reference import render

INTRO = """Every key of a search's config, generated from the schema (`make docs`); [composer.md](composer.md) tells
what they are for. A file may begin with `base: OTHER.yaml`; on the command line, `key=value` changes a dotted key last,
and `hybridtron search CONFIG --print` shows the outcome. Paths of data and of other configs are relative to the folder
that the command is started in."""


def page() -> str:
    return render(SearchConfig, "Configuration of a search", INTRO)


if __name__ == "__main__":
    print(page(), end="")
