"""One evaluation that may fail without ending the work that it is part of."""

from __future__ import annotations

import time
from collections.abc import Callable

from hybridtron.composer.nas.store import Row
from hybridtron.errors import UserError


def attempt(evaluate: Callable[[], Row], failed: Row) -> Row:
    """Return what an evaluation gives, or `failed` with the error that ended it, and the seconds that it took.

    Raises UserError as the evaluation does: it would end every other one too.
    """
    begun = time.perf_counter()
    try:
        found = evaluate()
    except UserError:
        raise
    except Exception as error:  # such as no memory left: the work goes on without this one
        text = str(error).splitlines() or [""]
        found = {**failed, "error": f"{type(error).__name__}: {text[0]}"}
    return {**found, "seconds": round(time.perf_counter() - begun, 3)}
