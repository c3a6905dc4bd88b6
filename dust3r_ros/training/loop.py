"""A training run: as long as there is time, then a state to go on from and a checkpoint to use."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dust3r_ros.config import TrainingConfig
from dust3r_ros.errors import TrainingError
from dust3r_ros.interruption import interruption
from dust3r_ros.network import ModelSource, save_model
from dust3r_ros.network.weights import resolve_device
from dust3r_ros.options import Value, flatten_config
from dust3r_ros.training import record
from dust3r_ros.training.assess import Assessment, assess, held_out_pairs
from dust3r_ros.training.begin import Source, batch_of, make_network, make_stream, options_with, uses_bfloat16
from dust3r_ros.training.croco import share_decoder
from dust3r_ros.training.pairs import PairBatch, chunk_seed
from dust3r_ros.training.stages import Position, Stage, Task, all_stages, chosen, learning_rate, position
from dust3r_ros.training.state import Progress, SavedRun, read_run, restore, save_run
from dust3r_ros.training.step import Learner, StepResult, StepSettings
from dust3r_ros.training.team import Team, joined, team_of_environment

log = logging.getLogger(__name__)

STATE, CHECKPOINT = "state.safetensors", "model"
OF_THIS_CALL = ("device", "minutes", "workers", "execution")  # options that a resumed run does not take over
_SCRATCH_RATE, _FINE_RATE = 5e-4, 2e-5
_ROW_SECONDS = 20.0
_EMA_SHARE = 0.02  # of a short run's pairs: what was learned at smaller images must have left the average at its end
_CHUNKS_APART = 1_000_000_000  # of the processes of a team: they draw different pairs
_LICENCE = "Apache-2.0"
_MEANS = ("loss", "error", "matching", "motion", "gradient")  # of the steps since the last row


@dataclass(frozen=True)
class RunResult:
    """What a call of ``train`` left: the state's progress, of so many ``pairs`` of the whole run, and the last
    measurement if there was one.
    """

    progress: Progress
    pairs: int
    finished: bool
    interrupted: bool
    assessment: Assessment | None


def train(
    folder: Path,
    options: Mapping[str, Value],
    *,
    source: Source | None = None,
    report: Callable[[str, int, int], None] | None = None,
) -> RunResult:
    """Begin the run in ``folder``, or go on with it.

    ``options`` are those of TrainingConfig that were given, by name; a run that goes on keeps its other ones, except
    ``OF_THIS_CALL``. ``source`` gives other pairs than rendered ones. ``report`` receives stage, pairs done and all
    pairs. SIGINT and SIGTERM end the call as the end of its time does: everything is saved. Processes that ``torchrun``
    started train together; the first of them measures, logs and saves.

    Raises TrainingError when the folder holds a state that cannot be used, ConfigError for wrong options.
    """
    saved = read_run(folder / STATE) if (folder / STATE).exists() else None
    config = options_with(options, saved)
    team = team_of_environment()
    device = team.device(resolve_device(config.device))
    with interruption() as stopped, joined(team, device):
        run = Run(folder, config, device, saved, source, team)
        try:
            return run.go(stopped, report)
        finally:
            run.stream.close()


class Run:
    """The parts of a run, and its loop."""

    def __init__(
        self, folder: Path, config: TrainingConfig, device: torch.device, saved: SavedRun | None,
        source: Source | None, team: Team,
    ) -> None:  # fmt: skip
        self.folder, self.config, self.device, self.team = folder, config, device, team
        self.progress = saved.progress if saved else Progress()
        torch.manual_seed(config.seed)
        chunks = self.progress.chunks + _CHUNKS_APART * team.rank
        generator = torch.Generator(device).manual_seed(chunk_seed(config.seed + team.rank, -1 - self.progress.steps))
        model = make_network(config, device, saved)
        settings = StepSettings(
            matching=config.matching,
            motion=config.motion,
            ema_pairs=min(StepSettings.ema_pairs, round(_EMA_SHARE * config.pairs)),
            bfloat16=uses_bfloat16(config.precision, device),
            compiled=config.execution == "compiled",
        )
        self.learner = Learner(model, settings, generator, team)
        if saved:
            restore(self.learner, saved)
        self.stages = chosen(all_stages(model.config), _stage_names(config))
        self.stream = make_stream(config, device, source, chunks)
        self._order = torch.Generator().manual_seed(chunk_seed(config.seed + team.rank, self.progress.steps))
        self._rate = config.learning_rate or (_FINE_RATE if config.checkpoint else _SCRATCH_RATE)
        self._held_out: PairBatch | None = None
        self._rows: list[StepResult] = []
        self._logged = self.progress

    def go(self, stopped: Callable[[], bool], report: Callable[[str, int, int], None] | None) -> RunResult:
        """Train until the time, the pairs or the user's patience is over."""
        if self.team.leads:
            record.cut_after(self.folder / record.LOSSES, record.LossRow, self.progress.pairs)
            record.cut_after(self.folder / record.ERRORS, record.ErrorRow, self.progress.pairs)
        started, before = time.monotonic(), self.progress.seconds
        saved_at = assessed_at = started
        interrupted = self.team.any(stopped(), self.device)
        while self.progress.pairs < self.config.pairs and not interrupted:
            place = self._enter_stage()
            self._step(place)
            now = time.monotonic()
            self.progress = replace(self.progress, seconds=before + now - started, chunks=self.stream.chunks)
            self._log(place.stage)
            if report and self.team.leads:
                report(place.stage.name, self.progress.pairs, self.config.pairs)
            interrupted = self.team.any(stopped(), self.device)
            if self.config.minutes and self.team.any(now - started > 60 * self.config.minutes, self.device):
                break
            if now - assessed_at > 60 * self.config.assess_minutes:
                self.measure()
                assessed_at = time.monotonic()
            if now - saved_at > 60 * self.config.save_minutes:
                self.save()
                saved_at = time.monotonic()
        self._log(None)
        self.save()
        measured = None if interrupted else self.measure()
        if measured is not None:
            record.draw_curves(self.folder)
        finished = self.progress.pairs >= self.config.pairs
        return RunResult(self.progress, self.config.pairs, finished, interrupted, measured)

    def save(self) -> None:
        """The state, and the averaged weights as a checkpoint that ``load_model`` reads, if this process leads."""
        if not self.team.leads:
            return
        options = {name: value for name, value in flatten_config(self.config).items() if name not in OF_THIS_CALL}
        save_run(self.folder / STATE, self.learner, options, self.progress, small=self.config.state == "small")
        name = self.config.architecture if not self.config.checkpoint else "fine-tuned"
        origin = self.learner.model.source
        licence = origin.licence if self.config.checkpoint else _LICENCE
        save_model(self.learner.averaged(), self.folder / CHECKPOINT, ModelSource(name, True, licence), "float16")
        record.draw_curves(self.folder)

    def measure(self) -> Assessment | None:
        """Errors of the averaged weights on held-out pairs, logged; None before pointmaps are learned, and in a process
        that does not lead.
        """
        place = position(self.stages, self.progress.pairs, self.config.pairs)
        if not self.team.leads or not self.config.assess_pairs or place.stage.task is Task.COMPLETE:
            return None
        size = place.stage.sizes[0]
        if self._held_out is None or self._held_out.size != size:
            self._held_out = held_out_pairs(size, self.config.assess_pairs, str(self.device))
        found = assess(self.learner.averaged(), self._held_out)
        m, t = found.model, found.trivial
        record.append_row(
            self.folder / record.ERRORS,
            record.ErrorRow(
                self.progress.pairs, self.progress.seconds, place.stage.name, *size, m.rotation_deg, m.direction_deg,
                m.absrel, t.rotation_deg, t.direction_deg, t.absrel,
            ),
        )  # fmt: skip
        log.info(
            "held out after %d pairs: rotation %.1f (guess %.1f) degrees, direction %.1f (%.1f), AbsRel %.3f (%.3f)",
            self.progress.pairs, m.rotation_deg, t.rotation_deg, m.direction_deg, t.direction_deg, m.absrel, t.absrel,
        )  # fmt: skip
        return found

    def _enter_stage(self) -> Position:
        """Where the run is now; a new stage is prepared for."""
        place = position(self.stages, self.progress.pairs, self.config.pairs)
        if place.stage.name != self.progress.stage:
            before = [s.task for s in self.stages if s.name == self.progress.stage]
            if before == [Task.COMPLETE] and place.stage.task is Task.REGRESS:
                share_decoder(self.learner.model)
                self.learner.restart_optimiser()
            if self.team.leads:
                sizes = ", ".join(f"{w}x{h}" for h, w in place.stage.sizes)
                log.info("stage %s: images of %s", place.stage.name, sizes)
            self.progress = replace(self.progress, stage=place.stage.name)
        batch = max(batch_of(self.config, self.learner.model.config, size, self.device) for size in place.stage.sizes)
        self.stream.show(tuple(dict.fromkeys(place.stage.sizes)), place.baseline, batch)
        return place

    def _step(self, place: Position) -> None:
        size = place.stage.sizes[self.progress.steps % len(place.stage.sizes)]
        count = batch_of(self.config, self.learner.model.config, size, self.device)
        batch = self.stream.draw(size, count, self._order).to(self.device)
        rate = learning_rate(self._rate, self.progress.pairs, self.config.pairs, self.config.warm_up)
        self._rows.append(self.learner.step(batch, place.stage.task, rate, self.progress.pairs))
        done = self.progress.pairs + len(batch) * self.team.size
        self.progress = replace(self.progress, pairs=done, steps=self.progress.steps + 1)

    def _log(self, stage: Stage | None) -> None:
        """A row of the table when it is time, or when ``stage`` is None, at the end."""
        if not self.team.leads:
            self._rows.clear()
            return
        p = self.progress
        since = p.seconds - self._logged.seconds
        if not self._rows or (stage is not None and since < _ROW_SECONDS):
            return
        taken = self._rows
        finite = [row for row in taken if row.gradient < float("inf")] or taken
        means = {name: sum(getattr(r, name) for r in finite) / len(finite) for name in _MEANS}
        done = p.pairs - self._logged.pairs
        rate = learning_rate(self._rate, p.pairs, self.config.pairs, self.config.warm_up)
        speed = done / max(since, 1e-6)
        row = record.LossRow(p.pairs, p.steps, p.seconds, p.stage, rate, **means, pairs_per_second=speed)
        record.append_row(self.folder / record.LOSSES, row)
        log.info(
            "%d pairs, %s: error %.4f, matching %.3f, motion %.4f, %.1f pairs/s", p.pairs, p.stage, row.error,
            row.matching, row.motion, row.pairs_per_second,
        )  # fmt: skip
        if len(finite) < len(taken) / 2:
            raise TrainingError("more than half of the last steps had no finite gradient: lower learning_rate")
        self._rows.clear()
        self._logged = p


def _stage_names(config: TrainingConfig) -> list[str]:
    if config.stages:
        return [name.strip() for name in config.stages.split(",")]
    return ["full"] if config.checkpoint else ["completion", "near", "middle", "full"]
