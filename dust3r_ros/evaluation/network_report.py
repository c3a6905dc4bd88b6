"""The figures of ``network_speed`` as plain values, as tables and as one plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dust3r_ros.evaluation.network_speed import STREAM_WINDOW, PrecisionSpeed, StreamSpeed, Work
from dust3r_ros.evaluation.report import markdown_table
from dust3r_ros.evaluation.timing import Timing
from dust3r_ros.mapping.export import replacing

Figures = dict[str, Any]
_REFERENCE = {"float32": "published way, float32", "bfloat16": "published way, bfloat16 autocast"}


def bench_figures(
    name: str, size: tuple[int, int], work: Work, speeds: Sequence[PrecisionSpeed], stream: StreamSpeed,
    machine: Mapping[str, str | int],
) -> Figures:  # fmt: skip
    """Everything as numbers and text for JSON; times in milliseconds, rates in TFLOP/s."""
    return {
        "network": name,
        "image": f"{size[1]}x{size[0]}",
        "machine": dict(machine),
        "encode_gflop": work.encode / 1e9,
        "decode_gflop": work.decode / 1e9,
        "precisions": [_precision(speed, work) for speed in speeds],
        "stream": _stream(stream),
    }


def _precision(speed: PrecisionSpeed, work: Work) -> Figures:
    return {
        "dtype": speed.dtype,
        "matrix_tflops": speed.matrix_rate / 1e12,
        "encode": _timing(speed.encode),
        "encode_tflops": work.encode / speed.encode.best / 1e12,
        "encode_share": speed.encode_share(work),
        "encode_an_image": {str(batch): _timing(timing, batch) for batch, timing in speed.encode_batch.items()},
        "encode_batch_tflops": {str(b): b * work.encode / t.best / 1e12 for b, t in speed.encode_batch.items()},
        "decode_a_pair": {str(batch): _timing(timing, batch) for batch, timing in speed.decode.items()},
        "decode_tflops": {str(b): b * work.decode / timing.best / 1e12 for b, timing in speed.decode.items()},
        "decode_share": speed.decode_share(work),
        "keyframes_a_second": {str(window): 1 / timing.best for window, timing in speed.keyframe.items()},
        "peak_mb": None if speed.peak_bytes is None else speed.peak_bytes / 1e6,
    }


def _timing(timing: Timing, pairs: int = 1) -> Figures:
    one = timing.times(1e3 / pairs)
    return {"best_ms": one.best, "median_ms": one.median, "cpu_ms": one.cpu}


def _stream(stream: StreamSpeed) -> Figures:
    return {
        "keyframes": stream.keyframes,
        "pairs": stream.pairs,
        "window": STREAM_WINDOW,
        "ours": {dtype: _timing(timing) for dtype, timing in stream.ours.items()},
        "reference": {dtype: _timing(timing) for dtype, timing in stream.reference.items()},
        "times_faster": {ours: _ratios(stream, timing) for ours, timing in stream.ours.items()},
    }


def _ratios(stream: StreamSpeed, ours: Timing) -> Figures:
    """By the clock, and in processor time, which other programs change less."""
    return {
        theirs: {"time": slow.best / ours.best, "cpu": slow.cpu / ours.cpu} for theirs, slow in stream.reference.items()
    }


def tables(figures: Figures) -> str:
    """What is read on a terminal, in Markdown."""
    return "\n\n".join([_heading(figures), _limits(figures), _batches(figures), _windows(figures), _streams(figures)])


def _heading(figures: Figures) -> str:
    m = figures["machine"]
    where = m.get("gpu", f"{m['processor']}, {m['cores']} cores")
    return (
        f"{figures['network']}, {figures['image']}: {figures['encode_gflop']:.0f} GFLOP an image, "
        f"{figures['decode_gflop']:.0f} a pair; {where}, {m['threads']} threads, load {m['load']}, PyTorch {m['torch']}"
    )


def _limits(figures: Figures) -> str:
    header = ("precision", "plain product, TFLOP/s", "encode, ms", "TFLOP/s", "of the product", "decode a pair, ms",
              "TFLOP/s", "of the product", "peak memory, MB")  # fmt: skip
    rows = []
    for p in figures["precisions"]:
        best = min(p["decode_a_pair"].values(), key=lambda timing: float(timing["best_ms"]))
        rows.append([
            p["dtype"], f"{p['matrix_tflops']:.3g}", f"{p['encode']['best_ms']:.1f}", f"{p['encode_tflops']:.3g}",
            f"{100 * p['encode_share']:.0f} %", f"{best['best_ms']:.1f}", f"{max(p['decode_tflops'].values()):.3g}",
            f"{100 * p['decode_share']:.0f} %", "-" if p["peak_mb"] is None else f"{p['peak_mb']:.0f}",
        ])  # fmt: skip
    return markdown_table(header, rows)


def _batches(figures: Figures) -> str:
    """What a batch is worth: the matrices of a large network are read once for all of it."""
    header = ("precision", "batch", "images/s", "TFLOP/s", "of the product", "pairs/s", "TFLOP/s", "of the product")
    rows = [
        [p["dtype"], batch, *_rates(p, "encode_an_image", "encode_batch_tflops", batch),
         *_rates(p, "decode_a_pair", "decode_tflops", batch)]
        for p in figures["precisions"]
        for batch in p["decode_a_pair"]
    ]  # fmt: skip
    return markdown_table(header, rows)


def _rates(precision: Figures, times: str, rates: str, batch: str) -> list[str]:
    rate = precision[rates][batch]
    share = 100 * rate / precision["matrix_tflops"]
    return [f"{1e3 / precision[times][batch]['best_ms']:.2f}", f"{rate:.3g}", f"{share:.0f} %"]


def _windows(figures: Figures) -> str:
    windows = list(figures["precisions"][0]["keyframes_a_second"])
    rows = [
        [p["dtype"], *(f"{p['keyframes_a_second'][window]:.2f}" for window in windows)] for p in figures["precisions"]
    ]
    return markdown_table(["keyframes/s, window of", *windows], rows)


def _streams(figures: Figures) -> str:
    stream = figures["stream"]
    header = [f"{stream['keyframes']} keyframes, window {stream['window']}", "s", "CPU s",
              *(f"times faster than the {name} (CPU time)" for name in _REFERENCE.values())]  # fmt: skip
    rows = [
        [ours, *_seconds(timing), *map(_ratio, stream["times_faster"][ours].values())]
        for ours, timing in stream["ours"].items()
    ]
    rows += [[_REFERENCE[dtype], *_seconds(timing), "", ""] for dtype, timing in stream["reference"].items()]
    return markdown_table(header, rows)


def _seconds(timing: Figures) -> list[str]:
    return [f"{timing[name] / 1e3:.2f}" for name in ("best_ms", "cpu_ms")]


def _ratio(ratio: Figures) -> str:
    return f"{ratio['time']:.1f} ({ratio['cpu']:.1f})"


def draw_bench(figures: Figures, path: Path) -> None:
    """One plot as PNG: keyframes in a second by window, and the rates against the machine's."""
    figure = Figure(figsize=(12.0, 4.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    stream = figures["stream"]
    for p in figures["precisions"]:
        windows = p["keyframes_a_second"]
        left.plot([int(w) for w in windows], list(windows.values()), marker="o", label=p["dtype"])
        colour = None
        for part, style in (("encode_batch", "--"), ("decode", "-")):
            rates = p[f"{part}_tflops"]
            label = f"{p['dtype']}, {part.split('_')[0]}"
            (line,) = right.plot(
                [int(b) for b in rates], list(rates.values()), style, color=colour, marker="o", label=label
            )
            colour = line.get_color()
        right.axhline(p["matrix_tflops"], color=colour, linestyle=":", label=f"{p['dtype']}, plain product")
    for dtype, timing in stream["reference"].items():
        left.plot(
            stream["window"], 1e3 * stream["keyframes"] / timing["best_ms"], "x", markersize=9, label=_REFERENCE[dtype]
        )
    left.set(xlabel="window, keyframes", ylabel="keyframes a second", yscale="log", title=figures["network"])
    right.set(xlabel="images or pairs in a batch", ylabel="TFLOP/s", ylim=(0, None), title=figures["image"])
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with replacing(path) as scratch:
        canvas.print_png(str(scratch))
