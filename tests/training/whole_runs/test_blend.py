"""Runs on several sources: proportions, stages, resumes, layouts, and what is reported of each source."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml

from hybridtron.cli.main import main
from hybridtron.config.load import load
from hybridtron.data.blend_config import without_paths
from hybridtron.data.preprocessing.corpus import prepare
from hybridtron.data.preprocessing.sources import find_sources
from hybridtron.training.config import RunConfig
from hybridtron.training.corpus import open_corpus
from hybridtron.training.run_folder.folder import read_config
from hybridtron.training.single_process import load as load_model
from hybridtron.training.validation.resolve import resolve
from tests.conftest import TINY

WORDS = {"web": ("the", "a", "of", "in"), "code": ("def", "if", "else"), "math": ("sum", "proof", "+")}
WEIGHTS = {"web": 0.7, "code": 0.2, "math": 0.1}
STEPS = 12


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("corpora"), np.random.default_rng(0)
    for name, words in WORDS.items():
        text = folder / "text" / name
        text.mkdir(parents=True)
        for number in range(4):
            (text / f"{number}.txt").write_text(" ".join(draw.choice(words, size=100)))
        prepare(find_sources([text]), folder / name, tokenizer="byte", valid_fraction=0.4)
    return folder


def blend(corpora, split, names=tuple(WEIGHTS)):
    return [{"path": str(corpora / name / split), "weight": WEIGHTS[name]} for name in names]


@pytest.fixture(scope="module")
def config(corpora, tmp_path_factory):
    """The config file of a blend whose weights change in the middle of the run."""
    stages = [{"start_step": 7, "weights": {"math": 0.9, "code": 0.1}}]
    data = {**TINY["data"], "train": blend(corpora, "train"), "valid": blend(corpora, "valid"), "stages": stages}
    train = {**TINY["train"], "steps": STEPS, "eval_every": 4, "eval_sequences": 7}
    schedule = {"type": "constant", "warmup_steps": 4}
    folder = tmp_path_factory.mktemp("runs")
    (folder / "blend.yaml").write_text(yaml.safe_dump({**TINY, "data": data, "train": train, "schedule": schedule}))
    return folder / "blend.yaml"


def flat(sources):
    """Return Megatron's form of sources, as an override."""
    return f"data.train={json.dumps([value for source in sources for value in (source['weight'], source['path'])])}"


def run(config, name, *overrides):
    """Train in this process with the real command; return the run folder."""
    folder = config.parent / name
    assert main(["train", str(config), f"folder={folder}", *overrides]) == 0
    return folder


@pytest.fixture(scope="module")
def whole(config):
    return run(config, "whole")


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def numbers(folder):
    """Return the metrics without the times."""
    times = ("time", "tokens_per_s", "flops_per_s", "mfu")
    return [{key: value for key, value in row.items() if key not in times} for row in rows(folder)]


def assert_equal_weights(folder, other):
    for ours, theirs in zip(load_model(folder).parameters(), load_model(other).parameters(), strict=True):
        assert torch.equal(ours, theirs)


def moved(corpora, folder):
    """Return overrides by which the sources lie elsewhere, and have the names that follow from that."""
    sources = []
    for source, name in zip(blend(corpora, "train"), WEIGHTS, strict=True):
        (folder / f"{name}2").symlink_to(corpora / name)
        sources.append({**source, "path": str(folder / f"{name}2" / "train")})
    return f"data.train={json.dumps(sources)}", "data.stages=[{start_step: 7, weights: {math2: 0.9, code2: 0.1}}]"


@pytest.mark.parametrize(("stop", "moves"), [(5, False), (9, True)])  # before and after the weights change
def test_resumed_is_uninterrupted_bit_for_bit(config, whole, corpora, tmp_path, capsys, stop, moves):
    folder = run(config, f"stopped_{stop}", f"train.steps={stop}")
    capsys.readouterr()
    run(config, folder.name, *(moved(corpora, tmp_path) if moves else ()), "--resume")
    shown = capsys.readouterr().err
    if moves:
        assert f"data.train[0].path {corpora / 'web' / 'train'} -> {tmp_path / 'web2' / 'train'} from step 10" in shown
        assert "data.train[2].name math -> math2 from step 10" in shown
    names = {f"epochs/{name}{2 * moves or ''}": f"epochs/{name}" for name in WEIGHTS}
    resumed = [{names.get(key, key): value for key, value in row.items()} for row in numbers(folder)]
    assert resumed[stop:] == numbers(whole)[stop:]
    assert_equal_weights(folder, whole)


def test_what_is_reported_of_each_source(whole):
    """Seven steps of four samples in the first stage, five in the second."""
    summary = json.loads((whole / "summary.json").read_text())
    used = {name: source["samples"] for name, source in summary["train_sources"].items()}
    assert sum(used.values()) == 4 * STEPS
    for name, share in {"web": 28 * 0.7, "code": 28 * 0.2 + 20 * 0.1, "math": 28 * 0.1 + 20 * 0.9}.items():
        assert abs(used[name] - share) < 2
    last = rows(whole)[-1]
    corpus = open_corpus(read_config(whole))
    for source in corpus.train.sources:
        name = source.prefix.parent.name
        assert last[f"epochs/{name}"] == used[name] / source.num_windows == summary["train_sources"][name]["epochs"]
    losses = [last[f"valid_loss/{name}"] for name in WEIGHTS]
    assert last["valid_loss"] == pytest.approx(sum(w * x for w, x in zip(WEIGHTS.values(), losses, strict=True)))
    assert [source["loss"] for source in summary["valid_sources"].values()] == losses
    assert summary["valid_loss"] == last["valid_loss"]
    lengths = [source.bytes_per_token for source in corpus.held_out.sources]
    mean = sum(w * length for w, length in zip(WEIGHTS.values(), lengths, strict=True))
    assert last["valid_bits_per_byte"] == pytest.approx(last["valid_loss"] / mean / np.log(2))


def test_tensorboard_has_every_source(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    tags = ("progress/epochs", "loss/valid", "loss/valid_bits_per_byte")
    wanted = {f"{tag}/{name}" for tag in tags for name in WEIGHTS}
    assert wanted <= set(events.Tags()["scalars"])


def test_a_sources_loss_is_that_of_evaluating_it_alone(whole, corpora, capsys):
    assert main(["eval", str(whole), "--json"]) == 0
    together = json.loads(capsys.readouterr().out)
    last = rows(whole)[-1]
    for name in WEIGHTS:
        assert main(["eval", str(whole), "--data", str(corpora / name / "valid"), "--json"]) == 0
        alone = json.loads(capsys.readouterr().out)
        for key in ("loss", "perplexity", "bits_per_byte", "sequences"):
            assert together["sources"][name][key] == alone[key]
        assert alone["loss"] == pytest.approx(last[f"valid_loss/{name}"], abs=1e-6)
    assert together["loss"] == pytest.approx(last["valid_loss"], abs=1e-6)
    assert main(["eval", str(whole)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[1:]] == [*WEIGHTS, "together, by weight"]


def test_no_layout_changes_losses(config, whole, hybridtron):
    folder = config.parent / "data_parallel"
    result = hybridtron("train", config, f"folder={folder}", "--nproc", 2)
    assert result.returncode == 0, result.stderr
    keys = ["step_loss", "valid_loss", *(f"{key}/{name}" for key in ("valid_loss", "epochs") for name in WEIGHTS)]
    for key in keys:
        expected = [row[key] for row in rows(whole) if key in row]
        assert [row[key] for row in rows(folder) if key in row] == pytest.approx(expected, abs=1e-5), key


def test_a_list_of_one_source_is_the_plain_path(config, corpora):
    paths = [str(corpora / "web" / split) for split in ("train", "valid")]
    shared = ("data.stages=[]", "train.steps=3", "schedule.warmup_steps=0")
    plain = run(config, "plain", *shared, f"data.train={paths[0]}", f"data.valid={paths[1]}")
    listed = run(config, "listed", *shared, f"data.train=[{{path: {paths[0]}}}]", f"data.valid=[0.3, {paths[1]}]")
    assert numbers(plain) == numbers(listed)
    assert_equal_weights(plain, listed)
    environments = [json.loads((folder / "environment.json").read_text())["tokens"] for folder in (plain, listed)]
    assert environments[0] == environments[1]
    run(config, "plain", *shared, f"data.train=[{{path: {paths[0]}}}]", f"data.valid={paths[1]}", "--resume")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": (0.7, 0.2, 0.2)}, "data.train[2].weight = 0.2: expected 0.1 as in"),
        ({"names": ("web", "code"), "stages": []}, "data.train = 2 sources: expected 3 sources as in"),
        (
            {"names": ("web", "math", "code"), "stages": [{"start_step": 7, "weights": {"code": 0.9, "math": 0.1}}]},
            "data.train[1].path = {corpora}/math/train: holds other tokens than",
        ),
        ({"stages": []}, "data.stages = 0 stages before step 12: expected 1 stage before step 12 as in"),
        (
            {"stages": [{"start_step": 7, "weights": {"math": 0.9, "code": 0.2}}]},
            "data.stages[0].weights[1] = 0.2: expected 0.1",
        ),
    ],
)  # fmt: skip
def test_what_a_resumed_run_may_not_change(config, whole, corpora, capsys, change, message):
    names = change.get("names", tuple(WEIGHTS))
    weights = change.get("weights", tuple(WEIGHTS.values()))[: len(names)]
    sources = [{**source, "weight": w} for source, w in zip(blend(corpora, "train", names), weights, strict=True)]
    overrides = [flat(sources)]
    overrides += [f"data.stages={json.dumps(change['stages'])}"] if "stages" in change else []
    assert main(["train", str(config), f"folder={whole}", f"train.steps={STEPS + 1}", *overrides, "--resume"]) == 2
    assert message.format(corpora=corpora) in capsys.readouterr().err


def test_a_stage_that_has_not_begun_may_change(config, capsys):
    """A stage from step 4 on gives the same whether it was there from the beginning or is decided upon at step 4."""
    late = "data.stages=[{start_step: 4, weights: {web: 1}}, {start_step: 6, weights: {math: 1, code: 3}}]"
    planned = run(config, "planned", late, "train.steps=8")
    folder = run(config, "decided", "train.steps=4")
    capsys.readouterr()
    run(config, "decided", late, "train.steps=8", "--resume")
    shown = capsys.readouterr().err
    assert "data.stages[0].start_step 7 -> 4 from step 5" in shown
    assert "data.stages[1].weights[1] null -> 3.0 from step 5" in shown
    assert numbers(folder)[4:] == numbers(planned)[4:]
    assert_equal_weights(folder, planned)


def test_a_source_that_is_read_many_times_is_named_before_training(config, capsys):
    """Also a stage that begins with the run."""
    folder = run(config, "many", "data.stages=[{start_step: 0, weights: {math: 1}}]", "data.seq_len=128")
    shown = capsys.readouterr().err
    epochs = rows(folder)[-1]["epochs/math"]
    assert epochs > 4
    assert f"warning: data.train: the run reads source math {epochs:.1f} times" in shown.partition("step 1/")[0]
    assert "source web" not in shown.partition("step 1/")[0]
    assert rows(folder)[-1]["epochs/web"] == 0


def test_an_identity_has_weights_and_no_places(config, corpora, tmp_path):
    def identity(*overrides):
        found = resolve(load(config, overrides, RunConfig))
        return without_paths(found.identity()["data"], open_corpus(found).fingerprints)

    base = identity()
    assert str(corpora) not in json.dumps(base)
    assert identity(flat(blend(corpora, "train"))) == base
    named = [{**source, "name": f"s{number}"} for number, source in enumerate(blend(corpora, "train"))]
    renamed = "data.stages=[{start_step: 7, weights: {s2: 0.9, s1: 0.1}}]"
    assert identity(f"data.train={json.dumps(named)}", renamed) == base
    assert identity("data.stages=[{start_step: 8, weights: {math: 0.9, code: 0.1}}]") != base
    heavier = [{**source, "weight": 1} for source in blend(corpora, "train")]
    assert identity(f"data.train={json.dumps(heavier)}") != base


def test_errors_name_the_source(config, corpora, capsys):
    def refused(*overrides):
        assert main(["train", str(config), f"folder={config.parent / 'refused'}", *overrides]) == 2
        return capsys.readouterr().err

    assert "nowhere/train" in refused(f"data.train=[1, {corpora}/web/train, 1, nowhere/train]", "data.stages=[]")
    assert "data.train[1].weight = -1.0: expected more than 0" in refused(f"data.train=[1, {corpora}/web/train, -1, b]")


def test_stages_begin_at_their_step_also_after_a_batch_warmup(config):
    """Four steps of two samples and three of four come before step 7."""
    warmup = ["train.batch_warmup=[{steps: 4, global_batch_size: 2}]"]
    train = open_corpus(resolve(load(config, warmup, RunConfig))).train
    web, code, math = train.counts(40) - train.counts(4 * 2 + 3 * 4)
    assert web == 0
    assert math > 5 * code
    assert train.counts(20)[0] == 14
