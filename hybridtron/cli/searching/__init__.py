"""The verbs of `hybridtron search`, such as `search transfer`, one module each: SUMMARY, add_arguments, run.

Any other word after `search` is the config of a search. Heavy imports happen when a verb runs.
"""

from __future__ import annotations

import importlib
import pkgutil

from hybridtron.cli.arguments import ArgumentParser

VERBS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def build_parser(name: str) -> ArgumentParser:
    """Return the parser of a verb of `search`; it sets `run`, the verb's function, and `parser`, itself."""
    module = importlib.import_module(f"{__name__}.{name}")
    verb = ArgumentParser(prog=f"hybridtron search {name}", description=module.SUMMARY)
    module.add_arguments(verb)
    verb.set_defaults(run=module.run, parser=verb)
    return verb
