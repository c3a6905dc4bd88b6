"""How good pair predictors are on single pairs of images with truth: one table, a picture, and the figures as JSON.

    python benchmark/pairs.py [PACK...] [--checkpoints guess geometric tiny] [--rendered 120] [--stereo] [--gaps 1 2]
        [--intrinsics estimate|pack] [--limit 12] [--out pairs.json]

A pack is a folder with ``cameras.json``; pairs of its frames are taken ``--gaps`` apart. ``--rendered`` takes held-out
rendered pairs, ``--stereo`` the Middlebury stereo pair that scikit-image ships. A pair is predicted both ways. Columns,
medians over pairs: error of rotation and of the translation's direction (degrees), depth AbsRel of the first view after
the median scale, share of its pixels with a prediction, focal error (percent, signed), failed pairs, seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dust3r_ros.config import ReconstructorConfig
from dust3r_ros.data import Intrinsics
from dust3r_ros.evaluation.packs import load_pack
from dust3r_ros.evaluation.pairs import Guess, PairsResult, TrueView, evaluate_pairs
from dust3r_ros.evaluation.report import markdown_table
from dust3r_ros.pipeline import load_predictor
from dust3r_ros.predictor import PairPredictor
from dust3r_ros.training.assess import held_out_pairs
from dust3r_ros.training.pairs import network_images

RENDERED_SIZE = (336, 448)
Pairs = list[tuple[TrueView, TrueView]]
Row = tuple[str, str, PairsResult]


def rendered_pairs(count: int) -> Pairs:
    """Held-out rendered pairs with the flaws of real cameras, always the same."""
    batch = held_out_pairs(RENDERED_SIZE, count)[:count]
    images = network_images(batch, torch.Generator().manual_seed(0))
    pixels = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()
    found = []
    for n in range(len(batch)):
        poses = (np.eye(4), batch.second_to_first[n].double().numpy())
        views = []
        for k in (0, 1):
            lens = Intrinsics(*batch.intrinsics[n, k].tolist(), width=RENDERED_SIZE[1], height=RENDERED_SIZE[0])
            views.append(TrueView(pixels[n, k], lens, poses[k], batch.depth[n, k].float().numpy(), f"camera {n}"))
        found.append((views[0], views[1]))
    return found


def stereo_pair() -> Pairs:
    """Middlebury's motorcycle (Scharstein et al. 2014), from scikit-image's wheel: the right view is 0.193 m beside."""
    from skimage.data import stereo_motorcycle

    left, right, disparity = stereo_motorcycle()
    focal, cx, cy, shift, baseline = 994.978, 311.193 + 0.5, 254.877 + 0.5, 31.086, 0.193001
    known = np.isfinite(disparity)
    depth = np.where(known, focal * baseline / (np.where(known, disparity, 1.0) + shift), 0)
    height, width = disparity.shape
    beside = np.eye(4)
    beside[0, 3] = baseline
    one = TrueView(left, Intrinsics(focal, focal, cx, cy, width, height), np.eye(4), depth, "left")
    return [(one, TrueView(right, Intrinsics(focal, focal, cx + shift, cy, width, height), beside, None, "right"))]


def pack_pairs(folder: Path, gap: int, limit: int) -> Pairs:
    """At most ``limit`` pairs of frames ``gap`` apart, evenly spread."""
    frames = load_pack(folder).frames
    firsts = np.unique(np.linspace(0, len(frames) - gap - 1, limit).astype(int))
    wanted = sorted({n for first in firsts for n in (first, first + gap)})
    views = {
        n: TrueView(
            frames[n].load_image(), frames[n].intrinsics, frames[n].camera_to_world, frames[n].load_depth(), folder.name
        )
        for n in wanted
    }
    return [(views[n], views[n + gap]) for n in firsts]


def row(source: str, model: str, found: PairsResult) -> list[str]:
    m = found.median
    errors = [f"{m.rotation_deg:.2f}", f"{m.direction_deg:.1f}", f"{m.absrel:.3f}", f"{m.covered:.2f}"]
    cells = ["-" if cell == "nan" else cell for cell in [*errors, f"{m.focal_percent:+.1f}"]]
    return [source, model, str(len(found.errors)), *cells, str(found.failed), f"{found.seconds:.2f}"]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Bars of the three main errors, grouped by source."""
    sources, models = (list(dict.fromkeys(row[k] for row in rows)) for k in (0, 1))
    figure = Figure(figsize=(14, 4.5), dpi=100, layout="constrained")
    titles = {"rotation_deg": "relative rotation, degrees", "direction_deg": "translation's direction, degrees",
              "absrel": "depth AbsRel"}  # fmt: skip
    for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for k, model in enumerate(models):
            values = {source: getattr(found.median, name) for source, m, found in rows if m == model}
            places = np.arange(len(sources)) + (k - (len(models) - 1) / 2) * 0.8 / len(models)
            heights = [np.nan_to_num(values.get(source, 0.0)) for source in sources]
            axes.bar(places, heights, 0.8 / len(models), label=model)
        axes.set_xticks(range(len(sources)), sources, rotation=20, ha="right", fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.grid(axis="y", alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    with path.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)


def predictor_of(checkpoint: str, device: str) -> PairPredictor:
    """A new one each time: ``geometric`` pools what it learns of a camera."""
    return Guess() if checkpoint == "guess" else load_predictor(ReconstructorConfig(checkpoint, device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", nargs="*", type=Path)
    parser.add_argument("--checkpoints", nargs="+", default=["guess", "geometric", "tiny"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rendered", type=int, default=0, metavar="PAIRS")
    parser.add_argument("--stereo", action="store_true")
    parser.add_argument("--gaps", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--intrinsics", choices=("pack", "estimate"), default="estimate")
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--out", type=Path, help="JSON; the picture goes beside it")
    options = parser.parse_args()
    sources: dict[str, Pairs] = {}
    if options.rendered:
        sources["rendered"] = rendered_pairs(options.rendered)
    if options.stereo:
        sources["stereo pair"] = stereo_pair()
    for folder in options.packs:
        for gap in options.gaps:
            sources[f"{folder.name}, {gap} apart"] = pack_pairs(folder, gap, options.limit)
    rows: list[Row] = []
    for name, pairs in sources.items():
        for checkpoint in options.checkpoints:
            predictor = predictor_of(checkpoint, options.device)
            found = evaluate_pairs(pairs, predictor, known_intrinsics=options.intrinsics == "pack")
            rows.append((name, predictor.info.name, found))
    header = ("pairs of", "model", "n", "rot deg", "dir deg", "AbsRel", "covered", "focal %", "failed", "s")
    print(markdown_table(header, [row(*r) for r in rows]))
    if options.out:
        table = [{"pairs of": source, "model": model, **asdict(found)} for source, model, found in rows]
        options.out.write_text(json.dumps(table, indent=1))
        draw(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
