"""Checkpoints of an engine: saved in one layout, loaded in any other."""

from hybridtron.distributed.checkpoint.whole import load, save

__all__ = ["load", "save"]
