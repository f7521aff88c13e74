"""Bayesian optimisation with BoTorch, as Composer does it: SingleTaskGP, RBF kernel, qLogNoisyExpectedImprovement."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridtron.composer.engines.discrete import Observation, known_patterns, new_patterns
from hybridtron.composer.nas.space import Pattern, Space, one_hot
from hybridtron.errors import UserError

if TYPE_CHECKING:
    import torch

SAMPLES = 128  # Monte-Carlo samples of the acquisition function
PARENTS = 5  # best patterns whose neighbours are candidates
FIT_STEPS = 40  # of L-BFGS on the marginal likelihood
CLIMBS = 8  # steps uphill at most


@dataclass(frozen=True)
class Bayesian:
    """The first `start` patterns are a Sobol sequence of the space, scrambled by `seed`; then each proposal is the
    candidate with the largest acquisition, given those proposed before it and not yet evaluated.

    Where the space has at most `candidates` patterns, all are candidates. Else they are random draws and neighbours of
    the best known, from the best of which acquisition is climbed one change at a time.
    """

    start: int = 8
    candidates: int = 1024
    seed: int = 0

    def propose(
        self,
        space: Space,
        finished: Sequence[Observation],
        pending: Sequence[Pattern],
        count: int,
        generator: np.random.Generator,
    ) -> list[Pattern]:
        require_botorch()
        known = known_patterns(finished, pending)
        early = min(count, self.start - len(known))
        found = self._first(space, known, early) if early > 0 else []
        later = count - max(early, 0)
        if later <= 0:
            return found
        if len({o.score for o in finished}) < 2:  # nothing to fit yet
            return found + new_patterns(space, {*known, *found}, later, generator)
        return found + self._by_acquisition(space, finished, [*pending, *found], later, generator)

    def _first(self, space: Space, known: set[Pattern], count: int) -> list[Pattern]:
        from scipy.stats.qmc import Sobol

        points = Sobol(space.layers, seed=self.seed).random(2 ** math.ceil(math.log2(64 * self.start)))
        new = dict.fromkeys(pattern for pattern in map(space.at, points.tolist()) if pattern not in known)
        return list(new)[:count]

    def _by_acquisition(
        self,
        space: Space,
        finished: Sequence[Observation],
        pending: Sequence[Pattern],
        count: int,
        generator: np.random.Generator,
    ) -> list[Pattern]:
        import torch
        from botorch.acquisition.logei import qLogNoisyExpectedImprovement
        from botorch.sampling.normal import SobolQMCNormalSampler

        seed = int(generator.integers(2**31))
        waiting, found = list(pending), list[Pattern]()
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            model = fit(space, finished)
            known = _encode(space, [o.pattern for o in finished])
            for _ in range(count):
                acquisition = qLogNoisyExpectedImprovement(
                    model,
                    known,
                    sampler=SobolQMCNormalSampler(torch.Size([SAMPLES]), seed=seed),
                    X_pending=_encode(space, waiting) if waiting else None,
                )
                taken = known_patterns(finished, waiting)
                best = self._climb(space, finished, taken, acquisition, generator)
                if best is None:
                    break
                waiting.append(best)
                found.append(best)
        return found

    def _climb(
        self,
        space: Space,
        finished: Sequence[Observation],
        taken: set[Pattern],
        acquisition: Any,
        generator: np.random.Generator,
    ) -> Pattern | None:
        if space.size <= self.candidates:
            pool = [pattern for pattern in space.enumerate() if pattern not in taken]
            return pool[int(_values(space, pool, acquisition).argmax())] if pool else None
        best_known = sorted(finished, key=lambda o: -o.score)[:PARENTS]
        near = [pattern for o in best_known for pattern in space.neighbours(o.pattern)]
        pool = [pattern for pattern in dict.fromkeys(near) if pattern not in taken][: self.candidates // 2]
        pool += new_patterns(space, {*taken, *pool}, self.candidates // 4, generator)
        if not pool:
            return None
        values = _values(space, pool, acquisition)
        best, value = pool[int(values.argmax())], float(values.max())
        for _ in range(CLIMBS):
            steps = [pattern for pattern in space.neighbours(best) if pattern not in taken]
            if not steps:
                break
            values = _values(space, steps, acquisition)
            if float(values.max()) <= value:
                break
            best, value = steps[int(values.argmax())], float(values.max())
        return best


def require_botorch() -> None:
    """Raise UserError where BoTorch is not installed."""
    from importlib.util import find_spec

    if find_spec("botorch") is None:
        raise UserError(
            "engine.type = bayesian: BoTorch is not installed; expected it (pip install 'hybridtron[search]'), or one "
            "of evolution, random, exhaustive"
        )


def fit(space: Space, finished: Sequence[Observation]) -> Any:
    """Fit a SingleTaskGP, its RBF kernel with a length per input, to the one-hot encoding; its noise is inferred."""
    import torch
    from botorch.models import SingleTaskGP
    from botorch.models.transforms import Standardize
    from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
    from botorch.optim.fit import fit_gpytorch_mll_scipy
    from gpytorch.mlls import ExactMarginalLogLikelihood

    x = _encode(space, [o.pattern for o in finished])
    y = torch.tensor([[o.score] for o in finished], dtype=torch.float64)
    kernel = get_covar_module_with_dim_scaled_prior(ard_num_dims=x.shape[1], use_rbf_kernel=True)
    model = SingleTaskGP(x, y, covar_module=kernel, outcome_transform=Standardize(1))
    fit_gpytorch_mll_scipy(ExactMarginalLogLikelihood(model.likelihood, model), options={"maxiter": FIT_STEPS})
    return model.eval()


def leave_one_out(space: Space, finished: Sequence[Observation]) -> tuple[np.ndarray, np.ndarray]:
    """Predict mean and standard deviation of each score from all others, with hyperparameters fitted to all.

    Rasmussen & Williams (2006), equations 5.12. Needs at least 3 observations.
    """
    import torch

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        with torch.enable_grad():
            model = fit(space, finished)
        model.train()
        prior = model.likelihood(model(model.train_inputs[0]))
        inverse = torch.linalg.inv(prior.covariance_matrix)
        residual = model.train_targets - prior.mean
        variance = 1 / inverse.diagonal()
        mean = model.train_targets - (inverse @ residual) * variance
        scale, centre = model.outcome_transform.stdvs.squeeze(), model.outcome_transform.means.squeeze()
        return (mean * scale + centre).numpy(), (variance.sqrt() * scale).numpy()


def _encode(space: Space, patterns: Sequence[Pattern]) -> torch.Tensor:
    import torch

    return torch.from_numpy(one_hot(patterns, len(space.blocks)))


def _values(space: Space, patterns: Sequence[Pattern], acquisition: Any) -> torch.Tensor:
    """Return the acquisition of each pattern."""
    import torch

    with torch.no_grad():
        chunks = _encode(space, patterns).unsqueeze(1).split(256)  # [n, 1, layers x blocks]
        return torch.cat([acquisition(chunk) for chunk in chunks])
