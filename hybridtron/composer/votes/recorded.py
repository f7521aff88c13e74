"""Votes as rows of a search's record, so that whoever comes later reads what was elected in place of electing again.

Workers with BoTorch and without it would elect by different scores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from hybridtron.composer.engines.discrete import Observation
from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.nas.store import Row
from hybridtron.composer.space.space import Space
from hybridtron.composer.votes.aggregate import Aggregate, aggregate
from hybridtron.composer.votes.noise import Noise, with_noise
from hybridtron.errors import UserError
from hybridtron.files import is_number


def vote_key(config: SearchConfig, space: Space, finished: Sequence[Observation]) -> Row:
    """Return what the vote of a step follows from: with other scores or another aggregator there is another vote."""
    scores = json.dumps([[" ".join(space.names(o.pattern)), o.score] for o in finished])
    return {
        "aggregator": config.aggregator.model_dump(),
        "noise": config.engine.noise,
        "seeds": config.seeds,
        "evaluated": len(finished),
        "scores": hashlib.sha256(scores.encode()).hexdigest()[:12],
    }


def vote_row(
    config: SearchConfig, number: int, space: Space, finished: Sequence[Observation], elected: Aggregate
) -> Row:
    """Return the row of what a step elected: the pattern, by which scores, and these where they are posterior means."""
    means = {} if elected.means is None else {"means": list(elected.means)}
    pattern = " ".join(space.names(elected.pattern))
    key = vote_key(config, space, finished)
    return {"row": "vote", "step": number, "of": key, "by": elected.by, "pattern": pattern, **means}


def read_vote(
    config: SearchConfig, space: Space, finished: Sequence[Observation], noise: Noise | None, row: Row
) -> Aggregate:
    """Return what a row says was elected; raises UserError where its means or its pattern do not fit the step."""
    means, pattern = row.get("means"), space.indices(row["pattern"].split())
    seen = list(finished)
    if means is not None:
        if not isinstance(means, list) or len(means) != len(finished) or not all(map(is_number, means)):
            raise UserError(f"means of a vote; expected {len(finished)} numbers")
        pairs = zip(with_noise(finished, noise), means, strict=True)
        seen = [replace(o, score=float(mean)) for o, mean in pairs]
    if not space.allows(pattern):
        raise UserError(f"pattern = {row['pattern']!r}; expected one of {space.layers} layers that the step allows")
    chosen = config.aggregator
    found = aggregate(space, seen, chosen.clusters, chosen.top, chosen.context)
    return replace(found, pattern=pattern, by=row["by"], means=None if means is None else tuple(map(float, means)))
