"""One of two tensor-parallel processes that train with and without torch.compile and note the difference."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from hybridtron.distributed.process_groups.environment import read_environment
from hybridtron.distributed.process_groups.groups import process_groups
from tests.distributed.layouts import LAYOUTS
from tests.distributed.walk import run_config
from tests.model.compiled import compared


def main() -> None:
    torch.set_num_threads(1)
    layout, here = LAYOUTS["hybrid tp2 sp"], read_environment()
    with process_groups(run_config(layout).parallel, here) as parallel_context:
        seen = compared(layout, "aot_eager", parallel_context)
    (Path(sys.argv[1]) / f"{here.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
