"""Held-out tokens of short runs: those whose loss selects patterns, and those whose loss tests them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hybridtron.composer.nas.store import Row
from hybridtron.data.blend_config import Sources
from hybridtron.data.datasets.indexed_dataset import fingerprint
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig
from hybridtron.training.corpus import Corpus, HeldOut, open_held_out
from hybridtron.training.proxy_run import train_proxy, train_tested

HALVES = "half of data.valid"  # in the identity of a search without evaluator.test


@dataclass(frozen=True)
class HeldOutParts:
    """Tokens that select and tokens of a test, which have none in common; `identity` says what the latter are."""

    selecting: HeldOut
    test: HeldOut
    identity: Any


def held_out_parts(run: RunConfig, corpus: Corpus, test: Sources) -> HeldOutParts:
    """Open the tokens of `evaluator.test`, or halve data.valid where that is None.

    Raises UserError where they are missing, are those of training or selecting, or data.valid has one sequence only.
    """
    whole = corpus.held_out
    assert whole is not None
    if test is None:
        try:
            halves = [whole.half(half, run.train.eval_sequences) for half in (0, 1)]
        except UserError as error:
            raise UserError(f"data.valid: {error}; expected more, or evaluator.test") from None
        return HeldOutParts(halves[0], halves[1], HALVES)
    try:
        opened = open_held_out(run.model_copy(update={"data": run.data.model_copy(update={"valid": test})}))
    except UserError as error:
        text = str(error)
        own = text.removeprefix("data.valid")
        raise UserError(f"evaluator.test{own}" if own != text else f"evaluator.test: {text}") from None
    used = {found: key for key, found in corpus.fingerprints.items()}
    identity = []
    for source in opened.sources:
        found = fingerprint(source.tokens.prefix)
        if found in used:
            raise UserError(f"evaluator.test = {source.path}: has the tokens of {used[found]}; expected others")
        identity.append([found, source.share])
    return HeldOutParts(whole, opened, identity)


def score_run(run: RunConfig, parts: HeldOutParts | None) -> Row:
    """Train a run and return its row: `score` by the selecting tokens, `test_score` by the test's where there are any.

    Scores are negative losses; one that is not finite is None, and no `test_score`.
    """
    loss, test_loss = train_tested(run, parts.selecting, parts.test) if parts else (train_proxy(run), math.inf)
    if not math.isfinite(loss):
        return {"score": None, "valid_loss": None}
    tested = {"test_score": -test_loss} if math.isfinite(test_loss) else {}
    return {"score": -loss, "valid_loss": loss, **tested}
