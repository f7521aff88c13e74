"""Any PyTorch model as a candidate: a factory builds it for each task, as mad-lab's `benchmark` takes it."""

from __future__ import annotations

import functools
import hashlib
import inspect
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hybridtron.errors import UserError
from hybridtron.mad.models.candidate import SEQ_LEN, Candidate
from hybridtron.mad.tasks.protocol import Task, task
from hybridtron.tensors import Init, TensorSpec

Factory = Callable[..., nn.Module]  # of task, vocab_size and max_length: token ids [b, s] -> logits [b, s, vocab_size]
ARGUMENTS = ("task", "vocab_size", "max_length")


@dataclass(frozen=True)
class ModuleModel:
    """The model that a factory builds for one task and seed."""

    factory: Factory
    task: str
    vocab_size: int
    seq_len: int
    seed: int = 0

    def build(self, device: str = "cpu") -> nn.Module:
        """Build the model with its initial values. It is in training mode where gradients are computed, else not."""
        given = dict(zip(ARGUMENTS, (self.task, self.vocab_size, self.seq_len), strict=True))
        parameters = inspect.signature(self.factory).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            given = {parameter.name: given[parameter.name] for parameter in parameters if parameter.name in given}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            module = self.factory(**given)
        if not isinstance(module, nn.Module):
            raise UserError(f"factory: returned {type(module).__name__}; expected a torch.nn.Module")
        module.register_forward_pre_hook(lambda called, _: called.train(torch.is_grad_enabled()) and None)
        return module.to(device)


@dataclass(frozen=True)
class ModuleCandidate(Candidate):
    """A factory under a name, which with the code and the initial values tells it from others."""

    factory: Factory
    name: str
    pattern: str
    notes: tuple[str, ...] = ()

    def _model(self, chosen: Task, vocab_size: int, seq_len: int, seed: int = 0) -> ModuleModel:
        return ModuleModel(self.factory, chosen.name, vocab_size, seq_len, seed)

    def fingerprint(self) -> str:
        return self._digits

    @cached_property
    def _digits(self) -> str:
        """Compute twelve digits of all that is known of the models.

        Name, modules, their code where it can be read, values bound to the factory, and initial values.
        """
        module = self._model(task("in-context-recall"), 16, SEQ_LEN).build()
        digest = hashlib.sha256(f"{self.name}\n{module}".encode())
        types = {type(part) for part in module.modules() if not type(part).__module__.startswith("torch.")}
        factory = self.factory
        while isinstance(factory, functools.partial):
            digest.update(_addresses_removed((factory.args, sorted(factory.keywords.items()))))
            factory = factory.func
        if inspect.isfunction(factory):
            digest.update(_addresses_removed(sorted(inspect.getclosurevars(factory).nonlocals.items())))
        parts: list[Any] = [factory, *sorted(types, key=lambda kind: kind.__qualname__)]
        for part in parts:
            try:
                digest.update(inspect.getsource(part).encode())
            except (OSError, TypeError):
                digest.update(getattr(part, "__qualname__", self.name).encode())
        for name, value in module.named_parameters():
            digest.update(name.encode())
            digest.update(value.detach().float().numpy().tobytes())
        return digest.hexdigest()[:12]

    def account(self) -> dict[str, int | None]:
        """Count the parameters whose shapes do not depend on the vocabulary; the state is not known."""
        small, large = (
            {name: value.shape for name, value in model.build().named_parameters()}
            for model in (self._model(task("in-context-recall"), vocab_size, SEQ_LEN) for vocab_size in (16, 17))
        )
        same = [shape.numel() for name, shape in small.items() if large.get(name) == shape]
        return {"parameters": sum(same), "state_size": None}

    def start(
        self, chosen: Task, vocab_size: int, seq_len: int, seed: int
    ) -> tuple[ModuleModel, dict[str, Tensor], dict[str, Tensor]]:
        model = self._model(chosen, vocab_size, seq_len, seed)
        module = model.build()
        values = {name: value.detach().float() for name, value in module.named_parameters() if value.requires_grad}
        if not values:
            raise UserError(f"{self.name}: has no parameters to train")
        tokens = torch.zeros(2, seq_len, dtype=torch.long)
        tokens[1, 1:] = 1
        with torch.no_grad():
            logits = module(tokens)
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if found != [2, seq_len, vocab_size]:
            raise UserError(
                f"{self.name}: returns {found} in {chosen.name}; expected logits [batch 2, {seq_len} ids, {vocab_size}]"
            )
        first_differs, last_differs = ((logits[0, i] - logits[1, i]).any() for i in (0, -1))
        if chosen.autoencoder and last_differs and not first_differs:
            raise UserError(
                f"{self.name}: is causal in {chosen.name}, where it can repeat its input; expected an auto-encoder, "
                "whose logits all follow from the state at the last position, or tasks without it"
            )
        return model, values, {}


def from_module(factory: Factory, name: str | None = None) -> ModuleCandidate:
    """Return a factory as a candidate, by default under its own name.

    It is called with those of `task`, `vocab_size` and `max_length` (no example is longer) that it takes, and returns a
    model from token ids [b, s] to logits [b, s, vocab_size]. Its initial values follow from torch's seed. In the task
    compression it is an auto-encoder.

    Raises:
        UserError: where it needs other arguments, or is a model that is built already.
    """
    if isinstance(factory, nn.Module):
        raise UserError(f"{type(factory).__name__}: is a built model; expected what builds one, for each vocabulary")
    required = [
        parameter.name
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    shown = name or str(getattr(factory, "__name__", type(factory).__name__))
    unknown = [parameter for parameter in required if parameter not in ARGUMENTS]
    if unknown:
        raise UserError(f"{shown}: needs {', '.join(unknown)}; expected a factory of {', '.join(ARGUMENTS)} alone")
    return ModuleCandidate(factory, shown, "module")


def module_tensors(module: nn.Module) -> dict[str, TensorSpec]:
    """List the trained parameters of a model; those of two axes and more decay."""
    return {
        name: TensorSpec(tuple(value.shape), Init("zeros"), decay=value.dim() > 1)
        for name, value in module.named_parameters()
        if value.requires_grad
    }


def require_picklable(candidate: ModuleCandidate, processes: int) -> None:
    """Raise UserError for a factory that cannot be sent to other processes."""
    try:
        pickle.dumps(candidate)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"processes = {processes}: {candidate.name} cannot be sent to another process ({error}); "
            "expected a factory at the top of an importable file, or processes = 1"
        ) from None


def _addresses_removed(values: object) -> bytes:
    """Return the text of values, without the addresses that differ from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(values)).encode()
