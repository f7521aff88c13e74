"""Configs from bases, a file and the command line, and who set what."""

import os

import pytest

from hybridtron.config.compose import OVERRIDE, compose
from hybridtron.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A function that writes files by relative path into the working folder."""
    monkeypatch.chdir(tmp_path)

    def write(**files):
        for name, text in files.items():
            path = tmp_path / (name.replace("__", "/") + ".yaml")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_mappings_merge_and_lists_and_scalars_replace(folder):
    folder(low="a: {x: 1, y: [1, 2]}\nb: 1\n", top="base: low.yaml\na: {y: [3], z: 4}\nc: 5\n")
    assert compose("top.yaml").mapping == {"a": {"x": 1, "y": [3], "z": 4}, "b": 1, "c": 5}


def test_later_bases_win_and_the_file_wins_over_them(folder):
    folder(one="a: 1\nb: 1\nc: 1\n", two="b: 2\nc: 2\n", top="base: [one.yaml, two.yaml]\nc: 3\n")
    assert compose("top.yaml").mapping == {"a": 1, "b": 2, "c": 3}


def test_bases_are_found_relative_to_the_file_that_names_them(folder):
    folder(models__base="m: 1\n", models__small="base: base.yaml\nn: 2\n", runs__x="base: ../models/small.yaml\n")
    assert compose("runs/x.yaml").mapping == {"m": 1, "n": 2}


def test_one_base_may_be_reached_twice(folder):
    folder(
        low="a: 1\n", left="base: low.yaml\nb: 1\n", right="base: low.yaml\nc: 1\n", top="base: [left.yaml, right.yaml]"
    )
    assert compose("top.yaml").mapping == {"a": 1, "b": 1, "c": 1}


def test_overrides_come_last_with_values_in_yaml(folder):
    folder(top="optimizer: {lr: 1.0}\n")
    overrides = ["optimizer.lr=3e-4", "new.place = [1, a]", "pattern=4*a | b", "flag=true", "none=", "eq=a=b"]
    assert compose("top.yaml", overrides).mapping == {
        "optimizer": {"lr": 3e-4},
        "new": {"place": [1, "a"]},
        "pattern": "4*a | b",
        "flag": True,
        "none": None,
        "eq": "a=b",
    }


def test_an_override_sets_its_key_whole(folder):
    folder(top="block: {type: attention, num_heads: 8}\n")
    assert compose("top.yaml", ["block={type: mlp}"]).mapping == {"block": {"type": "mlp"}}


def test_overrides_leave_files_and_bases_unshared(folder):
    folder(top="a: &x {n: 1}\nb: *x\n")
    assert compose("top.yaml", ["a.n=2"]).mapping == {"a": {"n": 2}, "b": {"n": 1}}


def test_every_value_knows_who_set_it_last(folder):
    folder(low="a: {x: 1, y: 1, list: [1]}\nd: {e: 1}\n", runs__top="base: ../low.yaml\na: {y: 2}\n")
    provenance = compose("runs/top.yaml", ["a.z=3"]).provenance
    assert provenance.source("a.x") == "low.yaml"
    assert provenance.source("a.y") == os.path.join("runs", "top.yaml")
    assert provenance.source("a.z") == OVERRIDE
    assert provenance.source("a.missing") == os.path.join("runs", "top.yaml")
    assert provenance.source("d.missing") == "low.yaml"
    assert provenance.suffix("a.x") == " (in low.yaml)"
    assert provenance.suffix("a.z") == " (in an override)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "top.yaml: expected a mapping of keys at the top level, found [a]"),
        ("base: 3\n", "base = 3: expected a file name or a list of file names (in top.yaml)"),
        ("base: [low.yaml, 3]\n", "base = [low.yaml, 3]: expected a file name or a list of file names (in top.yaml)"),
        ("base: lov.yaml\n", "lov.yaml: no such file (nearest: low.yaml) (named as base in top.yaml)"),
        (
            "base: sup/x.yaml\n",
            "sup/x.yaml: no such file: there is no folder sup (nearest: sub) (named as base in top.yaml)",
        ),
        ("base: sub\n", "sub: expected a YAML file, found a folder (named as base in top.yaml)"),
        ("base: top.yaml\n", "top.yaml: base leads in a circle: top.yaml -> top.yaml"),
        ("base: sub/back.yaml\n", "sub/back.yaml: base leads in a circle: top.yaml -> sub/back.yaml -> top.yaml"),
        ("a: [", "top.yaml:1:5: not valid YAML"),
    ],
)
def test_bad_files_are_refused(folder, text, message):
    folder(low="a: 1\n", sub__back="base: ../top.yaml\n", top=text)
    with pytest.raises(UserError) as caught:
        compose("top.yaml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_nearest(folder):
    folder(configs__quickstart="a: 1\n", configs__bin="a: 1\n")
    with pytest.raises(UserError, match=r"^configs/quickstrt.yaml: no such file \(nearest: configs/quickstart.yaml\)$"):
        compose("configs/quickstrt.yaml")
    with pytest.raises(UserError, match=r"^configs/nosuch.yaml: no such file$"):  # only the suffix is alike
        compose("configs/nosuch.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr", "override 'lr': expected key=value"),
        ("=3", "override '=3': expected key=value"),
        ("a..b=3", "override 'a..b=3': expected key=value with dots between the levels of the key"),
        ("a." * 2000 + "b=3", "override 'a.a."),
        ("a .b=3", "override 'a .b=3': expected key=value"),
        ("lr.x=3", "override 'lr.x=3': lr = 1.0: expected a mapping to set 'x' in"),
        ("deep.lr.x.y=3", "override 'deep.lr.x.y=3': deep.lr = [1]: expected a mapping to set 'x' in"),
        ("a=[1,", "override 'a=[1,': not valid YAML"),
        (
            "a=*attn",
            "override 'a=*attn': not valid YAML: found undefined alias 'attn'; expected a YAML value, in quotes",
        ),
        ("base=x.yaml", "base: cannot be set in an override, only in a file"),
    ],
)
def test_bad_overrides_are_refused(folder, override, message):
    folder(top="lr: 1.0\ndeep: {lr: [1]}\n")
    with pytest.raises(UserError) as caught:
        compose("top.yaml", [override])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


SIZES = "base: ladder.yaml\nname: any\nsizes:\n  small: {model: {depth: 2}}\n  large: {name: big, model: {depth: 9}}\n"
LADDER = "lr: 1\nmodel: {kind: x}\nsizes:\n  small: {lr: 3, model: {width: 4}}\n  large: {model: {width: 8}}\n"


def test_a_chosen_size_is_merged_over_the_rest_and_below_the_overrides(folder):
    folder(ladder=LADDER, family=SIZES)
    small = compose("family.yaml", ["size=small"])
    assert small.mapping == {"lr": 3, "model": {"kind": "x", "width": 4, "depth": 2}, "name": "any"}
    assert small.provenance.source("model.width") == "ladder.yaml"
    large = compose("family.yaml", ["model.depth=5", "size=large"])
    assert large.mapping == {"lr": 1, "model": {"kind": "x", "width": 8, "depth": 5}, "name": "big"}
    assert large.provenance.source("model.depth") == OVERRIDE


def test_a_file_may_choose_the_size_of_its_base(folder):
    folder(ladder=LADDER, family=SIZES, run="base: family.yaml\nsize: large\nlr: 7\n")
    assert compose("run.yaml").mapping["model"]["depth"] == 9
    assert compose("run.yaml", ["size=small"]).mapping["model"]["depth"] == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], ["size: required key is missing", "small, large", "family.yaml"]),
        (["size=smal"], ["size = 'smal'", "small, large", "nearest: small", "in an override"]),
        (["size={small: 1}"], ["size", "small, large"]),
    ],
)
def test_a_missing_or_unknown_size_is_refused(folder, overrides, words):
    folder(ladder=LADDER, family=SIZES)
    with pytest.raises(UserError) as refusal:
        compose("family.yaml", overrides)
    assert all(word in str(refusal.value) for word in words)


def test_size_is_an_ordinary_key_where_there_is_no_table_of_sizes(folder):
    folder(plain="size: 3\n")
    assert compose("plain.yaml", ["size=4"]).mapping == {"size": 4}


@pytest.mark.parametrize("table", ["[1]", "{small: 3}"])
def test_a_table_of_sizes_that_is_none_is_refused(folder, table):
    folder(bad=f"sizes: {table}\nsize: small\n")
    with pytest.raises(UserError, match=r"sizes = .*expected a mapping from size to keys"):
        compose("bad.yaml")


def test_a_key_below_null_makes_a_mapping_of_it(folder):
    folder(top="optimizer: {ema: null}\n")
    assert compose("top.yaml", ["optimizer.ema.decay=0.9"]).mapping == {"optimizer": {"ema": {"decay": 0.9}}}


@pytest.mark.parametrize(
    ("files", "overrides", "where"),
    [
        ({"top": "base: low.yaml\nmodel: {blocks: {atn: null}}\n"}, [], "top.yaml"),
        ({"mid": "model: {blocks: {atn: null}}\n", "top": "base: [low.yaml, mid.yaml]\n"}, [], "mid.yaml"),
        ({"top": "base: low.yaml\nsize: s\nsizes: {s: {model: {blocks: {atn: null}}}}\n"}, [], "top.yaml"),
        ({"top": "base: low.yaml\n"}, ["model.blocks.atn=null"], OVERRIDE),
        ({"top": "base: low.yaml\n"}, ["model.blocks={atn: null, attn: {type: attention}}"], OVERRIDE),
    ],
)
def test_a_null_that_drops_no_block_is_refused(folder, files, overrides, where):
    folder(low="model: {blocks: {attn: {type: attention}}}\n", **files)
    with pytest.raises(UserError) as raised:
        compose("top.yaml", overrides)
    assert str(raised.value) == (f"model.blocks.atn = null: there is no such block to drop; expected attn (in {where})")


@pytest.mark.parametrize("key", ["model.blocks.attn", "sizes.s.model.blocks.attn"])
def test_a_block_may_be_dropped_by_a_base_that_others_share(folder, key):
    first, *rest = reversed(key.split("."))
    text = f"{first}: null"
    for part in rest:
        text = f"{part}: {{{text}}}"
    folder(low="model: {blocks: {attn: {type: attention}, mlp: {type: mlp}}}\n", drop=text + "\n")
    folder(top="base: [low.yaml, drop.yaml]\n" + ("size: s\n" if "sizes" in key else ""))
    assert compose("top.yaml").mapping["model"]["blocks"] == {"attn": None, "mlp": {"type": "mlp"}}
    again = ["model.blocks.attn=null"]
    assert compose("top.yaml", again).mapping["model"]["blocks"]["attn"] is None
