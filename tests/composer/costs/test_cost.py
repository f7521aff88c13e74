"""Costs of patterns: computed at a model's widths or read from a table, as objectives and as limits."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from hybridtron.accounting.describe import describe
from hybridtron.composer.costs.config import CostConfig
from hybridtron.composer.costs.cost import Cost, limited, read_costs
from hybridtron.composer.nas.run import run_search
from hybridtron.composer.nas.worker import prepare
from hybridtron.composer.space.space import Space
from hybridtron.config.load import build, load
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig
from tests.composer.small import config

MODELS = Path(__file__).parents[3] / "configs/models"
LLAMA = {"model": str(MODELS / "llama3_2.yaml"), "overrides": ["size=1b"], "seq_len": 8192}


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "search"


def test_a_cost_model_without_the_block_is_refused(folder):
    cost = {"measure": "flops", "model": str(MODELS / "mamba.yaml"), "overrides": ["size=1b"]}
    with pytest.raises(UserError, match=r"cost\.model = .*has no block 'attn' of space\.blocks"):
        run_search(config(folder, cost=cost))
    assert not folder.exists()


TABLE = """layer,length,batch,parameters,train_ms,prefill_ms,decode_ms,state_bytes
attn,512,1,10,9,3,0.5,1000
mlp,512,1,10,8,2,0.2,0
attn,2048,1,10,9,3,2.0,4000
mlp,2048,1,10,8,2,0.2,0
"""


SIX = {"blocks": ["attn", "mlp"], "layers": 6}


def costs_of(table: str, limits: dict[str, float]) -> dict:
    """Return a config of limits with the sources that they need."""
    measured, computed = {"table": table}, LLAMA
    sources = [measured] * any("_ms" in name for name in limits)
    sources += [computed] * any("_ms" not in name for name in limits)
    return {"limits": limits} | {key: value for source in sources for key, value in source.items()}


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "layers.csv"
    path.write_text(TABLE)
    return str(path)


def test_a_search_under_a_measured_limit_tries_only_patterns_that_keep_it(folder, table):
    cost = {"measure": "decode_ms", "table": table, "seq_len": 2048, "limit": 4.7}
    outcome, page = run_search(config(folder, cost=cost, evaluations=30, engine={"type": "exhaustive"}))
    spent = [outcome.search.costs[0](o.pattern) for o in outcome.observations]
    assert max(spent) <= 4.7
    layers = outcome.search.config.space.layers
    everything = [2.0 * n + 0.2 * (layers - n) for n in range(layers + 1)]
    assert any(total > 4.7 for total in everything)
    assert outcome.front is None
    assert "at most 4.7 milliseconds of the next token at 2,048 tokens" in page.read_text()


@pytest.mark.parametrize("content", ["", "layer,length\nattn,8\n", TABLE.replace("0.5", "fast"), "\x00\xff"])
def test_a_table_of_something_else_is_refused(folder, table, content):
    Path(table).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"cost\.table = .*expected layers\.csv"):
        run_search(config(folder, cost={"measure": "decode_ms", "table": table, "seq_len": 512}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("mlp,512,1,20,16,4,0.4,0\n", "has 2 layers of the name mlp; expected one"),  # of a wider model
        ("mlp,64,1,10,8,2,nan,0\nattn,64,1,10,9,3,0.5,0\n", "decode_ms of mlp is nan; expected a number of at least 0"),
    ],
)
def test_a_table_that_gives_a_layer_no_single_cost_is_refused(folder, table, row, message):
    Path(table).write_text(TABLE + row)
    seq_len = int(row.split(",")[1])
    with pytest.raises(UserError, match=rf"cost\.table = .*: {message}"):
        run_search(config(folder, cost={"measure": "decode_ms", "table": table, "seq_len": seq_len}))
    assert not folder.exists()


def test_a_measured_cost_is_an_objective_without_a_limit(folder, table):
    outcome, _ = run_search(config(folder, cost={"measure": "state_bytes", "table": table, "seq_len": 512}))
    assert {row["cost"] % 1000 for row in outcome.pareto()} == {0}


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ({"measure": "decode_ms"}, r"cost\.table = null: expected layers\.csv"),
        ({"measure": "flops"}, r"cost\.model = null: expected a run's config file"),
        ({"measure": "decode_ms", "table": "T", "model": "x.yaml"}, r"cost\.model = 'x.yaml': expected nothing"),
        ({"measure": "decode_ms", "table": "T", "overrides": ["size=1b"]}, r"cost\.overrides = .*: expected none with"),
        ({"measure": "flops", "model": "x.yaml", "batch": 2}, r"cost\.batch = 2: expected 1 with flops"),
        ({"measure": "decode_ms", "table": "T"}, r"cost\.seq_len: is needed .* expected one of 512, 2048"),
        ({"measure": "decode_ms", "table": "T", "batch": 9}, r"^cost\.batch = 9: not measured in .* 512 x 1"),
        ({"measure": "decode_ms", "table": "T", "seq_len": 64}, r"cost\.seq_len = 64.*expected one of 512 x 1, 2048 x"),
        ({"measure": "decode_ms", "table": "T", "seq_len": 512, "limit": 0.1}, r"cost\.limit = 0\.1: no pattern"),
    ],
)
def test_a_cost_that_cannot_be_read_is_refused(folder, table, cost, message):
    if "table" in cost:
        cost = {**cost, "table": table}
    with pytest.raises((UserError, ValueError), match=message):
        run_search(config(folder, cost=cost))
    assert not folder.exists()


def test_the_identity_of_a_search_with_one_cost_is_what_it_always_was(folder, table):
    cost = {"measure": "decode_ms", "table": table, "seq_len": 2048}
    label = "milliseconds of the next token at 2,048 tokens, batch 1, of layers.csv"
    given = {"label": label, "layers": [2.0, 0.2]}
    assert prepare(config(folder, cost=cost)).identity()["cost"] == given
    assert prepare(config(folder, cost={**cost, "limit": 4.7})).identity()["cost"] == {**given, "limit": 4.7}
    assert prepare(config(folder)).identity()["cost"] is None
    renamed = {"table": table, "objectives": ["decode_ms@2048"]}
    assert prepare(config(folder, cost=renamed)).identity()["cost"] == given


def test_limits_on_several_axes_leave_exactly_the_patterns_that_keep_all(folder, table):
    limits = {"decode_ms@2048": 6.7, "parameters": 250e6}  # at most 3 attn, at most 4 mlp
    search = prepare(config(folder, cost=costs_of(table, limits), space=SIX))
    expected = [p for p in product(range(2), repeat=6) if all(cost(p) <= limits[cost.name] for cost in search.costs)]
    assert list(search.space.enumerate()) == expected
    assert search.space.size == len(expected)
    for name in limits:  # every axis matters
        others = {key: value for key, value in limits.items() if key != name}
        assert prepare(config(folder, cost=costs_of(table, others), space=SIX)).space.size > len(expected)


def test_limits_that_exclude_one_another_are_refused_as_such(folder, table):
    limits = {"decode_ms@2048": 4.0, "train_ms@2048": 40.0}  # few attn, few mlp
    Path(table).write_text(TABLE.replace("mlp,2048,1,10,8", "mlp,2048,1,10,12"))
    with pytest.raises(UserError, match=r"cost\.limits = decode_ms@2048 4, train_ms@2048 40: no pattern .* keeps all"):
        prepare(config(folder, cost={"table": table, "limits": limits}))


def test_three_objectives_and_a_limit_make_one_front_on_the_page(folder, table):
    cost = {
        **LLAMA, "table": table, "objectives": ["decode_ms@2048", "cache@8192", "decode_ms@512"],
        "limits": {"decode_ms@512": 1.5},
    }  # fmt: skip
    outcome, page = run_search(config(folder, cost=cost, evaluations=20, engine={"type": "evolution", "population": 4}))
    found = json.loads((folder / "result.json").read_text())
    assert list(found["costs"]) == cost["objectives"]
    rows = found["pareto"]
    assert 0 < len(rows) <= outcome.step.space.size == len(outcome.observations) < 16
    points = [(-row["score"], *row["costs"].values()) for row in rows]
    for point in points:
        assert not any(q != point and all(a <= b for a, b in zip(q, point, strict=True)) for q in points)
    assert max(row["costs"]["decode_ms@512"] for row in rows) <= 1.5
    text = page.read_text()
    for heading in ("ms of the next token at 2,048", "elements of cache at 8,192", "ms of the next token at 512"):
        assert heading in text
    assert "at most 1.5 milliseconds of the next token at 512 tokens" in text
    assert (folder / "pareto.png").stat().st_size > 20_000


@pytest.mark.parametrize("residual", ["hyper_connections", "attention_residuals", "sandwich", "plain"])
def test_costs_have_the_part_of_the_residual_topology(residual):
    overrides = [
        "size=1b",
        f"model.residual.type={residual}",
        "model.pattern=attn mlp attn attn",
        "data.tokenizer=byte",
    ]
    changes = {"objectives": ["flops", "parameters", "cache_bytes"], "overrides": overrides, "seq_len": 512}
    cost = build(LLAMA | changes, CostConfig)
    flops, parameters, cache = read_costs(cost, ["attn", "mlp"], 4)
    run = load(LLAMA["model"], overrides, RunConfig)
    model = run.model.model_copy(update={"vocab_size": 256})
    account = describe(model, 512)
    assert flops((0, 1, 0, 0)) == sum(layer.flops_per_token for layer in account.layers)
    assert cache((0, 1, 0, 0)) == account.state_bytes["bf16"]
    norms = (2 if residual == "sandwich" else 1) * model.hidden_size
    assert parameters((0, 1, 0, 0)) == sum(layer.parameters - norms for layer in account.layers)


def test_a_limit_has_room_for_the_residual_topology_first():
    cost = Cost("x", (3.0, 1.0), positions=(0.0, 1.0, 2.0), name="flops", limit=9.0)
    within = limited(Space(("attn", "mlp"), 3), [cost])
    assert list(within.enumerate()) == [p for p in product(range(2), repeat=3) if cost(p) <= 9]
    with pytest.raises(UserError, match="3 of the cheapest layer cost 6, x"):
        limited(Space(("attn", "mlp"), 3), [Cost("x", (3.0, 1.0), (0.0, 1.0, 2.0), limit=5.0)])


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ({}, r"cost\.measure = null: expected one, such as decode_ms; or objectives, limits"),
        ({"measure": "flops", "model": "x", "limits": {"flops": 1}}, r"cost\.measure = 'flops': expected none beside"),
        ({"objectives": ["flop"], "model": "x"}, r"cost\.objectives\[0\] = 'flop': .*nearest: flops"),
        ({"objectives": ["flops@"], "model": "x"}, r"objectives\[0\] = 'flops@': expected flops@TOKENS, such as"),
        ({"limits": {"parameters@8": 1.0}, "model": "x"}, r"limits\.parameters@8 = .*: expected parameters"),
        ({"limits": {"cache": 0}, "model": "x"}, r"cost\.limits\.cache = 0"),
        ({"objectives": ["cache", "cache"], "model": "x"}, r"cost\.objectives = .*: expected different costs"),
        ({"objectives": ["decode_ms", "cache"], "model": "x"}, r"cost\.table = null: expected layers\.csv"),
        ({"objectives": ["decode_ms@64"], "table": "T"}, r"objectives\[0\] = decode_ms@64, .*not measured.*512 x 1"),
        ({"limits": {"decode_ms@512": 0.1}, "table": "T"}, r"cost\.limits\.decode_ms@512 = 0\.1: no pattern"),
    ],
)
def test_costs_that_cannot_be_are_refused(folder, table, cost, message):
    if "table" in cost:
        cost = {**cost, "table": table}
    with pytest.raises((UserError, ValueError), match=message):
        run_search(config(folder, cost=cost))
    assert not folder.exists()
