"""Correlate the MAD scores of checkpoints with their losses on held-out text.

Losses are converted to one unit, checkpoints that are the same model to the tasks become one point, and the law `proxy`
is fitted to the points.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from hybridtron.errors import UserError
from hybridtron.files import replace_file
from hybridtron.laws import Fit, Runs, fit
from hybridtron.laws.report.plots import draw
from hybridtron.mad.scoring.score import Score


@dataclass(frozen=True)
class HeldOutLoss:
    """A checkpoint's loss in nats per token and bits per byte, and on what.

    `text` has documents and bytes of each held-out source, where known, and of several their shares.
    """

    checkpoint: Path
    loss: float
    bits_per_byte: float | None
    tokenizer: str
    tokens: str
    text: tuple[float, ...] | None
    seq_len: int
    documents: str
    data: str


@dataclass(frozen=True)
class Point:
    """One trained model: its score, the mean loss and the names of its checkpoints."""

    name: str
    checkpoints: list[str]
    score: float
    loss: float


def in_one_unit(losses: Sequence[HeldOutLoss]) -> tuple[list[float], str]:
    """Return losses that can be compared, and their unit: bits per byte where tokenizers differ.

    Raises:
        UserError: where they were not measured on the same text, as far as that is known.
    """
    first = losses[0]
    one_tokenizer = all(loss.tokenizer == first.tokenizer for loss in losses)
    for loss in losses:
        same = loss.tokens == first.tokens if one_tokenizer else loss.text == first.text
        if not one_tokenizer and loss.text is None:
            raise UserError(f"tokenizers differ, and the bytes of {loss.data} are not known; "
                            "expected data of tools/prepare_data.py")  # fmt: skip
        if not same:
            raise UserError(f"{_name(loss.checkpoint)} and {_name(first.checkpoint)} have different held-out data "
                            f"({loss.data}, {first.data}); expected the same, given as `data`")  # fmt: skip
    if one_tokenizer:
        return [loss.loss for loss in losses], "nats per token"
    return [loss.bits_per_byte or 0.0 for loss in losses], "bits per byte"


def as_points(
    found: Sequence[Score], checkpoints: Sequence[Path], losses: Sequence[float]
) -> tuple[list[Point], list[str]]:
    """Return one point per trained model, with the mean loss of each run's last checkpoint, and remarks."""
    groups: dict[str, list[int]] = {}
    for i, score in enumerate(found):
        groups.setdefault(score.identity, []).append(i)
    points = []
    for group in groups.values():
        last = {checkpoints[i].parent: losses[i] for i in sorted(group, key=lambda i: checkpoints[i].name)}
        score = found[group[0]]
        names = " = ".join(dict.fromkeys(found[i].architecture for i in group))
        paths = [_name(checkpoints[i]) for i in group]
        points.append(Point(names, paths, score.overall[score.headline].mean, fmean(last.values())))
    remarks = []
    if len(points) < len(found):
        models = "one model" if len(points) == 1 else f"{len(points)} different models"
        each = "one point" if len(points) == 1 else "one point each"
        remarks.append(f"{len(found)} checkpoints are {models} to the tasks: {each}, with the mean loss of the last "
                    "checkpoint of each run.")  # fmt: skip
    if len({path.parent for path in checkpoints}) < len(points):
        remarks.append("Checkpoints of one run are not independent of each other; p takes points to be.")
    return points, remarks


def correlate(
    points: Sequence[Point], out: Path, unit: str, remarks: Sequence[str] = (), refusal: str = ""
) -> dict[str, Any]:
    """Correlate the ranks of MAD scores and losses, and plot them; or state why that is impossible.

    Writes correlation.json, and correlation.png where there is a correlation, into `out`. `remarks` follow the
    verdict; `refusal` is why the points do not compare.
    """
    result: dict[str, Any] = {"parameters": None, "intervals": None, "unit": unit or None}
    image = out / "correlation.png"
    image.unlink(missing_ok=True)
    if len(points) == 1 and not refusal:
        refusal = "only one model is left; a correlation needs at least two"
    if not refusal:
        try:
            found = _fitted(points)
        except UserError as error:
            refusal = str(error)
    if refusal:
        result["verdict"] = [f"No correlation: {refusal}", *remarks]
    else:
        result |= {key: found.to_json()[key] for key in ("verdict", "parameters", "intervals", "warnings")}
        result["verdict"] = [*result["verdict"], *remarks]
        replace_file(image, _picture(found, unit))
    result["points"] = [asdict(point) for point in points]
    replace_file(out / "correlation.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def _fitted(points: Sequence[Point]) -> Fit:
    columns = {name: [getattr(point, name) for point in points] for name in ("score", "loss")}
    return fit("proxy", Runs.of("checkpoints", **columns, arch=[point.name for point in points]))


def _picture(found: Fit, unit: str) -> bytes:
    words: dict[str, Any] = {"panel": "loss against MAD score", "x_label": "MAD score", "y_label": f"loss ({unit})"}
    (drawn,) = draw([replace(curve, **words) for curve in found.curves]).values()
    return drawn


def _name(checkpoint: Path) -> str:
    return f"{checkpoint.parent.name}/{checkpoint.name}"
