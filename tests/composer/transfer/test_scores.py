"""The scores of a search's folder, and which patterns are grown."""

import json

import pytest

from hybridtron.composer.transfer.scores import choose, read_scores
from hybridtron.errors import UserError

HEADER = {"row": "search", "format": 1, "seeds": [0, 1], "space": {"blocks": ["attn", "mlp"], "layers": 3}}
PATTERNS = ["attn attn mlp", "attn mlp mlp", "mlp attn mlp", "mlp mlp attn", "mlp mlp mlp"]


@pytest.fixture
def folder(tmp_path):
    def write(rows, header=HEADER):
        lines = [header, *({"row": "result", "pattern": p, "seed": s, "score": score} for p, s, score in rows)]
        (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path

    return write


def scored(count=5):
    return [(text, seed, 1.0 - 0.1 * i + 0.01 * seed) for i, text in enumerate(PATTERNS[:count]) for seed in (0, 1)]


def test_means_over_the_seeds_that_all_patterns_have_best_first(folder):
    more = [("attn mlp mlp", 2, 9.0), ("mlp attn mlp", 0, 5.0), ("mlp mlp attn", 3, None)]
    scores = read_scores(folder([*scored(2), *more]))  # one seed, or one that failed, is not all
    assert scores.means == {
        ("attn", "attn", "mlp"): pytest.approx(1.005),
        ("attn", "mlp", "mlp"): pytest.approx(0.905),
    }
    assert scores.seeds == 2


def test_the_noise_of_a_score_is_pooled_over_patterns_where_it_is_told(folder):
    rows = [(text, seed, 0.1 * i + (-1) ** (i + seed) * 0.02) for i, text in enumerate(PATTERNS) for seed in (0, 1)]
    assert read_scores(folder(rows)).noise is None  # four degrees of freedom
    more = [(text, 2, 0.1 * i) for i, text in enumerate(PATTERNS)]
    assert read_scores(folder([*rows, *more])).noise.deviation == pytest.approx(0.02, rel=0.3)


def test_best_median_worst_and_evenly_spaced_ranks_between(folder):
    scores = read_scores(folder(scored()))
    chosen = choose(scores, 3, ["AMM", "mlp attn mlp", "2*mlp"])
    assert [(" ".join(c.layers), c.role, c.rank) for c in chosen] == [
        ("attn attn mlp", "best", 1),
        ("mlp attn mlp", "median, baseline", 3),
        ("mlp mlp mlp", "worst", 5),
        ("attn mlp mlp", "baseline", 2),
        ("mlp mlp", "baseline", None),
    ]
    assert [c.rank for c in choose(scores, 5)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("patterns", "baselines", "message"),
    [
        (6, [], "patterns = 6: expected 2 to 5, the patterns with a score"),
        (1, [], "patterns = 1: expected 2 to 5"),
        (3, ["2*mamba"], "baselines: 2*mamba: .*mamba"),
    ],
)
def test_too_many_patterns_and_unknown_blocks_are_refused(folder, patterns, baselines, message):
    with pytest.raises(UserError, match=message.replace("2*m", r"2\*m")):
        choose(read_scores(folder(scored())), patterns, baselines)


def test_a_search_with_one_score_has_nothing_to_compare(folder):
    with pytest.raises(UserError, match="has 1 pattern with a score; expected two"):
        choose(read_scores(folder(scored(1))), 2)


def test_what_is_no_search_or_damaged_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="holds no search; expected a folder with evaluations"):
        read_scores(tmp_path)
    with pytest.raises(UserError, match="no pattern has a score yet"):
        read_scores(folder([]))
    with pytest.raises(UserError, match="jsonl:1: expected the beginning of a search"):
        read_scores(folder([], {"row": "search", "transfer": {}}))
    with pytest.raises(UserError, match="jsonl:2: damaged line"):
        read_scores(folder([("attn mamba mlp", 0, 1.0)]))
