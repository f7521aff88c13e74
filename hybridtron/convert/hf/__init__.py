"""Any model of ours as a model of transformers.

`import hybridtron.convert.hf` registers `hybridtron` with AutoConfig and AutoModelForCausalLM, so that what
`to-hf` writes loads by `from_pretrained` without code from its folder. Needs the extra `hf`.
"""

try:
    import transformers
except ModuleNotFoundError:
    raise ModuleNotFoundError("No module named 'transformers': install hybridtron[hf]", name="transformers") from None

from hybridtron.convert.hf.cache import HybridtronCache
from hybridtron.convert.hf.configuration import HybridtronConfig
from hybridtron.convert.hf.modeling import HybridtronForCausalLM

__all__ = ["HybridtronCache", "HybridtronConfig", "HybridtronForCausalLM"]

transformers.AutoConfig.register(HybridtronConfig.model_type, HybridtronConfig, exist_ok=True)
transformers.AutoModelForCausalLM.register(HybridtronConfig, HybridtronForCausalLM, exist_ok=True)
