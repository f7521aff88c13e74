"""Composer (arXiv 2510.00379): search small architectures, aggregate them, grow the result; see docs/composer.md.

Searching
    config.py        the schema of a search
    space.py         which patterns there are: blocks, fixed positions, constraints
    engines.py       what to try next: random, exhaustive, regularised evolution
    bayesian.py      what to try next: BoTorch
    methodology.py   one-shot, end-layer and middle-layer incremental
    evaluators.py    what makes a score: closed form, short training, MAD
    functions.py     the closed form
    cost.py          a second objective and the Pareto front
    aggregate.py     clusters and the vote N_c

Keeping and showing
    store.py         the record on disk, shared by workers
    progress.py      where a search is, from its record
    search.py        one worker's loop
    run.py           `hybridtron search`
    outcome.py       what was found
    plots.py  page.py  view.py

Growing
    extrapolate.py   stretching and stacking
    scale.py         `hybridtron scale`
"""
