"""Conversions of checkpoints: the Python side of `hybridtron convert`.

import hybridtron as ht

ht.convert.from_hf("Llama-3-8B", "checkpoints/llama")   a run folder, from which a run can begin
ht.convert.to_hf("checkpoints/quickstart", "exported")  a Hugging Face folder
ht.convert.verify("checkpoints/quickstart", "exported")  whether both are the same model
"""

from typing import TYPE_CHECKING

from hybridtron.lazy import lazy_exports

if TYPE_CHECKING:
    from hybridtron.convert.checkpoints.average import average
    from hybridtron.convert.checkpoints.ema import ema
    from hybridtron.convert.checkpoints.inspect import inspect
    from hybridtron.convert.checkpoints.reshard import reshard
    from hybridtron.convert.checkpoints.upcycle import upcycle
    from hybridtron.convert.checkpoints.verify import verify
    from hybridtron.convert.exporting import to_hf
    from hybridtron.convert.importing import from_hf
    from hybridtron.convert.megatron.from_megatron import from_megatron
    from hybridtron.convert.megatron.to_megatron import to_megatron
    from hybridtron.convert.receipt import Receipt

__all__ = [
    "Receipt",
    "average",
    "ema",
    "from_hf",
    "from_megatron",
    "inspect",
    "reshard",
    "to_hf",
    "to_megatron",
    "upcycle",
    "verify",
]
__getattr__, __dir__ = lazy_exports(__name__, __file__)
