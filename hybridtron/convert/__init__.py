"""Conversions of checkpoints: the Python side of `hybridtron convert`.

import hybridtron as ht

ht.convert.from_hf("Llama-3-8B", "checkpoints/llama")   a run folder, from which a run can begin
ht.convert.to_hf("checkpoints/quickstart", "exported")  a Hugging Face folder
"""

from typing import TYPE_CHECKING

from hybridtron.lazy import lazy_exports

if TYPE_CHECKING:
    from hybridtron.convert.exporting import to_hf
    from hybridtron.convert.importing import from_hf
    from hybridtron.convert.megatron.from_megatron import from_megatron
    from hybridtron.convert.megatron.to_megatron import to_megatron
    from hybridtron.convert.receipt import Receipt

__all__ = ["Receipt", "from_hf", "from_megatron", "to_hf", "to_megatron"]
__getattr__, __dir__ = lazy_exports(__name__, __file__)
