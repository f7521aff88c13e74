"""tools/rerun_mad.py on checkpoints that a real run wrote."""

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from hybridtron.errors import UserError
from hybridtron.mad import scores, transplant
from hybridtron.mad.results import read_rows
from hybridtron.train.evaluate import trained_model
from tests.conftest import TINY, command, environment
from tests.mad.small import row

TOOL = Path(__file__).parents[2] / "tools" / "rerun_mad.py"
QUICK = ["--preset", "smoke", "--steps", "2", "--nproc", "1", "--tasks", "compression", "--set", "seq_len=8"]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("rerun_mad", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus):
    """A run folder with the checkpoints of steps 2 and 4; a mixture of experts is among its layers."""
    folder = tmp_path_factory.mktemp("run")
    moe = {"type": "moe", "num_experts": 4, "top_k": 2, "ffn_hidden_size": 16, "balance": "bias"}
    config = {
        **TINY,
        "model": {**TINY["model"], "blocks": {**TINY["model"]["blocks"], "ffn": moe}},
        "folder": str(folder / "tiny"),
        "data": {**TINY["data"], "train": str(corpus / "train"), "valid": str(corpus / "valid")},
        "train": {**TINY["train"], "steps": 4},
        "schedule": {"warmup_steps": 1},
        "checkpoint": {"save_every": 2},
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config))
    done = subprocess.run(command("train", file), env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "tiny"


def test_each_mode_scores_checkpoints_and_too_few_are_no_evidence(tool, run, tmp_path, capsys):
    out = tmp_path / "out"
    checkpoints = [str(run / "step_00000002"), str(run)]
    assert tool.main([*checkpoints, "--mode", "probe", "--out", str(out), *QUICK, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["path"] for one in told["checkpoints"]] == checkpoints
    first, second = (one["loss"] for one in told["checkpoints"])
    assert 4 < second < first < 6
    verdict = " ".join(told["correlation"]["verdict"])
    assert "Not evidence: 2 points are too few" in verdict or verdict.startswith("No correlation")
    assert json.loads((out / "correlation.json").read_text())["verdict"] == told["correlation"]["verdict"]
    assert (out / "report" / "report.html").exists()
    assert tool.main([str(run), "--mode", "finetune", "--out", str(out), *QUICK]) == 0
    assert tool.main([str(run), "--mode", "proxy", "--depth", "2", "--out", str(out), *QUICK]) == 0
    rows, _ = read_rows(out)
    assert [row["notes"][0].split(":")[0] for row in rows] == ["probe", "probe", "finetune", "width 32 -> 128"]
    assert len({row["fingerprint"] for row in rows}) == 4


def points(tool, scores, losses):
    return [tool.Point(str(i), [], *pair) for i, pair in enumerate(zip(scores, losses, strict=True))]


def test_five_models_are_evidence_with_an_exact_p(tool, tmp_path):
    five = points(tool, [0.1, 0.3, 0.5, 0.7, 0.9], [3.0, 2.8, 2.9, 2.5, 2.0])
    told = tool.correlate(five, tmp_path, "nats per token")
    assert told["parameters"]["spearman"] == pytest.approx(-0.9)
    assert told["parameters"]["p"] == pytest.approx(10 / 120)
    assert "exact permutation p" in " ".join(told["verdict"])
    assert not any("too few" in line for line in told["verdict"])
    assert (tmp_path / "correlation.png").read_bytes().startswith(b"\x89PNG")
    assert any("Not evidence" in line for line in tool.correlate(five[:4], tmp_path, "nats per token")["verdict"])


def test_scores_that_rise_with_the_loss_order_the_wrong_way(tool, tmp_path):
    wrong = points(tool, [0.1 * i for i in range(8)], [2.0 + 0.1 * i for i in range(8)])
    verdict = " ".join(tool.correlate(wrong, tmp_path, "bits per byte")["verdict"])
    assert "orders them the wrong way" in verdict
    assert "validated" not in verdict


def test_checkpoints_of_one_proxy_are_one_point(tool, tmp_path):
    """Six checkpoints of two runs that shrink to the same model, and one of another."""
    (one,), (other,) = scores([row(architecture="a")]), scores([row(fingerprint="g", architecture="b", test_micro=0.9)])
    checkpoints = [Path(run, f"step_{step:08d}") for run in ("r", "s") for step in (10, 2, 6)] + [Path("t", "step_1")]
    made, said = tool.as_points([one] * 6 + [other], checkpoints, [3.0, 5.0, 4.0, 2.0, 5.0, 4.0, 1.0])
    assert [(point.name, point.score, point.loss) for point in made] == [("a", 0.5, 2.5), ("b", 0.9, 1.0)]
    assert "7 checkpoints are 2 different models" in said[0]
    told = tool.correlate(made, tmp_path, "nats per token", said)
    assert "Not evidence: 2 points are too few" in " ".join(told["verdict"])


def test_a_checkpoint_given_twice_and_its_run_count_once(tool, run, tmp_path, capsys):
    same = [str(run), str(run / "step_00000004"), f"{run}/../{run.name}", str(run / "step_00000002")]
    assert tool.main([*same, "--depth", "2", "--out", str(tmp_path / "out"), *QUICK, "--json"]) == 0
    text = capsys.readouterr()
    told = json.loads(text.out)
    assert "the same checkpoint as" in text.err
    assert len(told["checkpoints"]) == 2
    (point,) = told["correlation"]["points"]
    assert point["checkpoints"] == ["tiny/step_00000004", "tiny/step_00000002"]
    assert point["loss"] == told["checkpoints"][0]["loss"]
    assert "2 checkpoints are 1 different model to the tasks" in told["correlation"]["verdict"][1]
    assert "No correlation" in told["correlation"]["verdict"][0]


def test_only_this_calls_settings_and_seeds_are_scored(tool, run, tmp_path, capsys):
    arguments = [str(run), "--depth", "2", "--out", str(tmp_path / "out"), *QUICK]
    assert tool.main([*arguments, "vocab_size=8"]) == 0
    assert tool.main([*arguments, "--seeds", "1"]) == 0
    capsys.readouterr()
    assert tool.main([*arguments, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["checkpoints"]
    assert (told["seeds"], told["tasks"]["compression"]["settings"]) == ([0], 1)
    rows, _ = read_rows(tmp_path / "out")
    assert len(rows) == 3
    assert told["overall"]["micro"]["mean"] == next(
        row["test_micro"] for row in rows if row["setting"]["vocab_size"] == 16 and row["seed"] == 0
    )


def test_losses_are_compared_in_one_unit_and_on_one_text(tool):
    def loss(**changes):
        about = {"checkpoint": Path("run", "step_1"), "loss": 2.0, "bits_per_byte": 1.1, "tokenizer": "a",
                 "tokens": "x", "text": (3, 900), "seq_len": 32, "data": "valid"}  # fmt: skip
        return tool.HeldOutLoss(**about | changes)

    assert tool.in_one_unit([loss(), loss(loss=3.0)]) == ([2.0, 3.0], "nats per token")
    other = {"tokenizer": "b", "tokens": "y", "loss": 5.0, "bits_per_byte": 0.9}
    assert tool.in_one_unit([loss(), loss(**other)]) == ([1.1, 0.9], "bits per byte")
    with pytest.raises(UserError, match=r"different held-out data .*expected the same, such as by --data"):
        tool.in_one_unit([loss(), loss(tokens="y")])
    with pytest.raises(UserError, match="different held-out data"):
        tool.in_one_unit([loss(), loss(**other, text=(3, 901))])
    with pytest.raises(UserError, match="tokenizers differ, and nothing tells how many bytes valid has"):
        tool.in_one_unit([loss(), loss(**other, text=None)])


def test_losses_on_different_texts_are_not_correlated(tool, run, corpus, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"]["valid"] = str(corpus / "train")
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    both = [str(run), str(copy), "--depth", "2", "--out", str(tmp_path / "out")]
    assert tool.main([*both, *QUICK, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["correlation"]
    assert told["parameters"] is None
    assert (
        "No correlation: copy/step_00000004 and tiny/step_00000004 have different held-out data" in told["verdict"][0]
    )
    assert not (tmp_path / "out" / "correlation.png").exists()


def test_a_report_folder_that_cannot_be_used_is_refused_before_training(tool, run, tmp_path, capsys):
    (tmp_path / "out" / "report").mkdir(parents=True)
    (tmp_path / "out" / "report" / "notes.txt").touch()
    assert tool.main([str(run), "--out", str(tmp_path / "out"), *QUICK]) == 2
    assert "holds notes.txt" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_trained_layers_compute_what_they_did_and_a_probe_leaves_them(run):
    """With the run's own embedding and head in place, the transplanted model gives the checkpoint's logits."""
    from hybridtron.mad.proxy_model import ProxyModel

    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    with trained_model(run) as (config, _, model, _), torch.no_grad():
        expected = model.logits(tokens)
        parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    for mode, trained_layers in (("finetune", True), ("probe", False)):
        subject = transplant("x", config.model, parameters, mode)
        built, values, frozen = subject.start(config.model.vocab_size, 16, False, seed=0)
        assert any(name.startswith("layers.") for name in values) == trained_layers
        assert values.keys() | frozen.keys() == values.keys() | {n for n in parameters if n.startswith("layers.")}
        proxy = ProxyModel(built, autoencoder=False).eval()
        own = {name: parameters[name] for name in ("embedding.weight", "final_norm.weight", "head.weight")}
        zero = {"head.bias": torch.zeros(config.model.vocab_size)}
        proxy.load_state_dict({**values, **frozen, **own, **zero})
        with torch.no_grad():
            torch.testing.assert_close(proxy(tokens), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such run folder or checkpoint"),
        (["RUN", "--tasks", "compresion"], "task 'compresion'"),
        (["RUN", "--preset", "papper"], "(nearest: paper)"),
        (["RUN", "--steps", "0"], "--steps = 0"),
        (["RUN", "--mode", "probing"], "invalid choice: 'probing'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tool, run, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    try:
        code = tool.main([*(str(run) if word == "RUN" else word for word in arguments), "--out", "out"])
    except SystemExit as end:
        code = end.code
    text = capsys.readouterr().err
    assert code == 2
    assert message in text
    assert not list(tmp_path.iterdir())
