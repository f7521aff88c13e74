"""Architectures of Hugging Face folders, one module each; `ARCHITECTURES` has them by name.

In this order a model becomes the first that can express it; the last one can express every model.
"""

from hybridtron.convert.architectures.bamba import BAMBA
from hybridtron.convert.architectures.gpt_oss import GPT_OSS
from hybridtron.convert.architectures.granitemoehybrid import GRANITE_MOE_HYBRID
from hybridtron.convert.architectures.hybridtron import HYBRIDTRON
from hybridtron.convert.architectures.jamba import JAMBA
from hybridtron.convert.architectures.lfm2 import LFM2
from hybridtron.convert.architectures.llama import LLAMA, MISTRAL
from hybridtron.convert.architectures.mamba import FALCON_MAMBA, MAMBA
from hybridtron.convert.architectures.mamba2 import MAMBA2
from hybridtron.convert.architectures.nemotron_h import NEMOTRON_H
from hybridtron.convert.architectures.olmo_hybrid import OLMO_HYBRID
from hybridtron.convert.architectures.qwen3_next import QWEN3_NEXT
from hybridtron.convert.architectures.qwen3_olmo2 import OLMO2, QWEN3
from hybridtron.convert.mapping.architecture import Architecture

_TRANSFORMERS = (LLAMA, MISTRAL, QWEN3, OLMO2, GPT_OSS)
_STATE_SPACES = (MAMBA, FALCON_MAMBA, MAMBA2, NEMOTRON_H, BAMBA, JAMBA, GRANITE_MOE_HYBRID)
_OTHER_HYBRIDS = (LFM2, OLMO_HYBRID, QWEN3_NEXT)
_IN_ORDER = (*_TRANSFORMERS, *_STATE_SPACES, *_OTHER_HYBRIDS, HYBRIDTRON)
ARCHITECTURES: dict[str, Architecture] = {each.name: each for each in _IN_ORDER}
