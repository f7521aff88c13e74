"""The primitives by the name that a block's `type` gives. One line adds one."""

from hybridtron.mixers.attention.config import AttentionConfig
from hybridtron.mixers.contract import MixerConfig
from hybridtron.mixers.gated_deltanet.config import GatedDeltaNetConfig
from hybridtron.mixers.gla.config import GLAConfig
from hybridtron.mixers.hyena.config import HyenaConfig
from hybridtron.mixers.hyena_experts.config import HyenaExpertsConfig
from hybridtron.mixers.kda.config import KDAConfig
from hybridtron.mixers.lightning_attention.config import LightningAttentionConfig
from hybridtron.mixers.linear_attention.config import LinearAttentionConfig
from hybridtron.mixers.mamba1.config import Mamba1Config
from hybridtron.mixers.mamba2.config import Mamba2Config
from hybridtron.mixers.mamba3.config import Mamba3Config
from hybridtron.mixers.mh_hyena.config import MultiHeadHyenaConfig
from hybridtron.mixers.mla.config import MLAConfig
from hybridtron.mixers.mlp.config import MLPConfig
from hybridtron.mixers.moe.config import MoEConfig
from hybridtron.mixers.parallel.config import ParallelMixersConfig
from hybridtron.mixers.rwkv6.config import RWKV6Config
from hybridtron.mixers.rwkv6_channel.config import RWKV6ChannelConfig
from hybridtron.mixers.rwkv7.config import RWKV7Config
from hybridtron.mixers.short_conv.config import ShortConvConfig
from hybridtron.mixers.striped_hyena.config import HyenaLIConfig, HyenaMRConfig, HyenaSEConfig
from hybridtron.mixers.swiglu.config import SwiGLUConfig

MIXERS: dict[str, type[MixerConfig]] = {
    "attention": AttentionConfig,
    "mla": MLAConfig,
    "linear_attention": LinearAttentionConfig,
    "lightning_attention": LightningAttentionConfig,
    "gla": GLAConfig,
    "gated_deltanet": GatedDeltaNetConfig,
    "kda": KDAConfig,
    "mamba1": Mamba1Config,
    "mamba2": Mamba2Config,
    "mamba3": Mamba3Config,
    "swiglu": SwiGLUConfig,
    "mlp": MLPConfig,
    "moe": MoEConfig,
    "parallel": ParallelMixersConfig,
    "short_conv": ShortConvConfig,
    "hyena": HyenaConfig,
    "mh_hyena": MultiHeadHyenaConfig,
    "hyena_se": HyenaSEConfig,
    "hyena_mr": HyenaMRConfig,
    "hyena_li": HyenaLIConfig,
    "hyena_experts": HyenaExpertsConfig,
    "rwkv6": RWKV6Config,
    "rwkv6_channel": RWKV6ChannelConfig,
    "rwkv7": RWKV7Config,
}
