"""Patterns from files: every row of a list is checked before anything is evaluated."""

from __future__ import annotations

import json

import pytest
import yaml

from hybridtron.cli.main import main
from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.nas.run import run_search
from hybridtron.composer.space.layouts import read_layers, read_layouts
from hybridtron.config.load import build
from hybridtron.errors import UserError
from hybridtron.pattern import PatternError

SEARCH = {
    "name": "listed",
    "space": {"blocks": ["attn", "mamba", "mlp"], "layers": 4, "at_most": {"attn": 2}, "never_first": ["mlp"]},
    "evaluator": {"type": "function"},
    "engine": {"type": "list"},
}
ROWS = """name,pattern
good,AAMM
native,2*mamba 2*mlp
,M-M*
many,AAAM
,AMB
,AMBMA
,AXMB
again,attn attn mlp mlp
,mlp attn attn mamba
"""
REASONS = {
    5: "has 3 attn; expected at most 2 (space.at_most)",
    6: "is too short: 3 layers; expected space.layers 4",
    7: "is too long: 5 layers; expected space.layers 4",
    8: "unknown Composer letter 'X' at column 2: expected one of A (attn), B (mamba), M (mlp)",
    9: "is the pattern of line 2",
    10: "begins with mlp (space.never_first)",
}


@pytest.fixture
def made(tmp_path):
    """A config whose engine lists rows of a file."""

    def make(rows: str = ROWS, name: str = "layouts.csv", **engine) -> SearchConfig:
        file = tmp_path / name
        file.write_text(rows)
        listed = {"type": "list", "file": str(file), **engine}
        return build({**SEARCH, "folder": str(tmp_path / "s"), "engine": listed}, SearchConfig)

    return make


def test_every_bad_row_has_its_line_and_reason(made, tmp_path):
    config = made()
    layouts = read_layouts(tmp_path / "layouts.csv", config.space, config.space.patterns)
    assert {x.line: x.reason for x in layouts if x.pattern is None} == REASONS
    assert [x.name for x in layouts if x.pattern] == ["good", "native", None]


def test_a_list_with_bad_rows_is_refused_before_anything_is_written(made, tmp_path):
    with pytest.raises(UserError, match="6 of 9 rows are no patterns of the space: line 5: 'AAAM' has 3 attn"):
        run_search(made())
    assert not (tmp_path / "s").exists()


def test_a_list_is_evaluated_in_its_order_and_the_page_has_what_was_skipped(made, tmp_path):
    outcome, page = run_search(made(skip_invalid=True))
    rows = map(json.loads, (tmp_path / "s/evaluations.jsonl").read_text().splitlines())
    done = [row["pattern"] for row in rows if row["row"] == "result"]
    assert done == ["attn attn mlp mlp", "mamba mamba mlp mlp", "mamba mlp mamba attn"]
    assert outcome.progress.is_complete
    result = outcome.as_json()
    assert [row["line"] for row in result["skipped"]] == [*REASONS]
    assert {row["letters"]: row.get("name") for row in result["best"]} == {
        "AAMM": "good", "BBMM": "native", "BMBA": None
    }  # fmt: skip
    assert "Rows that were skipped" in page.read_text()
    assert REASONS[6] in page.read_text()


@pytest.mark.parametrize(
    ("name", "rows"),
    [("plain.csv", "AAMM\nBBMM\n"), ("rows.jsonl", '{"pattern": "AAMM", "name": "x\u2028y"}\n"2*mamba 2*mlp"\n')],
)
def test_other_forms_of_a_list(made, name, rows):
    outcome, _ = run_search(made(rows, name))
    assert outcome.num_evaluated == 2


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("a.csv", "layout,name\nAAMM,x\n", "a.csv:1: has no column pattern"),
        ("a.csv", "\n", "has no rows"),
        ("a.jsonl", '{"layout": "AAMM"}\n', "a.jsonl:1: expected a JSON object with a text pattern"),
    ],
)
def test_files_without_patterns_are_refused(made, name, rows, message):
    with pytest.raises(UserError, match=message):
        run_search(made(rows, name))


def test_the_command_lists_every_row_and_exits_with_2_where_one_is_bad(tmp_path, capsys):
    config, file = tmp_path / "s.yaml", tmp_path / "layouts.csv"
    config.write_text(yaml.safe_dump({**SEARCH, "engine": {"type": "random"}, "evaluations": 3}))
    file.write_text(ROWS)
    assert main(["search", "check", str(config), str(file)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(REASONS) + 1
    assert f"layouts.csv:5: AAAM: {REASONS[5]}" in lines[0]
    assert main(["search", "check", str(config), str(file), "--json"]) == 2
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["line"]: "; ".join(row["reasons"]) for row in rows if not row["valid"]} == REASONS
    file.write_text("AAMM\n")
    assert main(["search", "check", str(config), str(file)]) == 0


class TestLetters:
    """Letters of blocks, also of three kinds."""

    @staticmethod
    def space(**changes):
        return build({**SEARCH, "space": {**SEARCH["space"], **changes}, "evaluations": 1,
                      "engine": {"type": "random"}}, SearchConfig).space  # fmt: skip

    def test_those_given_win_over_megatrons(self, tmp_path):
        file = tmp_path / "a.csv"
        file.write_text("BMMM\nMMMM\n")
        plain, named = self.space(never_first=[]), self.space(never_first=[], letters={"M": "mamba", "B": "mlp"})
        first, second = read_layouts(file, plain, plain.patterns)
        assert first.pattern
        assert second.reason == (
            "ambiguous 'MMMM': expected names of blocks, or space.letters that say what it means"
        )  # fmt: skip
        assert [named.patterns.names(x.pattern)[1] for x in read_layouts(file, named, named.patterns)] == ["mamba"] * 2

    def test_fixed_positions_may_be_letters_and_are_the_same_search(self):
        spelt, letters = self.space(fixed="attn ? ? mlp"), self.space(fixed="A??M")
        assert spelt.fixed_words == letters.fixed_words == ["attn", "?", "?", "mlp"]
        assert spelt.identity() == letters.identity()

    def test_errors(self):
        with pytest.raises(UserError, match=r"space.letters.X = 'mpl': .*nearest: mlp"):
            self.space(letters={"X": "mpl"})
        with pytest.raises(PatternError, match="unknown Composer letter 'Q'"):
            read_layers("AAQQ", self.space())
