"""The verbs of `hybridtron convert`, one module each: SUMMARY, add_arguments, run.

The module to_hf.py is the verb to-hf. Heavy imports happen when a verb runs.
"""

import pkgutil

VERBS = tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)))
