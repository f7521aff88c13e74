"""The quickstart, cut short: real text, a hybrid, and better than a bigram model within 40 of its steps."""

import json
from pathlib import Path

QUICKSTART = Path(__file__).parent.parent / "configs" / "runs" / "quickstart.yaml"


def test_a_third_of_the_quickstart_is_clearly_below_the_bigram(hybridtron, tmp_path):
    short = ["train.steps=40", "train.eval_every=0", "train.sample_tokens=20", "schedule.decay_steps=16"]
    done = hybridtron("train", QUICKSTART, *short, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "checkpoints" / "quickstart" / "summary.json").read_text())
    assert summary["valid_bits_per_byte"] < 0.9 * summary["bigram_bits_per_byte"]
    assert f"{summary['bigram_bits_per_byte']:.3f}" in done.stderr
    assert summary["sample"] in done.stderr
