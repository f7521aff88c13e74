"""tools/rerun_mad.py on checkpoints that a real run wrote."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from hybridtron.mad import transplant
from hybridtron.mad.results import read_rows
from hybridtron.train.evaluate import trained_model
from tests.conftest import TINY, command, environment

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


def test_five_checkpoints_are_evidence_with_an_exact_p(tool, tmp_path):
    told = tool.correlate([0.1, 0.3, 0.5, 0.7, 0.9], [3.0, 2.8, 2.9, 2.5, 2.0], tmp_path)
    assert told["parameters"]["spearman"] == pytest.approx(-0.9)
    assert told["parameters"]["p"] == pytest.approx(10 / 120)
    assert "all 120 orders" in " ".join(told["verdict"]) or "exact permutation p" in " ".join(told["verdict"])
    assert not any("too few" in line for line in told["verdict"])
    assert (tmp_path / "correlation.png").read_bytes().startswith(b"\x89PNG")
    four = tool.correlate([0.1, 0.3, 0.5, 0.7], [3.0, 2.8, 2.9, 2.5], tmp_path)
    assert any("Not evidence" in line for line in four["verdict"])


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
