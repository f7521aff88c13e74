"""What can be put through the tasks: an architecture from scratch, or layers that something else has trained."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from hybridtron.model.config import ModelConfig


class Subject(Protocol):
    """Sent to other processes whole, so its parts must pickle."""

    @property
    def name(self) -> str: ...

    @property
    def pattern(self) -> str: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def fingerprint(self) -> str:
        """Changes with anything that changes what is trained."""
        ...

    def account(self) -> dict[str, int]:
        """`parameters` and `state_size`."""
        ...

    def start(
        self, vocab_size: int, seq_len: int, autoencoder: bool, seed: int
    ) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Tensor]]:
        """The model of one task, its trained parameters at the start, and those that stay as they are."""
        ...
