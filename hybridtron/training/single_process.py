"""A language model with its config and tokenizer in this one process, without process groups."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hybridtron.backends.torch import TorchBackend
from hybridtron.checkpoint_reader import load_parameters
from hybridtron.errors import UserError
from hybridtron.model.generation.generate import Completion, generate
from hybridtron.model.generation.sampling import DEFAULT_SAMPLING, Sampling
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.tensors import model_tensors
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.folder import read_run, suggest_older_checkpoint

if TYPE_CHECKING:
    from hybridtron.data.tokenizers.tokenizer import Tokenizer

Tokens = Tensor | Sequence[int] | Sequence[Sequence[int]] | np.ndarray[Any, Any]
"""Token ids of one sequence [s] or of several [b, s]."""


class Model(LanguageModel):
    """A language model with its config and tokenizer. Parameters are named as in checkpoints."""

    def __init__(self, config: RunConfig, device: torch.device | str = "cpu") -> None:
        """Make the modules; parameters are uninitialised.

        Args:
            config: a resolved config; its layout is ignored.
            device: where the parameters lie.

        Raises:
            UserError: where this machine has no such device.
        """
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"device = {str(device)!r}: cannot be used here: {reason}") from None
        backend = TorchBackend(config.precision.dtype, device, config.model.norm_eps)
        super().__init__(config.model, backend)
        self.config = config

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer that the config names."""
        from hybridtron.data.tokenizers.tokenizer import load_tokenizer

        return load_tokenizer(self.config.data.tokenizer)

    @property
    def device(self) -> torch.device:
        """Return the device of the parameters."""
        return next(self.parameters()).device

    def logits(self, tokens: Tokens) -> Tensor:
        """Compute the logits of the next token at every position: ids [s] or [b, s] -> [b, s, vocabulary]."""
        return super().logits(self._batch(tokens, 1))

    def loss(self, tokens: Tokens) -> Tensor:
        """Compute the mean cross-entropy, in nats, of predicting each token from those before it.

        Args:
            tokens: ids [s] or [b, s], at least two in a sequence.

        Returns:
            A scalar to call `backward()` on.
        """
        batch = self._batch(tokens, 2)
        losses: Tensor = self(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())[0]
        return losses.float().mean()

    def hidden(self, tokens: Tokens) -> list[Tensor]:
        """Compute the residual stream after each layer: ids [s] or [b, s] -> one [b, s, hidden_size] per layer."""
        stream = self.begin(self.embed(self._batch(tokens, 1)))
        states = []
        for layer in self.layers.values():
            stream = layer(stream)
            states.append(self.end(stream).transpose(0, 1))
        return states

    def generate(
        self,
        prompts: str | Sequence[str],
        max_tokens: int = 100,
        *,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int = 0,
        start_document: bool = True,
    ) -> list[str]:
        """Continue each prompt by up to `max_tokens` tokens; return the continuations, in the order of the prompts.

        Args:
            prompts: one text or several.
            max_tokens: tokens to add at most; a document may end before.
            temperature: 0 takes the likeliest token.
            top_k: draw among the k likeliest tokens; 0: among all.
            top_p: draw among the fewest likeliest tokens that have this probability together; 1: among all.
            repetition_penalty: above 1 makes tokens that have occurred less likely.
            stop: texts before which a continuation ends.
            seed: of the draws; each prompt draws as if it were alone.
            start_document: a prompt begins a document, after the end-of-document id; else it stands within one. In
                training with data.documents isolate nothing stands before a document, nor does it here.

        Raises:
            UserError: for a number out of range, or a prompt that is not UTF-8 text.
        """
        sampling = Sampling(repetition_penalty, temperature, top_k, top_p)
        completions = self.complete(
            prompts, max_tokens, sampling=sampling, stop=stop, seed=seed, start_document=start_document
        )
        return [each.text for each in completions]

    def complete(
        self,
        prompts: str | Sequence[str],
        max_tokens: int = 100,
        *,
        sampling: Sampling = DEFAULT_SAMPLING,
        stop: str | Sequence[str] = (),
        seed: int = 0,
        start_document: bool = True,
    ) -> Iterator[Completion]:
        """Yield what `generate` returns with its tokens, their log probabilities and what ended it."""
        return generate(
            self,
            self.tokenizer,
            _texts("prompts", prompts),
            max_tokens,
            context=self.config.data.seq_len,
            sampling=sampling,
            stop=_texts("stop", stop),
            seed=seed,
            start_document=start_document and not self.config.data.isolates,
            device=self.device,
        )

    def _batch(self, tokens: Tokens, least: int) -> Tensor:
        """Return ids [b, s] on the model's device; UserError for another shape, fewer than `least`, or unknown ids."""
        try:
            batch = tokens if isinstance(tokens, Tensor) else torch.as_tensor(np.asarray(tokens))
        except (TypeError, ValueError):
            raise UserError(f"tokens = {str(tokens)[:60]}: expected whole numbers [b, s] or [s]") from None
        if batch.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch has few operations for these
            batch = batch.long()
        batch = batch.unsqueeze(0) if batch.dim() == 1 else batch
        if batch.dim() != 2 or batch.is_floating_point() or batch.is_complex() or batch.dtype == torch.bool:
            raise UserError(f"tokens of shape {list(batch.shape)}, {batch.dtype}: expected whole numbers [b, s] or [s]")
        if batch.shape[1] < least or not batch.shape[0]:
            raise UserError(f"tokens of shape {list(batch.shape)}: expected at least {least} in a sequence")
        low, high = int(batch.min()), int(batch.max())
        if low < 0 or high >= self.config.model.vocab_size:
            wrong = low if low < 0 else high
            raise UserError(f"tokens: id {wrong}: expected 0 to {self.config.model.vocab_size - 1}")
        return batch.to(self.device, torch.long)


def _texts(name: str, value: str | Sequence[str]) -> list[str]:
    """Return one text or several as a list; UserError where they are neither."""
    if not isinstance(value, Iterable):
        raise UserError(f"{name} = {value!r}: expected text, or a list of texts")
    return [value] if isinstance(value, str) else list(value)


def load(run: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Model:
    """Load the model of a run folder, at its latest checkpoint, or of one checkpoint folder, in evaluation mode.

    The layout and backend that trained it do not matter.

    Raises:
        UserError: where there is no complete checkpoint, or it is damaged.
    """
    if not isinstance(run, str | os.PathLike):
        raise UserError(f"run = {run!r}: expected the path of a run folder or checkpoint")
    config, checkpoint = read_run(Path(run))
    model = Model(config, device)
    with suggest_older_checkpoint(checkpoint, ": give that path instead"):
        model.load_state_dict(load_parameters(checkpoint, model_tensors(config.model), config.checkpoint.verify))
    return model.eval()
