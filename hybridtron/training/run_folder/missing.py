"""What to say of a path at which a run folder or a checkpoint was expected."""

from __future__ import annotations

from pathlib import Path

from hybridtron.config.nearest import nearest
from hybridtron.errors import UserError

MOST_NAMES = 5  # of runs that a message lists


def missing_run(path: Path, expected: str = "a run folder or checkpoint") -> UserError:
    """Return the error for a path that is no folder: what is there, and which of those beside it may be meant."""
    found = "is a file" if path.exists() else "no such folder"
    return UserError(f"{path}: {found}; expected {expected}{_beside(path)}")


def _beside(path: Path) -> str:
    """Return ` (nearest: PATH)` or ` (there are: NAMES)` of the runs, or the checkpoints, in the same folder."""
    runs = path.parent.glob("*/config.yaml")
    names = sorted(file.parent.name for file in [*runs, *path.parent.glob("step_*/train_state.json")])
    if close := nearest(path.name, names):
        return f" (nearest: {path.parent / close})"
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f" (there are: {', '.join(names[:MOST_NAMES])}{more})" if names else ""
