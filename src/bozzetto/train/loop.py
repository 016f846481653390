"""The one training loop."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bozzetto.batches import Batch, batch_size, call, device_of, in_mode, split_batch, to
from bozzetto.train.checkpoint import read_checkpoint, write_checkpoint
from bozzetto.train.dropout import dropping
from bozzetto.train.features import Found, captured, check_features, feature_loss
from bozzetto.train.history import Diverged, History, Progress
from bozzetto.train.loading import check_reusable, check_teacher, groups_of, steps_of
from bozzetto.train.metrics import Metric, evaluate
from bozzetto.train.objective import objective
from bozzetto.train.processes import Alone, together
from bozzetto.train.randomness import Randomness
from bozzetto.train.recipe import Recipe
from bozzetto.train.run import Run

__all__ = ["train"]

_DEFAULT = Recipe()


@torch.inference_mode(False)
@torch.enable_grad()
def train(
    model: nn.Module,
    loader: Iterable[Batch],
    recipe: Recipe = _DEFAULT,
    *,
    teacher: nn.Module | None = None,
    val: Iterable[Batch] | None = None,
    metric: Metric | Sequence[Metric] = "accuracy",
    callbacks: Iterable[Callable[[Progress], None]] = (),
    checkpoint: Path | str | None = None,
    checkpoint_every: int | None = None,
    accelerator: Any = None,
) -> History:
    """Train the model in place as the recipe says, from labels, a teacher, or both.

    The same seed, data and machine give the same weights bit for bit, interrupted or not, with or
    without a validation. Global random state, the loader's generators and all training flags are
    afterwards as before.

    Args:
        model: its trainable parameters and its buffers change, with all its modules in training
            mode. It stays on its device, to which the batches are moved.
        loader: batches as in `bozzetto.batches`, to be iterated once an epoch. The order is the
            loader's own affair; see `Recipe.seed` and `Randomness`.
        recipe: how.
        teacher: a model of the same outputs, which is not changed; batches need no target then.
        val: batches on which the metrics are measured after every epoch, where they are labelled,
            and with `Recipe.deliver="best"` the objective.
        metric: as in `evaluate`.
        callbacks: each is called with a Progress after every step and every epoch.
        checkpoint: file that holds the whole run after every epoch. If it exists, the run goes on
            from there.
        checkpoint_every: steps after which it is also written within an epoch.
        accelerator: an `accelerate.Accelerator`, for several processes (data parallel, FSDP 2) and
            its device; see `Processes`. All of them call this with the same arguments; callbacks
            and checkpoints are the first one's. A sharded model stays so: see `whole_state`.

    Raises:
        Diverged: (a FloatingPointError) if the loss or the weights become NaN or infinite. The
            model then has the weights with which that epoch began or was resumed; the checkpoint
            is of no later time.
        CheckpointMismatch: (a ValueError) if the checkpoint is of another model, recipe or loader.
        ValueError: if the loader is empty or cannot be iterated again, or a batch does not fit.
        OSError: if a checkpoint cannot be written; the previous one is still there.
    """
    check_reusable("loader", loader, recipe.epochs)
    check_reusable("val", val, recipe.epochs + (recipe.deliver == "best"))
    check_teacher(model, teacher)
    check_features(model, teacher, recipe.features)
    if recipe.deliver == "best" and val is None:
        raise ValueError("deliver='best' needs batches to choose on: val; got none")
    if checkpoint_every is not None and (checkpoint is None or checkpoint_every < 1):
        raise ValueError(f"checkpoint_every needs a checkpoint and >= 1; got {checkpoint_every}")
    steps = steps_of(loader, recipe.accumulate)
    processes = together(accelerator)
    run = Run(model, recipe, steps=steps, distilled=teacher is not None, processes=processes)
    loop = _Loop(
        run=run,
        loader=loader,
        teacher=teacher,
        val=val,
        metrics=[metric] if isinstance(metric, str) or callable(metric) else list(metric),
        callbacks=list(callbacks) if processes.rank == 0 else [],
        checkpoint=None if checkpoint is None else Path(checkpoint),
        every=checkpoint_every,
        processes=processes,
        random=Randomness(recipe.seed, device_of(model), loader),
    )
    with ExitStack() as borrowed:
        borrowed.enter_context(in_mode(model, training=True))
        if recipe.dropout is not None:
            borrowed.enter_context(dropping(model, recipe.dropout))
        if teacher is not None:
            borrowed.enter_context(in_mode(teacher, training=False))
        borrowed.enter_context(loop.random.borrowed())
        return loop.run_all()


@dataclass
class _Loop:
    """A run with all that it needs from outside."""

    run: Run
    loader: Iterable[Batch]
    teacher: nn.Module | None
    val: Iterable[Batch] | None
    metrics: list[Metric]
    callbacks: list[Callable[[Progress], None]]
    checkpoint: Path | None
    every: int | None
    processes: Alone
    random: Randomness
    resumed: list[Tensor] | None = None  # random state in the middle of an epoch
    began: float = field(default_factory=time.perf_counter)
    skipped: int = 0  # steps that were done before this process
    samples: int = 0

    def run_all(self) -> History:
        run = self.run
        if self.checkpoint is not None:
            self._open(self.checkpoint)
        try:
            if run.recipe.deliver == "best" and run.best is None:
                run.consider(self._held_out())
            while run.epoch < run.recipe.epochs:
                self._epoch()
        finally:
            run.optimizer.zero_grad()
        run.deliver()
        return run.history()

    def _open(self, path: Path) -> None:
        """Go on from the checkpoint, or make sure that there can be one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            state = self.processes.cut(read_checkpoint(path), self.run.model)
            self.run.load(state)
            self.resumed = state["random"][self.processes.rank]
            self.skipped = len(self.run.losses)

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        self.run.check_weights()
        random = self.processes.lists(self.random.state())
        state, failed = self.processes.whole({**self.run.state(), "random": random}), None
        if self.processes.rank == 0:
            try:
                write_checkpoint(self.checkpoint, state)
            except OSError as error:
                failed = error
        if self.processes.sum(failed is not None):
            raise failed or OSError(f"the first process could not write {self.checkpoint}")

    def _epoch(self) -> None:
        run, safe = self.run, self.run.weights()  # one copy of the model, to fall back on
        try:
            self._steps()
            run.check_weights()
        except Diverged:
            run.model.load_state_dict(safe)
            raise
        scores = self._validate()
        run.complete_epoch(scores)
        self._save()
        self._tell(run.epochs[-1]["loss"], scores)

    def _steps(self) -> None:
        """The steps of an epoch, or those that are left of it."""
        run = self.run
        self.random.begin(run.epoch)
        groups = groups_of(self.loader, run.recipe.accumulate)
        if run.step and self.resumed is not None:
            for _ in islice(groups, run.step):
                pass
            self.random.restore(self.resumed)
        for group in groups:
            if run.step == run.steps:
                raise ValueError(
                    f"the loader's length says {run.steps} steps; it goes on after them"
                )
            if not run.step:  # the loader has drawn its order, the same in every process
                self.random.part(run.epoch, self.processes.rank)
            self._step(group)
        if not run.step:
            raise ValueError(f"the loader gave no batches in epoch {run.epoch + 1}")

    def _step(self, group: list[Batch]) -> None:
        run = self.run
        rate = run.set_rate()
        run.optimizer.zero_grad()
        loss = self._gradients(group)
        if run.recipe.clip is not None:
            found = nn.utils.clip_grad_norm_(run.model.parameters(), run.recipe.clip)
            norm = self.processes.norm(found)
            if not bool(norm.isfinite()):
                raise run.diverged("the gradient is not finite", step=len(run.losses) + 1)
        run.advance(loss, rate)
        if self.every is not None and len(run.losses) % self.every == 0:
            self._save()
        self._tell(loss, {})

    def _gradients(self, group: list[Batch]) -> float:
        """Gradients of the mean loss over all samples of the group; returns that loss."""
        sizes, mean, count = [batch_size(batch) for batch in group], 0.0, self.processes.count
        if not all(sizes):
            raise ValueError(f"a batch needs at least one sample; got batches of {sizes}")
        for place, (batch, size) in enumerate(zip(group, sizes, strict=True), start=1):
            own, counted = self.processes.share(batch, size)
            more = place < len(group)
            with self.processes.waiting(self.run.network) if more else nullcontext():
                loss = self._loss(own) * (counted / sum(sizes))
                mean += self.processes.sum(float(loss.detach()))
                if not math.isfinite(mean):
                    raise self.run.diverged(f"the loss is {mean}", step=len(self.run.losses) + 1)
                (loss * count).backward()  # processes average their gradients
        self.samples += sum(sizes)
        return mean

    def _loss(self, batch: Batch) -> Tensor:
        moved, taught, recipe = to(batch, self.random.device), None, self.run.recipe
        theirs: Found = {}
        with self._precision(), captured(self.run.model, recipe.features) as own:
            output = call(self.run.network, moved)
            if self.teacher is not None:
                with torch.no_grad(), captured(self.teacher, recipe.features) as theirs:
                    taught = call(self.teacher, to(batch, device_of(self.teacher)))
        loss = objective(recipe, output, split_batch(moved)[2], taught)
        return loss + recipe.feature_weight * feature_loss(own, theirs) if theirs else loss

    def _precision(self) -> AbstractContextManager[Any]:
        if self.run.recipe.precision == "bfloat16":
            return torch.autocast(self.random.device.type, torch.bfloat16)
        return nullcontext()

    def _validate(self) -> dict[str, float]:
        if self.val is None:
            return {}
        scores: dict[str, float] = {}
        best = self.run.recipe.deliver == "best"
        with self.run.evaluated():
            if not best or split_batch(next(iter(self.val)))[2] is not None:
                scores = evaluate(self.run.model, self.val, self.metrics)
        if best:
            scores["objective"] = self._held_out()
            self.run.consider(scores["objective"])
        return scores

    def _held_out(self) -> float:
        """The mean of the objective over all samples of `val`."""
        total, count = 0.0, 0
        model = self.run.model
        with self.run.evaluated(), in_mode(model, training=False), torch.no_grad():
            for batch in self.val or ():
                size = batch_size(batch)
                total, count = total + size * float(self._loss(batch)), count + size
        if not count or not math.isfinite(total):
            raise ValueError(f"deliver='best' needs val to give a finite loss; got {total}")
        return total / count

    def _tell(self, loss: float, metrics: dict[str, float]) -> None:
        run, seconds = self.run, time.perf_counter() - self.began
        done, steps = len(run.losses), run.total
        pace = seconds / max(done - self.skipped, 1)
        progress = Progress(
            epoch=run.epoch + (run.step > 0),
            epochs=run.recipe.epochs,
            step=done,
            steps=steps,
            loss=loss,
            lr=run.rates[-1],
            samples_per_second=self.samples / seconds,
            seconds_left=None if steps is None else pace * (steps - done),
            metrics=metrics,
        )
        for callback in self.callbacks:
            callback(progress)
