"""Search patterns of eight layers on a function with a known optimum, then stretch the best to a model of 1B.

With `evaluator: {type: mad, ...}` or `{type: train, ...}` the same lines search with real scores; see docs/composer.md.

    python examples/search_and_stretch.py [FOLDER]
"""

import sys

import hybridtron as ht

SEARCH = {
    "name": "example",
    "folder": sys.argv[1] if len(sys.argv) > 1 else "checkpoints/search-example",
    "evaluations": 40,
    "space": {"blocks": ["attn", "mlp"], "layers": 8},
    "evaluator": {"type": "function"},
    "engine": {"type": "evolution"},
}

if __name__ == "__main__":
    found = ht.search(SEARCH)
    best = found.best()[0]
    print(f"best of {len(found.observations)}: {best['pattern']}, score {best['score']:.3f}")
    grown = ht.scale(best["pattern"], "configs/models/llama3_2.yaml", method="stretch", overrides=["size=1b"])
    print(f"stretched to {len(grown.account.layers)} layers: {grown.config.model.pattern}")
