"""`hybridtron scale`: patterns in any dialect, at the size of a target, ready to train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from hybridtron.cli.main import main
from hybridtron.composer.grow.scale import scale
from hybridtron.config.load import load
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig

ROOT = Path(__file__).parents[3]
LLAMA = str(ROOT / "configs/models/llama3_2.yaml")
# Size, and what 2A+4M stacked and 2A+5M+2A+3M+1A+3M stretched become: the 1b row is reported, the others follow.
TABLE = {
    "350m": ("4*(2*attn 4*mlp)", "3*attn 8*mlp 3*attn 5*mlp 2*attn 5*mlp"),
    "1b": ("4*(2*attn 4*mlp) attn 2*mlp", "4*attn 9*mlp 4*attn 5*mlp 2*attn 5*mlp"),
    "3b": ("8*(2*attn 4*mlp)", "6*attn 15*mlp 6*attn 9*mlp 3*attn 9*mlp"),
    "7b": ("9*(2*attn 4*mlp)", "7*attn 17*mlp 7*attn 10*mlp 4*attn 10*mlp"),
}


@pytest.fixture
def scaled(capsys):
    def run(pattern: str, *options: str, size: str = "1b") -> dict:
        assert main(["scale", pattern, "--target", LLAMA, f"size={size}", "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(capsys):
    def run(*arguments: str) -> str:
        assert main(["scale", *arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        return printed.err

    return run


def test_the_papers_one_billion_models(scaled):
    stacked = scaled("AAMMMM", "--method", "stack", "--round", "up")
    assert stacked == {
        "pattern": "4*(2*attn 4*mlp) attn 2*mlp",
        "layers": 27,
        "attention_layers": 9,
        "parameters": {"total": 1_263_067_136, "non_embedding": 1_000_398_848},
        "target_non_embedding": 973_146_112,
        "difference": 27_252_736,
    }
    stretched = scaled("AAMMMMMAAMMMAMMM", "--method", "stretch", "--round", "up")
    assert (stretched["layers"], stretched["attention_layers"]) == (29, 10)
    assert (16 / stacked["attention_layers"] + 16 / stretched["attention_layers"]) / 2 == pytest.approx(1.69, abs=0.005)


@pytest.mark.parametrize("size", TABLE)
def test_every_size_of_the_table(scaled, size):
    stacked, stretched = TABLE[size]
    assert scaled("2A+4M", "--method", "stack", "--round", "up", size=size)["pattern"] == stacked
    grown = scaled("2A+5M+2A+3M+1A+3M", "--method", "stretch", "--round", "up", size=size)
    assert grown["pattern"] == stretched


@pytest.mark.parametrize("text", ["AAMMMM", "2A+4M", "2*attn 4*mlp", "attn attn 2*(mlp mlp)", "**----"])
def test_every_dialect_says_the_same(scaled, text):
    assert scaled(text, "--method", "stack", "--round", "up")["layers"] == 27


def test_rounding_takes_the_overshoot_away(scaled):
    for method, pattern in (("stack", "AAMMMM"), ("stretch", "AAMMMMMAAMMMAMMM")):
        up = scaled(pattern, "--method", method, "--round", "up")["difference"]
        nearest = scaled(pattern, "--method", method)["difference"]
        assert abs(nearest) < 0.02 * 973_146_112 < up


def test_matching_flops_counts_those_of_the_residual_topology(scaled):
    """Hyper-connections of 32 streams take more than the layers, and as much in a small one as in a large one."""
    wide = ["model.residual.type=hyper_connections", "model.residual.streams=32"]
    flops = scaled("AAMMMM", "--method", "stretch", "--round", "flops", *wide)["flops"]
    assert abs(flops["difference"]) < 0.02 * flops["target"]


def test_matching_flops_tells_them(scaled):
    answer = scaled("AAMMMM", "--method", "stretch", "--round", "flops")
    flops = answer["flops"]
    assert flops["difference"] == flops["total"] - flops["target"]
    assert abs(flops["difference"]) < 0.02 * flops["target"]
    assert "flops" not in scaled("AAMMMM", "--method", "stretch")


def test_attention_inside_a_parallel_block_counts(capsys, tmp_path):
    base = {"base": LLAMA, "model": {"blocks": {"both": {"type": "parallel", "branches": [
        {"type": "attention", "num_heads": 32, "num_kv_heads": 8}, {"type": "hyena_se"}]}}}}  # fmt: skip
    file = tmp_path / "both.yaml"
    file.write_text(yaml.safe_dump(base))
    assert (
        main(["scale", "both mlp", "--method", "stack", "--round", "up", "--target", str(file), "size=1b", "--json"])
        == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert answer["attention_layers"] == -(-answer["layers"] // 2)


def test_flops_can_be_matched_in_place_of_parameters(scaled, tmp_path, capsys):
    def flops(*arguments: str) -> int:
        assert main(["describe", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["flops_per_token"]["forward"]

    target = flops(LLAMA, "size=1b")
    apart = {}
    for rounding in ("parameters", "flops"):
        out = str(tmp_path / f"{rounding}.yaml")
        scaled("AAMMMMMAAMMMAMMM", "--method", "stretch", "--round", rounding, "--out", out)
        apart[rounding] = abs(flops(out) / target - 1)
    assert apart["flops"] < 0.01 < apart["parameters"]


def test_what_is_written_trains_as_it_is(scaled, tmp_path, capsys):
    out = tmp_path / "composite.yaml"
    answer = scaled("AAMMMM", "--method", "stack", "--out", str(out))
    config = load(out, [], RunConfig)
    assert dict(config.grown_from) == {"pattern": "2*attn 4*mlp", "method": "stack"}
    with pytest.raises(UserError, match=r"grown_from\.pattern = '2\*attn 4\*mlp': expected a pattern that stack makes"):
        load(out, ["model.pattern=attn mlp"], RunConfig)
    assert config.name == "llama3_2_1b-stack-2a4m"
    assert config.model.pattern == answer["pattern"]
    assert config.optimizer == load(LLAMA, ["size=1b"], RunConfig).optimizer
    assert main(["train", str(out), "--print"]) == 0
    assert answer["pattern"] in capsys.readouterr().out
    assert main(["describe", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["non_embedding"] == answer["parameters"]["non_embedding"]


def test_people_read_the_same_numbers(capsys):
    assert main(["scale", "AAMMMM", "--method", "stack", "--round", "up", "--target", LLAMA, "size=1b"]) == 0
    text = capsys.readouterr().out
    for part in (
        "27, 9 with attention",
        "1,000,398,848",
        "973,146,112",
        "+2.80%), runs rounded up",
        "2A+4M+2A+4M",
        "1.78 times",
        "attn is attention, mlp is swiglu: those of llama3_2_1b, whatever the small model had",
    ):
        assert part in text


def test_other_blocks_than_attention_and_mlp(capsys, tmp_path):
    target = str(Path(LLAMA).parent / "nemotron_h.yaml")
    assert main(["scale", "M-M*-", "--method", "stack", "--round", "up", "--target", target, "size=7b", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["pattern"].startswith("12*(mamba mlp mamba attn mlp)")
    assert 0 <= answer["difference"] < 0.05 * answer["target_non_embedding"]


def kept(pattern: str, source: object, target: str, **options: object) -> RunConfig:
    scaled = scale(pattern, ROOT / f"configs/models/{target}.yaml", "stack", overrides="size=1b", keep_blocks=source,
                   **options)  # fmt: skip
    assert scaled.blocks_kept
    return scaled.config


class TestKeepBlocks:
    """The small model's blocks at the target's width, in place of the target's."""

    def test_a_searched_swiglu_stays_one_on_a_target_of_another_mlp(self):
        """As wide as before in proportion; heads are the target's, and stay ungrouped."""
        blocks = kept(
            "AAMMMM", ROOT / "configs/search/mad_6_layers.yaml", "nemotron_h", dialect="composer"
        ).model.blocks
        assert (blocks["mlp"].type, blocks["mlp"].ffn_hidden_size) == ("swiglu", 96 // 32 * 2048)
        assert (blocks["attn"].num_heads, blocks["attn"].num_kv_heads) == (32, None)

    def test_blocks_that_the_target_lacks_keep_their_options(self):
        source = {"model": {"hidden_size": 128, "blocks": {
            "delta": {"type": "gated_deltanet", "num_heads": 2, "num_value_heads": 4, "key_dim": 8, "head_dim": 12},
            "both": {"type": "parallel", "branches": [
                {"type": "mamba2", "head_dim": 16, "state_dim": 8},
                {"type": "mlp", "ffn_hidden_size": 96, "bias": True}]},
        }}}  # fmt: skip
        config = kept("delta both", source, "llama3_2")
        delta, (mamba, mlp) = config.model.blocks["delta"], config.model.blocks["both"].branches
        assert (delta.num_heads, delta.num_value_heads, delta.key_dim, delta.head_dim) == (32, 64, 8, 12)
        assert (mamba.head_dim, mamba.state_dim, mlp.ffn_hidden_size, mlp.bias) == (16, 8, 96 * 16, True)
        assert mlp.hidden_size == 2048

    def test_grouped_heads_that_cannot_keep_their_ratio_come_near_it(self):
        blocks = kept("2*mamba attn mlp", ROOT / "configs/runs/quickstart.yaml", "llama3_2").model.blocks
        assert (blocks["attn"].num_heads, blocks["attn"].num_kv_heads) == (32, 8)  # 6 and 2 before
        assert (blocks["mamba"].type, blocks["mamba"].state_dim, blocks["mlp"].ffn_hidden_size) == ("mamba2", 32, 8192)

    def test_the_command_says_so_and_writes_what_trains(self, tmp_path, capsys):
        source = str(ROOT / "configs/search/mad_6_layers.yaml")
        target = str(ROOT / "configs/models/nemotron_h.yaml")
        command = ["scale", "AAMMMM", "--dialect", "composer", "--method", "stack", "--target", target, "size=1b"]
        assert main([*command, "--keep-blocks", source, "--out", str(tmp_path)]) == 0
        assert "attn is attention, mlp is swiglu: kept, at the width of nemotron_h_1b" in capsys.readouterr().out
        (written,) = tmp_path.iterdir()
        assert written.name == "nemotron_h_1b-stack-2a4m-kept.yaml"
        assert main(["train", str(written), "--print"]) == 0
        assert "type: swiglu" in capsys.readouterr().out
        assert main([*command, "--keep-blocks", source, "--out", str(tmp_path)]) == 2
        assert "exists already" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("source", "part"),
        [
            ("nowhere.yaml", "no such file"),
            ({"name": "run"}, "has no blocks"),
            ({"model": {"hidden_size": 8, "blocks": {"attn": {"type": "atention"}}}}, "nearest: attention"),
        ],
    )  # fmt: skip
    def test_sources_without_usable_blocks_are_refused(self, source, part):
        with pytest.raises(UserError, match="keep_blocks") as refusal:
            kept("AAMMMM", source, "llama3_2")
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    ("pattern", "rounding", "name"),
    [
        ("2A+5M+2A+3M+1A+3M", "up", "llama3_2_1b-stretch-2a5m2a3m1a3m-up"),
        ("AAMMMM", "parameters", "llama3_2_1b-stretch-2a4m"),
    ],
)
def test_names_are_short(pattern, rounding, name):
    assert scale(pattern, LLAMA, "stretch", rounding, overrides="size=1b").config.name == name


def test_the_name_of_a_long_pattern_is_cut_and_still_its_own():
    first, second = (
        scale(pattern, LLAMA, overrides="size=1b").config.name for pattern in (9 * "AM" + "AM", 9 * "AM" + "MA")
    )
    assert len(first) == len(second) <= len("llama3_2_1b-stretch-") + 24
    assert first != second


REFUSALS = {
    "layers that make no whole groups": (
        [
            "3*attn 2*mlp",
            "--method",
            "stack",
            "--target",
            LLAMA,
            "size=1b",
            "model.residual={type: parallel, layers: 32}",
        ],
        ["llama3_2_1b, grown to ", "model.residual.layers = 32: expected a divisor of the pattern's "],
    ),
    "target smaller than the pattern": (
        ["40*attn 40*mlp", "--method", "stack", "--target", LLAMA, "size=1b"],
        ["llama3_2_1b", "is smaller than the pattern", "parameters"],
    ),
    "unknown block": (["2*attn 4*mpl", "--method", "stack", "--target", LLAMA, "size=1b"], ["mpl", "nearest: mlp"]),
    "unknown letter": (["AAMMXX", "--method", "stack", "--target", LLAMA, "size=1b"], ["pattern", "X"]),
    "no size": (["AAMMMM", "--method", "stack", "--target", LLAMA], ["size", "70m, 160m, 350m, 1b, 3b, 7b"]),
    "unknown size": (
        ["AAMMMM", "--method", "stack", "--target", LLAMA, "size=1B"],
        ["size = '1B'", "nearest: 1b", "command line"],
    ),
    "no such target": (
        ["AAMMMM", "--method", "stack", "--target", LLAMA.replace("3_2", "32"), "size=1b"],
        ["no such file", "llama3_2"],
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_name_what_is_wrong(refused, case):
    arguments, parts = REFUSALS[case]
    message = refused(*arguments)
    for part in parts:
        assert part in message


def test_a_file_that_exists_is_kept(refused, tmp_path):
    out = tmp_path / "mine.yaml"
    out.write_text("mine")
    message = refused("AAMMMM", "--method", "stack", "--target", LLAMA, "size=1b", "--out", str(out))
    assert "exists already" in message
    assert out.read_text() == "mine"
