"""One job, as it is given to `submit`, and as its processes read it from its folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridtron.errors import UserError
from hybridtron.files import read_plain, replace_file
from hybridtron.launcher.config import LaunchConfig
from hybridtron.training.config import RunConfig

# Python with a package from a path of any characters before all others; PYTHONPATH cannot hold a colon.
ENTRY = "import sys; sys.path.insert(0, sys.argv.pop(1)); from hybridtron.{module} import main; sys.exit(main())"


def python_from(root: Path, module: str, *arguments: str) -> list[str]:
    """Return the command that runs hybridtron.MODULE.main of the package in `root`, and writes no bytecode there."""
    return [sys.executable, "-P", "-B", "-c", ENTRY.format(module=module), str(root), *arguments]


@dataclass(frozen=True)
class Job:
    """Something to run in a folder of its own: a resolved training config, or the `arguments` of a hybridtron verb.

    A training run is watched by its heartbeats, continues where it has saved, and is started again after a failure. A
    verb, such as ("search", "search.yaml"), runs in `processes` processes, and is started again where one fails.
    """

    name: str
    folder: Path
    config: RunConfig | None = None
    arguments: Sequence[str] = ()
    processes: int = 1


@dataclass(frozen=True)
class Spec:
    """What the processes of a job need to know, in launch/job.json of its folder."""

    name: str
    folder: str
    root: str  # folder that holds the package
    arguments: tuple[str, ...]  # of `hybridtron`, in each process
    is_training: bool
    node_counts: tuple[int, ...]
    processes_per_node: int
    launch: dict[str, Any]
    launch_id: str  # of this launch: it has a budget of restarts of its own

    @property
    def path(self) -> Path:
        return Path(self.folder)

    @property
    def launch_folder(self) -> Path:
        return self.path / "launch"

    @property
    def config(self) -> LaunchConfig:
        return LaunchConfig.model_validate(self.launch)

    @property
    def command(self) -> list[str]:
        """Return the command line of each process."""
        return python_from(Path(self.root), "__main__", *self.arguments)

    def write(self) -> Path:
        """Write job.json; return its path."""
        file = self.launch_folder / "job.json"
        replace_file(file, json.dumps(asdict(self), indent=2) + "\n")
        return file


def read_spec(file: Path) -> Spec:
    """Read job.json. Raises UserError where it is missing or damaged."""
    try:
        content = json.loads(read_plain(file))
        for key in ("arguments", "node_counts"):
            content[key] = tuple(content[key])
        return Spec(**content)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: damaged: {error}") from None
