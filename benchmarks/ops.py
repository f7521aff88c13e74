"""Time of each sequence op against its naive form and the nearest public PyTorch implementation, by sequence length.

    make .venv/dev
    .venv/bin/python benchmarks/ops.py [--only NAME ...] [--lengths 512 2048 ...] [--repeats 3] [--json FILE]

One thread, float32, one sequence, forward and backward. `naive` is what one would write first: a loop over tokens, the
full square of scores, a direct convolution. `public` is the nearest implementation in PyTorch that others publish and
that runs without a GPU. The forms take turns, so that a machine whose speed drifts favours none, and ratios are medians
over the turns, of processor time, which leaves out waiting for a core. A form that would take over a minute is left out
(`-`). `growth` divides the cost per token by that at the shortest length: an op whose cost per token grows as the
logarithm of the length stays below the ratio of the logarithms, printed beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from hybridtron.memory import keep_freed_memory
from hybridtron.ops.attention.softmax import attention
from hybridtron.ops.conv.dynamic_conv import dynamic_conv, dynamic_conv_step
from hybridtron.ops.conv.long_conv import long_conv
from hybridtron.ops.conv.outer_conv import outer_conv
from hybridtron.ops.conv.short_conv import short_conv
from hybridtron.ops.linear_attention.delta_rule import gated_delta_rule, gated_delta_rule_step
from hybridtron.ops.linear_attention.gla import gla, gla_step
from hybridtron.ops.linear_attention.kernelized import linear_attention, linear_attention_step
from hybridtron.ops.linear_attention.retention import retention, retention_step
from hybridtron.ops.linear_attention.rwkv6 import rwkv6, rwkv6_step
from hybridtron.ops.linear_attention.rwkv7 import rwkv7, rwkv7_step
from hybridtron.ops.ssm.mamba3 import Mamba3State, mamba3, mamba3_step
from hybridtron.ops.ssm.selective_scan import selective_scan, selective_scan_step
from hybridtron.ops.ssm.ssd import ssd, ssd_step

LENGTHS = (512, 2048, 8192, 32768)
HEADS, WIDTH, CHANNELS, STATES, WINDOW, CHUNK = 4, 64, 256, 16, 256, 64
SOFTCAP = 50.0
LONGEST = 60.0  # seconds

Form = Callable[..., Tensor]


class Op(NamedTuple):
    """`inputs` makes the arguments for a length; all forms take them."""

    inputs: Callable[[int], list[Tensor]]
    ours: Form
    naive: Form
    public: Form | None
    named: str  # the public one
    logarithmic: bool = True


def scan(step: Callable[..., tuple[Tensor, Tensor]], state: tuple[int, ...], moving: int, *arguments: Any) -> Tensor:
    """A recurrence token by token; the first `moving` arguments have a token axis [b, s, ...]."""
    carried, outputs = torch.zeros(1, *state), []
    for tokens in zip(*(tensor.unbind(1) for tensor in arguments[:moving]), strict=True):
        y, carried = step(carried, *tokens, *arguments[moving:])
        outputs.append(y)
    return torch.stack(outputs, 1)


def heads(length: int) -> Tensor:
    return torch.randn(1, length, HEADS, WIDTH)


def log_decays(*shape: int) -> Tensor:
    return F.logsigmoid(torch.randn(shape) + 3)


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def positive(x: Tensor) -> Tensor:
    return x.abs() / WIDTH


def square(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Attention over all pairs of tokens and a mask."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / WIDTH**0.5
    return (scores.masked_fill(~seen(q.shape[2], window), -torch.inf).softmax(-1) @ v).transpose(1, 2)


def square_with_sinks(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """Compute attention as transformers' gpt-oss does: sinks are a column of scores, dropped after the softmax."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.transpose(-1, -2) / WIDTH**0.5).masked_fill(~seen(q.shape[2], None), -torch.inf)
    column = sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return (torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ v).transpose(1, 2)


def square_with_decays(q: Tensor, k: Tensor, v: Tensor, sums: Tensor) -> Tensor:
    """Compute attention with forget gates by its equation: sums of log gates between all pairs of tokens."""
    q, k, v, sums = (x.transpose(1, 2) for x in (q, k, v, sums))
    scores = q @ k.transpose(-1, -2) / WIDTH**0.5 + (sums.unsqueeze(-1) - sums.unsqueeze(-2)).float()
    return (scores.masked_fill(~seen(q.shape[2], None), -torch.inf).softmax(-1) @ v).transpose(1, 2)


def square_with_softcap(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention as transformers' Gemma 2 does."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = SOFTCAP * torch.tanh(q @ k.transpose(-1, -2) / WIDTH**0.5 / SOFTCAP)
    return (scores.masked_fill(~seen(q.shape[2], None), -torch.inf).softmax(-1) @ v).transpose(1, 2)


def sdpa(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    mask = None if window is None else seen(q.shape[1], window)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None).transpose(1, 2)


def seen(length: int, window: int | None) -> Tensor:
    lags = torch.arange(length).unsqueeze(1) - torch.arange(length)
    return (lags >= 0) & (lags < (window or length))


def shifted(x: Tensor, weight: Tensor) -> Tensor:
    """A short convolution as a sum of shifted copies."""
    taps = weight.shape[1]
    padded = F.pad(x, (0, 0, taps - 1, 0))
    return sum((padded[:, j : j + x.shape[1]] * weight[:, j] for j in range(taps)), torch.zeros(()))


def conv1d(x: Tensor, weight: Tensor) -> Tensor:
    """Depthwise causal convolution as in transformers and mamba-ssm's reference."""
    flipped = F.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    return F.conv1d(flipped, weight.unsqueeze(1), groups=x.shape[2]).transpose(1, 2)


def windows(x: Tensor, taps: Tensor) -> Tensor:
    """Compute a convolution with taps of tokens as Jet-Nemotron's plain form: a sum over windows of inputs."""
    padded = F.pad(x, (0, 0, taps.shape[2] - 1, 0))
    return (padded.unfold(1, taps.shape[2], 1).transpose(2, 3) * taps).sum(2)


def direct(u: Tensor, h: Tensor) -> Tensor:
    return conv1d(u, h.flip(1))


def padded_fft(u: Tensor, h: Tensor) -> Tensor:
    """The long convolution as published with H3 and Hyena: transforms of twice the length."""
    n = 2 * u.shape[1]
    spectrum = torch.fft.rfft(u.transpose(1, 2), n=n) * (torch.fft.rfft(h, n=n) / n)
    return torch.fft.irfft(spectrum, n=n, norm="forward")[..., : u.shape[1]].transpose(1, 2)


def all_products(q: Tensor, k: Tensor, v: Tensor, h: Tensor) -> Tensor:
    """Multi-head Hyena by its definition: every product of keys and values convolved, states of all tokens kept."""
    states = torch.einsum("bsmn,bsmp->bmnps", k, v)
    n = 2 * k.shape[1]
    spectrum = torch.fft.rfft(states, n=n) * torch.fft.rfft(h, n=n)[:, None, None]
    return torch.einsum("bsmn,bmnps->bsmp", q, torch.fft.irfft(spectrum, n=n)[..., : k.shape[1]])


def chunked_delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    return torch_chunk_gated_delta_rule(q, k, v, g, beta, chunk_size=CHUNK)[0]


def chunked_kda(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    from transformers.models.kimi_linear.modeling_kimi_linear import chunk_kimi_delta_attention

    return chunk_kimi_delta_attention(q, k, v, g, beta, chunk_size=CHUNK)[0]


def recurrence_of_transformers(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The scan of transformers' MambaMixer.slow_forward: states of all tokens made at once, then a loop over them."""
    decay = torch.exp(A * dt.unsqueeze(-1))
    added = dt.unsqueeze(-1) * B.unsqueeze(2) * x.unsqueeze(-1)
    state, outputs = torch.zeros(1, *A.shape), []
    for t in range(x.shape[1]):
        state = decay[:, t] * state + added[:, t]
        outputs.append((state @ C[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, 1) + x * D


def dual_form(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The listing of the Mamba-2 paper (Dao and Gu 2024): chunks by einsum over segment sums."""
    chunk = 64

    def chunks(t: Tensor) -> Tensor:
        return t.unflatten(1, (-1, chunk))  # [b, c, l, ...]

    def segment_sums(t: Tensor) -> Tensor:
        total = t.cumsum(-1)
        difference = total.unsqueeze(-1) - total.unsqueeze(-2)
        return difference.masked_fill(~seen(t.shape[-1], None), -torch.inf)

    skip = x * D.unsqueeze(-1)
    x, decay = chunks(x * dt.unsqueeze(-1)), chunks(dt * A).permute(0, 3, 1, 2)  # [b, h, c, l]
    B, C = (chunks(t.expand(-1, -1, x.shape[3], -1)) for t in (B, C))
    total = decay.cumsum(-1)
    y = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", C, B, segment_sums(decay).exp(), x)
    states = torch.einsum("bclhn,bhcl,bclhp->bchpn", B, (total[..., -1:] - total).exp(), x)
    states = torch.cat([torch.zeros_like(states[:, :1]), states], 1)
    between = segment_sums(F.pad(total[..., -1], (1, 0))).exp()
    states = torch.einsum("bhzc,bchpn->bzhpn", between, states)[:, :-1]
    y = y + torch.einsum("bclhn,bchpn,bhcl->bclhp", C, states, total.exp())
    return y.flatten(1, 2) + skip


def mamba3_loop(*inputs: Tensor) -> Tensor:
    """Compute Mamba-3 token by token."""
    x, _, _, _, theta, B, _, D = inputs
    sizes = ((*x.shape[2:3], x.shape[4], B.shape[4]), B.shape[2:], x.shape[2:], theta.shape[2:])
    state, outputs = Mamba3State(*(torch.zeros(1, *size) for size in sizes)), []
    for x, dt, decay, mix, theta, B, C in zip(*(tensor.unbind(1) for tensor in inputs[:-1]), strict=True):
        y, state = mamba3_step(state, x, dt, decay, mix, theta, B, C, D)
        outputs.append(y)
    return torch.stack(outputs, 1)


def mamba3_inputs(length: int, rank: int) -> list[Tensor]:
    """Return x, dt, log decays, mixes, angular velocities, B, C and D."""
    dt = F.softplus(torch.randn(1, length, HEADS) - 3)
    wide = [torch.randn(1, length, HEADS, rank, WIDTH) for _ in range(3)]
    mix, theta = torch.rand(1, length, HEADS), math.pi * torch.randn(1, length, HEADS, WIDTH // 4).tanh()
    return [wide[0], dt, -dt * torch.rand(HEADS) - 1e-3, mix, theta, *wide[1:], torch.randn(HEADS)]


def projections(length: int) -> list[Tensor]:
    return [heads(length), heads(length), heads(length)]


def rwkv7_inputs(length: int) -> list[Tensor]:
    a = unit(heads(length))
    return [heads(length), -0.6 * torch.rand_like(a), heads(length), heads(length), a, -a * torch.rand_like(a)]


SQUARE_STATE = (HEADS, WIDTH, WIDTH)
FADING = -(2.0 ** -torch.arange(1, HEADS + 1))  # log decays of retention
OPS: dict[str, Op] = {
    "attention": Op(projections, attention, square, sdpa, "torch SDPA", logarithmic=False),
    "attention, window 256": Op(
        projections,
        partial(attention, window=WINDOW),
        partial(square, window=WINDOW),
        partial(sdpa, window=WINDOW),
        "torch SDPA, masked",
    ),
    "attention with sinks": Op(
        lambda s: [*projections(s), torch.randn(HEADS)],
        lambda q, k, v, sinks: attention(q, k, v, sinks=sinks),
        square_with_sinks,
        None,
        "",
        logarithmic=False,
    ),
    "attention with forget gates": Op(
        lambda s: [*projections(s), log_decays(1, s, HEADS).double().cumsum(1)],
        lambda q, k, v, sums: attention(q, k, v, decays=sums),
        square_with_decays,
        None,
        "",
        logarithmic=False,
    ),
    "attention with softcap": Op(
        projections, partial(attention, softcap=SOFTCAP), square_with_softcap, None, "", logarithmic=False
    ),
    "linear_attention": Op(
        lambda s: [positive(heads(s)), positive(heads(s)), heads(s)],
        partial(linear_attention, chunk_size=CHUNK, normalize=False),
        partial(scan, partial(linear_attention_step, normalize=False), SQUARE_STATE, 3),
        None,
        "",
    ),
    "retention": Op(
        projections,
        partial(retention, log_decay=FADING, chunk_size=CHUNK),
        partial(scan, partial(retention_step, log_decay=FADING), SQUARE_STATE, 3),
        None,
        "",
    ),
    "gla": Op(
        lambda s: [*projections(s), log_decays(1, s, HEADS, WIDTH)],
        partial(gla, chunk_size=CHUNK),
        partial(scan, gla_step, SQUARE_STATE, 4),
        None,
        "",
    ),
    "rwkv6": Op(
        lambda s: [*projections(s), log_decays(1, s, HEADS, WIDTH), torch.randn(HEADS, WIDTH)],
        partial(rwkv6, chunk_size=CHUNK),
        partial(scan, rwkv6_step, SQUARE_STATE, 4),
        None,
        "",
    ),
    "rwkv7": Op(
        rwkv7_inputs,
        partial(rwkv7, chunk_size=CHUNK),
        partial(scan, rwkv7_step, SQUARE_STATE, 6),
        None,
        "",
    ),
    "gated_delta_rule": Op(
        lambda s: [heads(s), unit(heads(s)), heads(s), log_decays(1, s, HEADS), torch.rand(1, s, HEADS)],
        partial(gated_delta_rule, chunk_size=CHUNK),
        partial(scan, gated_delta_rule_step, SQUARE_STATE, 5),
        chunked_delta,
        "transformers Qwen3-Next",
    ),
    "gated_delta_rule, decays by channel": Op(
        lambda s: [heads(s), unit(heads(s)), heads(s), log_decays(1, s, HEADS, WIDTH), torch.rand(1, s, HEADS)],
        partial(gated_delta_rule, chunk_size=CHUNK),
        partial(scan, gated_delta_rule_step, SQUARE_STATE, 5),
        chunked_kda,
        "transformers Kimi Linear",
    ),
    "selective_scan": Op(
        lambda s: [
            torch.randn(1, s, CHANNELS),
            F.softplus(torch.randn(1, s, CHANNELS) - 3),
            -torch.rand(CHANNELS, STATES) * STATES - 0.5,
            torch.randn(1, s, STATES),
            torch.randn(1, s, STATES),
            torch.randn(CHANNELS),
        ],
        selective_scan,
        lambda x, dt, A, B, C, D: scan(
            lambda state, x, dt, B, C: selective_scan_step(state, x, dt, A, B, C, D), A.shape, 4, x, dt, B, C
        ),
        recurrence_of_transformers,
        "transformers Mamba",
    ),
    "ssd": Op(
        lambda s: [
            heads(s),
            F.softplus(torch.randn(1, s, HEADS) - 3),
            -torch.rand(HEADS) * STATES - 0.5,
            torch.randn(1, s, 1, WIDTH),
            torch.randn(1, s, 1, WIDTH),
            torch.randn(HEADS),
        ],
        partial(ssd, chunk_size=CHUNK),
        lambda x, dt, A, B, C, D: scan(
            lambda state, x, dt, B, C: ssd_step(state, x, dt, A, B, C, D), SQUARE_STATE, 4, x, dt, B, C
        ),
        dual_form,
        "Mamba-2 paper's listing",
    ),
    **{
        f"mamba3, rank {rank}": Op(
            partial(mamba3_inputs, rank=rank), partial(mamba3, chunk_size=CHUNK), mamba3_loop, None, ""
        )
        for rank in (1, 4)
    },
    "short_conv": Op(
        lambda s: [torch.randn(1, s, CHANNELS), torch.randn(CHANNELS, 4)], short_conv, shifted, conv1d, "torch conv1d"
    ),
    "dynamic_conv": Op(
        lambda s: [torch.randn(1, s, CHANNELS), torch.randn(1, s, 4, CHANNELS)],
        dynamic_conv,
        partial(scan, dynamic_conv_step, (3, CHANNELS), 2),
        windows,
        "Jet-Nemotron's plain form",
    ),
    "long_conv, 128 taps": Op(
        lambda s: [torch.randn(1, s, CHANNELS), torch.randn(CHANNELS, 128)], long_conv, direct, padded_fft, "padded FFT"
    ),
    "long_conv, all taps": Op(
        lambda s: [torch.randn(1, s, CHANNELS), torch.randn(CHANNELS, s)], long_conv, direct, padded_fft, "padded FFT"
    ),
    **{
        f"outer_conv, {n} heads of {CHANNELS // n}": Op(
            lambda s, n=n: [*(torch.randn(1, s, n, CHANNELS // n) for _ in range(3)), torch.randn(n, s) / s],  # type: ignore[misc]
            outer_conv,
            all_products,
            None,
            "",
        )
        for n in (32, 16, 4)
    },
}


def seconds(form: Form, inputs: list[Tensor], gradient: Tensor) -> float:
    """Processor seconds of a forward and a backward pass."""
    start = time.process_time()
    torch.autograd.grad(form(*inputs), inputs, gradient)
    return time.process_time() - start


def measure(op: Op, length: int, repeats: int, left_out: set[str]) -> dict[str, Any]:
    """Seconds of our form, and the ratios of the others to it."""
    torch.manual_seed(0)
    inputs = [tensor.requires_grad_() for tensor in op.inputs(length)]
    gradient = torch.randn_like(op.ours(*inputs))
    forms = {"ours": op.ours, "naive": op.naive, "public": op.public}
    present = {name: form for name, form in forms.items() if form is not None and name not in left_out}
    times: dict[str, list[float]] = {name: [] for name in present}
    for name, form in present.items():
        times[name].append(seconds(form, inputs, gradient))
        if name != "ours" and times[name][0] * 16 > LONGEST:  # the next length is four times this one
            left_out.add(name)
    if max(each[0] for each in times.values()) < LONGEST / 6:  # else it is long enough to count by itself
        for each in times.values():
            each.clear()
    for _ in range(0 if times["ours"] else repeats):
        for name, form in present.items():
            times[name].append(seconds(form, inputs, gradient))
    own = times.pop("ours")
    ratios = {name: statistics.median(b / a for a, b in zip(own, other, strict=True)) for name, other in times.items()}
    return {"seconds": statistics.median(own), **ratios}


def rows(names: list[str], lengths: list[int], repeats: int) -> Iterator[dict[str, Any]]:
    left_out = {name: set[str]() for name in names}
    shortest: dict[str, float] = {}
    jobs = [(name, length) for name in names for length in lengths]
    for name, length in track(jobs, "measuring", console=Console(stderr=True)):
        op = OPS[name]
        found = measure(op, length, repeats, left_out[name])
        per_token = found["seconds"] / length
        growth = per_token / shortest.setdefault(name, per_token)
        limit = math.log(length) / math.log(lengths[0]) if op.logarithmic else None
        yield {"op": name, "length": length, **found, "growth": growth, "limit": limit, "public_name": op.named}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=OPS, default=list(OPS), metavar="NAME")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here, as they come")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.filterwarnings("ignore")
    found = []
    for row in rows(options.only, sorted(options.lengths), options.repeats):
        found.append(row)
        if options.json:
            options.json.write_text(json.dumps({"date": time.strftime("%Y-%m-%d"), "rows": found}, indent=2) + "\n")
    table = Table("op", *(["length", "us/token", "naive", "public", "", "growth", "limit"]))
    for row in found:
        cells = [row.get(name) for name in ("naive", "public")]
        table.add_row(
            row["op"],
            f"{row['length']:,}",
            f"{row['seconds'] / row['length'] * 1e6:.2f}",
            *("-" if cell is None else f"{cell:.1f}x" for cell in cells),
            row["public_name"],
            f"{row['growth']:.2f}",
            "-" if row["limit"] is None else f"{row['limit']:.2f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
