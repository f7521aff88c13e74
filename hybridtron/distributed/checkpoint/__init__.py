"""Checkpoints of an engine: saved in one layout, loaded in any other.

The files have torch's distributed format: `.metadata` and one `__RANK_0.distcp` of each process that owns something,
with manifest.json beside them. A parameter that packs several parts is stored part by part under `NAME.part`, as its
`TensorSpec` declares. Every process writes and reads only what it holds: nothing is gathered.
"""

from typing import TYPE_CHECKING

from hybridtron.lazy import lazy_exports

if TYPE_CHECKING:
    from hybridtron.distributed.checkpoint.reading import load, load_weights
    from hybridtron.distributed.checkpoint.writing import CheckpointWriter, save

__all__ = ["CheckpointWriter", "load", "load_weights", "save"]
__getattr__, __dir__ = lazy_exports(__name__, __file__)
