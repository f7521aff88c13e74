"""The primitives by the name that a block's `type` gives. One line adds one."""

from hybridtron.mixers.attention.config import AttentionConfig
from hybridtron.mixers.contract import MixerConfig
from hybridtron.mixers.mamba2.config import Mamba2Config
from hybridtron.mixers.mlp.config import MLPConfig
from hybridtron.mixers.swiglu.config import SwiGLUConfig

MIXERS: dict[str, type[MixerConfig]] = {
    "attention": AttentionConfig,
    "mamba2": Mamba2Config,
    "swiglu": SwiGLUConfig,
    "mlp": MLPConfig,
}
