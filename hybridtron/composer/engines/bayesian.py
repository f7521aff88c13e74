"""Bayesian optimisation with BoTorch, as Composer does it: SingleTaskGP, RBF kernel, qLogNoisyExpectedImprovement."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from hybridtron.composer.engines.discrete import Engine, History, Observation, new_patterns
from hybridtron.composer.space.space import Pattern, Space
from hybridtron.errors import UserError

if TYPE_CHECKING:
    import torch

SAMPLES = 128  # Monte-Carlo samples of the acquisition function
PARENTS = 5  # best patterns whose neighbours are candidates
FIT_STEPS = 40  # of L-BFGS on the marginal likelihood
CLIMBS = 8  # steps uphill at most


class Bayesian(Engine):
    """Gaussian process with an RBF kernel over a one-hot encoding, log noisy expected improvement (BoTorch)."""

    type: Literal["bayesian"]
    start: int = Field(8, ge=2, description="First patterns, taken from a Sobol sequence.")
    candidates: int = Field(
        1024, ge=16, description="Largest space of which every pattern is compared; else so many, then steps uphill."
    )

    def propose(self, history: History, count: int, generator: np.random.Generator) -> list[Pattern]:
        """Propose `start` patterns of a Sobol sequence scrambled by the seed, then those of the largest acquisition.

        Each takes into account those proposed before it and not yet evaluated.
        """
        early = max(0, min(count, self.start - len(history.known)))
        found = self._sobol(history, early) if early else []
        history = replace(history, pending=[*history.pending, *found])
        if count == early:
            return found
        if len({o.score for o in history.finished}) < 2:  # nothing to fit yet
            return found + new_patterns(history.space, history.known, count - early, generator)
        return found + self._by_acquisition(history, count - early, generator)

    def _sobol(self, history: History, count: int) -> list[Pattern]:
        from scipy.stats.qmc import Sobol

        space, known = history.space, history.known
        points = Sobol(space.layers, seed=history.seed).random(2 ** math.ceil(math.log2(64 * self.start)))
        new = dict.fromkeys(pattern for pattern in map(space.at, points.tolist()) if pattern not in known)
        return list(new)[:count]

    def _by_acquisition(self, history: History, count: int, generator: np.random.Generator) -> list[Pattern]:
        import torch
        from botorch.acquisition.logei import qLogNoisyExpectedImprovement
        from botorch.sampling.normal import SobolQMCNormalSampler

        seed = int(generator.integers(2**31))
        space, found = history.space, list[Pattern]()
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            model = fit(space, history.finished, self.noise)
            tried = [o.pattern for o in history.finished]
            observed = _encode(space, tried)
            if self.noise or all(o.error for o in history.finished):  # neighbours of the best, not of the luckiest
                means, _ = posterior(model, space, tried)
                better = [replace(o, score=float(mean)) for o, mean in zip(history.finished, means, strict=True)]
                history = replace(history, finished=better)
            while len(found) < count:
                waiting = [*history.pending, *found]
                acquisition = qLogNoisyExpectedImprovement(
                    model,
                    observed,
                    sampler=SobolQMCNormalSampler(torch.Size([SAMPLES]), seed=seed),
                    X_pending=_encode(space, waiting) if waiting else None,
                )
                best = self._maximise(acquisition, replace(history, pending=waiting), generator)
                if best is None:
                    break
                found.append(best)
        return found

    def _maximise(self, acquisition: Any, history: History, generator: np.random.Generator) -> Pattern | None:
        """Return the new pattern of the largest acquisition; None where no pattern is new.

        Where the space has at most `candidates` patterns, all are compared. Else random draws and neighbours of the
        best known are, and from the best of them acquisition is climbed one change at a time.
        """
        space, known = history.space, history.known
        is_small = space.size <= self.candidates
        if is_small:
            pool = [pattern for pattern in space.enumerate() if pattern not in known]
        else:
            parents = sorted(history.finished, key=lambda o: -o.score)[:PARENTS]
            near = [pattern for o in parents for pattern in space.neighbours(o.pattern)]
            pool = [pattern for pattern in dict.fromkeys(near) if pattern not in known][: self.candidates // 2]
            pool += new_patterns(space, {*known, *pool}, self.candidates // 4, generator)
        if not pool:
            return None
        best, value = _best(space, pool, acquisition)
        for _ in range(0 if is_small else CLIMBS):
            steps = [pattern for pattern in space.neighbours(best) if pattern not in known]
            if not steps:
                break
            candidate, higher = _best(space, steps, acquisition)
            if higher <= value:
                break
            best, value = candidate, higher
        return best


def require_botorch() -> None:
    """Raise UserError where BoTorch is not installed."""
    from importlib.util import find_spec

    if find_spec("botorch") is None:
        raise UserError(
            "engine.type = bayesian: BoTorch is not installed; expected it (pip install 'hybridtron[search]'), or one "
            "of evolution, random, exhaustive"
        )


def fit(space: Space, finished: Sequence[Observation], noise: float | None = None) -> Any:
    """Fit a SingleTaskGP, its RBF kernel with a length per input, to the one-hot encoding.

    Its noise is the observations' standard errors, or `noise` for one seed where they have none; without either it is
    inferred. Inference returns about the mode of BoTorch's prior, 0.7 % of the variance, until there are hundreds of
    observations.
    """
    import torch
    from botorch.models import SingleTaskGP
    from botorch.models.transforms import Standardize
    from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
    from botorch.optim.fit import fit_gpytorch_mll_scipy
    from gpytorch.mlls import ExactMarginalLogLikelihood

    x = _encode(space, [o.pattern for o in finished])
    y = torch.tensor([[o.score] for o in finished], dtype=torch.float64)
    errors = [o.error or (noise or 0.0) / math.sqrt(o.seeds) for o in finished]
    known = torch.tensor([[error**2] for error in errors], dtype=torch.float64) if all(errors) else None
    kernel = get_covar_module_with_dim_scaled_prior(ard_num_dims=x.shape[1], use_rbf_kernel=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SingleTaskGP(x, y, known, covar_module=kernel, outcome_transform=Standardize(1))
        fit_gpytorch_mll_scipy(ExactMarginalLogLikelihood(model.likelihood, model), options={"maxiter": FIT_STEPS})
    return model.eval()


def posterior(model: Any, space: Space, patterns: Sequence[Pattern]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of the scores of patterns without noise, as a fitted process has them."""
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model.posterior(_encode(space, patterns))
    return found.mean.flatten().numpy(), found.variance.sqrt().flatten().numpy()


def leave_one_out(space: Space, finished: Sequence[Observation], model: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Predict mean and standard deviation of each score from all others, with hyperparameters fitted to all.

    Rasmussen & Williams (2006), equations 5.12. Needs at least 3 observations. `model` is a process fitted to them.
    """
    import torch
    from botorch.cross_validation import efficient_loo_cv

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Any = efficient_loo_cv(model or fit(space, finished)).posterior
    return found.mean.detach().flatten().numpy(), found.variance.detach().sqrt().flatten().numpy()


def _encode(space: Space, patterns: Sequence[Pattern]) -> torch.Tensor:
    """Return one input for each layer and block: [patterns, layers x blocks]."""
    import torch

    return torch.nn.functional.one_hot(torch.tensor(patterns), len(space.blocks)).flatten(1).double()


def _best(space: Space, patterns: Sequence[Pattern], acquisition: Any) -> tuple[Pattern, float]:
    """Return the pattern of the largest acquisition, and that."""
    import torch

    with torch.no_grad():
        chunks = _encode(space, patterns).unsqueeze(1).split(256)  # [n, 1, layers x blocks]
        values = torch.cat([acquisition(chunk) for chunk in chunks])
    return patterns[int(values.argmax())], float(values.max())
