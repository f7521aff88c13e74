"""`HybridtronForCausalLM`: a language model of ours, of any pattern, as a model of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from hybridtron.backends.dispatcher import Dispatcher, DispatcherKind, dispatch_locally
from hybridtron.backends.torch import TorchBackend
from hybridtron.convert.hf.cache import HybridtronCache, own_tokens_first
from hybridtron.convert.hf.configuration import HybridtronConfig
from hybridtron.documents import Documents
from hybridtron.errors import UserError
from hybridtron.mixers.mixer import Mixer
from hybridtron.mixers.moe.module import MoE
from hybridtron.model.initialize import initial_value
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.tensors import model_tensors


class _Backend(TorchBackend):
    """Builds on the device of the context, which is meta while transformers loads a model."""

    def dispatcher(
        self, kind: DispatcherKind, num_experts: int, top_k: int, capacity_factor: float | None
    ) -> Dispatcher:
        return dispatch_locally


class HybridtronForCausalLM(PreTrainedModel, GenerationMixin):
    """A `LanguageModel` under the name `model`: its parameters are those of our checkpoints, whole, after `model.`.

    Positions follow from the attention mask: what it leaves out, on either side, changes nothing for other tokens. The
    logits there repeat those after the last token before. Documents that are packed into rows without padding, of
    which `position_ids` count the tokens from 0, are each as if alone. Losses count no token without one before it.
    """

    config_class = HybridtronConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _is_stateful = True  # a state cannot go back to a part of its tokens, as assisted generation would
    _supports_attention_backend = False
    _no_split_modules = ["Layer"]  # noqa: RUF012

    def __init__(self, config: HybridtronConfig) -> None:
        super().__init__(config)
        section = config.section
        if not section.vocab_size:
            raise UserError("model.vocab_size = 0: expected the size of the embedding, as in the config of a run")
        dtype = torch.get_default_dtype()
        self.model = LanguageModel(section, _Backend(dtype, torch.get_default_device(), section.norm_eps))
        # What our backends keep in float32 beside narrower parameters.
        wide = [name for name, parameter in self.model.named_parameters() if parameter.dtype != dtype]
        self._keep_in_fp32_modules_strict = {f"model.{name}" for name in wide}
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Load a folder, see transformers. Raises ValueError for a tensor that is missing, left over or of another
        shape, where transformers only warns."""
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, report = loaded
        for problem in ("missing", "unexpected", "mismatched"):
            for name in sorted(map(str, report[f"{problem}_keys"])):
                raise ValueError(f"{model.name_or_path}: tensor {name} is {problem}; expected those of its config.json")
        return (model, report) if output_loading_info else model

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Return False: `forward` makes the cache."""
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Give the parameters of a module, without those of its submodules, the initial values of seed 0."""
        if isinstance(module, MoE):
            module.expert_load.zero_()
        section = self.config.section
        own = {id(parameter) for parameter in module.parameters(recurse=False)}
        for name, parameter in self.model.named_parameters():
            if id(parameter) in own and not getattr(parameter, "_is_hf_initialized", False):
                parameter.copy_(initial_value(section, name, model_tensors(section)[name], seed=0))

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding."""
        return self.model.embedding

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: HybridtronCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Compute logits [b, s, vocabulary], and the loss that transformers computes, where labels [b, s] are given.

        Args:
            input_ids: ids [b, s]; with a cache, those that follow what it has seen.
            attention_mask: [b, s] or, as in generation, [b, past + s]; 0 for padding.
            past_key_values: the cache of the tokens before; it is changed.
            labels: equal to `input_ids`, with -100 for what does not count.
            use_cache: whether to return a cache. By default only where one is given.
            logits_to_keep: of how many of the last tokens, or of which, to return logits; 0: of all.
            kwargs: `position_ids` [b, s] that begin at 0 in each of the documents packed into a row, as the flattening
                collator of transformers makes them; others are passed to the loss.

        Raises:
            ValueError: for a mask of another shape, or inputs that the model does not take.
        """
        if kwargs.pop("inputs_embeds", None) is not None:
            raise ValueError("inputs_embeds: expected input_ids")
        mask = _mask(input_ids, attention_mask)
        documents = self._documents(mask, kwargs.pop("position_ids", None), past_key_values)
        input_ids = input_ids.masked_fill(~mask, 0)  # padding may have an id of its own
        cache = past_key_values
        if use_cache and cache is None and documents is None:
            cache = HybridtronCache()
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        if cache is None:
            logits = self._parallel(input_ids, mask, documents)[:, kept]
        else:
            last_only = isinstance(logits_to_keep, int) and logits_to_keep == 1
            logits = cache.advance(self.model, input_ids, mask, last_only)[:, slice(None) if last_only else kept]
        loss = None
        if labels is not None:
            first = (mask.cumsum(1) == 1) & mask
            if documents is not None:
                first = documents.starts(labels.device).t()
            counted = labels.masked_fill(first, -100) if past_key_values is None else labels
            loss = self.loss_function(
                logits=logits.contiguous(), labels=counted, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def _documents(self, mask: Tensor, position_ids: Tensor | None, cache: HybridtronCache | None) -> Documents | None:
        """Return the documents that restarting positions [b, s] mark; None where each row is one, as the mask says.

        Raises ValueError for other positions.
        """
        if position_ids is None:
            return None
        if position_ids.shape != mask.shape or cache is not None:
            what = "none with a cache" if cache is not None else f"[b, s] of input_ids {list(mask.shape)}"
            raise ValueError(f"position_ids {list(position_ids.shape)}: expected {what}")
        if bool((position_ids == mask.cumsum(1) - 1)[mask].all()):
            return None
        starts = position_ids == 0
        follows = torch.nn.functional.pad(position_ids[:, :-1] + 1, (1, 0))
        if not bool(mask.all()) or not bool((starts | (position_ids == follows)).all()) or not bool(starts[:, 0].all()):
            raise ValueError("position_ids: expected 0, 1, 2 ... in each document of rows without padding")
        if self._limits_experts():
            raise ValueError("position_ids: expected one document a row, as capacities of experts are shares of a row")
        return Documents(tuple(_lengths(row) for row in starts.cpu().numpy()), torch.ones_like(mask, dtype=torch.float))

    def _parallel(self, tokens: Tensor, mask: Tensor, documents: Documents | None) -> Tensor:
        """Map ids [b, s] to logits [b, s, v], over all tokens at once."""
        if documents is not None:
            return self.model.backend.gather_logits(self.model(tokens, documents=documents)).transpose(0, 1)
        if bool(mask.all()):
            return self.model.logits(tokens)
        packed = own_tokens_first(tokens, mask)
        before = mask.cumsum(1)  # tokens up to here; after a row's own tokens a causal model reads what it likes
        counts = before[:, -1]
        if not self._limits_experts():
            logits = self.model.logits(packed[:, : max(1, int(counts.max()))])
        else:  # capacities are shares of a sequence's length
            logits = self._one_length_at_a_time(packed, counts)
        rows = torch.arange(len(tokens), device=tokens.device).unsqueeze(1)
        return logits[rows, (before - 1).clamp(min=0)].masked_fill((before == 0).unsqueeze(-1), 0.0)

    def _one_length_at_a_time(self, packed: Tensor, counts: Tensor) -> Tensor:
        parts = {int(n): self.model.logits(packed[counts == n, : int(n)]) for n in counts.unique() if n}
        any_part = next(iter(parts.values()))
        logits = any_part.new_zeros(*packed.shape, any_part.shape[-1])
        for length, part in parts.items():
            logits[counts == length, :length] = part
        return logits

    def _limits_experts(self) -> bool:
        mixers = (module for module in self.modules() if isinstance(module, Mixer))
        return any(getattr(mixer.config, "capacity_factor", None) is not None for mixer in mixers)


def _lengths(starts: np.ndarray) -> np.ndarray:
    """Return the lengths of the documents that begin where `starts` [s] is true."""
    return np.diff(np.append(np.flatnonzero(starts), len(starts)))


def _mask(tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return where tokens [b, s] are no padding. Raises ValueError for a mask of another shape."""
    if attention_mask is None:
        return torch.ones_like(tokens, dtype=torch.bool)
    if attention_mask.dim() != 2 or len(attention_mask) != len(tokens) or attention_mask.shape[1] < tokens.shape[1]:
        raise ValueError(
            f"attention_mask {list(attention_mask.shape)}: expected [b, s] of input_ids {list(tokens.shape)}"
        )
    return attention_mask[:, -tokens.shape[1] :].bool()
