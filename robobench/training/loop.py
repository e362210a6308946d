"""Runs a Train stage: epochs, steps, checkpoints. Only the `stopwatch.account` blocks are timed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from robobench.core.memory import is_out_of_memory
from robobench.core.module_state import eval_mode
from robobench.core.rng import seed_from
from robobench.core.timing import Account, Stopwatch
from robobench.distributed import collectives, signals
from robobench.errors import NonFiniteLossError, StorageError
from robobench.training.accumulation import increase_accumulation, one_step
from robobench.training.averaging import WeightAverage
from robobench.training.base import Batch, Train, check_kept_perturbations
from robobench.training.checkpoint import Checkpoint, StageProgress
from robobench.training.context import (
    ImageSource,
    StageRecord,
    TrainRuntime,
    build_objective,
    make_stage_record,
    reduce_account,
)
from robobench.training.image_state import ImageState
from robobench.training.sampling import batch_sizes, epoch_batches, images_per_epoch

FINAL_METRIC_IMAGES = 256  # training images given to a stage's `final_metrics`
LOSS_CHECK_STEPS = 20  # steps between two checks of the loss on a GPU, since each check waits for the device

EpochLog = Callable[[str, int, dict[str, float]], None]


def run_train(
    runtime: TrainRuntime,
    stage: Train,
    data: ImageSource,
    stopwatch: Stopwatch,
    log: EpochLog = lambda stage, epoch, metrics: None,
    checkpoint: Checkpoint | None = None,
    validate: Callable[[int, bool], dict[str, float]] | None = None,
    average: WeightAverage | None = None,
) -> tuple[StageRecord, nn.Module]:
    """Optimize a stage's objective over its epochs. With a checkpoint, only over the epochs that are left.

    When memory runs out, batches are split into micro-batches whose gradients are added up; the record then has the
    flag "grad-accumulation-N". The first step that runs out of memory may have updated BatchNorm's statistics twice.

    Several processes each take a shard of the same batches in the same order. Gradients and metrics are averaged over
    the images of the whole batch. Buffers, such as BatchNorm's statistics, are those of rank 0.

    Args:
        log: called after each epoch with stage, epoch and mean metrics. The call is not timed. A resumed stage repeats
            the calls of finished epochs.
        checkpoint: saves and restores the stage; None starts from the beginning each time.
        validate: called after each epoch with the epoch and whether it is the last. Returns metrics to log. The call
            is not timed.
        average: of the weights of the model inside the objective. Its updates are timed.

    Returns:
        The stage's record, and the objective with its final state.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
        OutOfMemoryError: memory ran out and the batch cannot be split.
        Interrupted: a signal asked to stop; the step was finished and saved.
        ValueError: there are more processes than images in a batch.
    """
    return _TrainRun(runtime, stage, data, stopwatch, log, checkpoint, validate, average).run()


class _TrainRun:
    """One run of a stage."""

    def __init__(
        self,
        runtime: TrainRuntime,
        stage: Train,
        data: ImageSource,
        stopwatch: Stopwatch,
        log: EpochLog,
        checkpoint: Checkpoint | None,
        validate: Callable[[int, bool], dict[str, float]] | None,
        average: WeightAverage | None,
    ) -> None:
        self.runtime, self.stage, self.data, self.stopwatch = runtime, stage, data, stopwatch
        self.log, self.checkpoint, self.validate, self.average = log, checkpoint, validate, average
        if runtime.threat is not None:
            check_kept_perturbations(stage, runtime.threat)
        self.objective = build_objective(stage, runtime.device)
        runtime.compile(self.objective)
        self.optimizer = stage.optimizer(self.objective)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        sizes = batch_sizes(images_per_epoch(data), stage.batch_size)
        self.sizes = [size for size in sizes for _ in range(stage.replays)]
        if self.sizes[-1] < collectives.world_size():
            raise ValueError(
                f"stage '{stage.name}' has batches of {self.sizes[-1]} images for {collectives.world_size()} processes"
            )
        self.progress = StageProgress()

    @property
    def account(self) -> Account:
        return self.stopwatch.accounts[self.stage.name]

    def run(self) -> tuple[StageRecord, nn.Module]:
        """Run the remaining epochs; return the record and the objective."""
        restored = self._restore()
        for epoch, metrics in enumerate(self.progress.epoch_metrics):
            self.log(self.stage.name, epoch, metrics)
        self._warm_up(restored)
        self.objective.train()
        self.ddp_objective = collectives.wrap_ddp(self.objective)
        remaining = (self.stage.epochs - self.progress.epoch) * len(self.sizes) - self.progress.step
        with (
            self.runtime.reporter.progress_bar(self.stage.name, remaining) as advance,
            torch.random.fork_rng(),
            signals.defer_signals() if self.checkpoint else nullcontext(),
        ):
            for epoch in range(self.progress.epoch, self.stage.epochs):
                first_index = self._train_epoch(epoch, advance)
                if self._finish_epoch(epoch, first_index):
                    break
        collectives.broadcast_module(self.objective)
        if self.average:
            collectives.broadcast_module(self.average.module)
        if self.stage.image_state:
            self.stage.image_state.close()
        return self._record(), self.objective

    def _restore(self) -> bool:
        """Continue from a checkpoint if there is one; return whether there was."""
        restored = self.checkpoint.restore(self.objective, self.optimizer) if self.checkpoint else None
        collectives.broadcast_module(self.objective)
        if self.stage.image_state:
            epoch = restored[0].epoch if restored else 0
            self._open_image_state(self.stage.image_state, epoch)
        self.progress, self.stopwatch.accounts[self.stage.name] = restored or (StageProgress(), Account())
        if restored:
            where = f"epoch {self.progress.epoch + 1}, step {self.progress.step + 1}"
            self.runtime.reporter.info(f"  {self.stage.name}: resuming at {where}")
        return restored is not None

    def _open_image_state(self, state: ImageState, epoch: int) -> None:
        """Open the values per image from which an epoch begins."""
        folder = self.checkpoint.states.side_folder(".images") if self.checkpoint else None
        state.open(folder)
        state.keep(epoch)
        if not state.is_complete(epoch):
            raise StorageError(f"'{folder}' lacks the values of epoch {epoch + 1}; rerun with --overwrite")

    def _warm_up(self, restored: bool) -> None:
        """Warm up the hardware before the clock starts, with smaller micro-batches if memory runs out."""
        progress = self.progress
        while progress.epoch < self.stage.epochs:  # until a step fits into memory; not at all if no epoch is left
            try:
                seconds = warm_up(self.runtime, self.stage, self.objective, self.data, progress.accumulation_steps)
                if not restored:
                    progress.warmup_seconds = seconds
                break
            except (MemoryError, RuntimeError) as err:
                progress.accumulation_steps = increase_accumulation(
                    self.stage, progress.accumulation_steps, self.sizes[0], err
                )

    def _train_epoch(self, epoch: int, advance: Callable[[int], None]) -> Tensor:
        """Take the remaining steps of an epoch; return the image indices (B,) of its first batch."""
        batches = epoch_batches(self.data, self.stage.batch_size, epoch, self.runtime.seed, self.stage.name)
        shuffled, replays = torch.cat(batches).to(self.data.labels.device), self.stage.replays  # copied at once
        order = tuple(index for index in torch.split(shuffled, self.sizes[::replays]) for _ in range(replays))
        while self.progress.step < len(order):
            with self.stopwatch.account(self.stage.name):
                save_now = self._take_steps(epoch, order, advance)
            reduce_account(self.account)
            if self.checkpoint and save_now and self.progress.step < len(order):
                self._save()
        return order[0]

    def _save(self) -> None:
        assert self.checkpoint is not None
        state, epoch = self.stage.image_state, self.progress.epoch
        if state:
            state.flush(epoch)
        self.checkpoint.save(self.objective, self.optimizer, self.progress, self.account)
        if state:
            state.keep(epoch)

    def _take_steps(self, epoch: int, order: tuple[Tensor, ...], advance: Callable[[int], None]) -> bool:
        """Take steps until the epoch ends or a checkpoint is due; return whether one is due."""
        progress = self.progress
        for step in range(progress.step, len(order)):
            for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
                group["lr"] = rate * self.stage.schedule(epoch + step / len(self.sizes))
            self._step(order[step], epoch, step)
            progress.step = step + 1
            if self.average:
                self.average.after_step(epoch * len(self.sizes) + step + 1, len(self.sizes), self.sizes[step])
            check_loss = (
                self.runtime.device == "cpu" or step % LOSS_CHECK_STEPS == 0 or progress.step == len(self.sizes)
            )
            # With several processes `due` is a collective operation and waits for the device, so it is called rarely.
            may_save = check_loss or collectives.world_size() == 1
            save_now = self.checkpoint is not None and may_save and self.checkpoint.due()
            if check_loss or save_now:
                self._check_loss(epoch, step)
            advance(1)
            if save_now:
                return True
        return False

    def _check_loss(self, epoch: int, step: int) -> None:
        loss = self.progress.sums["loss"].item()
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss of stage '{self.stage.name}' became {loss} in epoch {epoch + 1}, step {step + 1}; "
                f"lower the learning rate (now {self.optimizer.param_groups[0]['lr']:.3g})"
            )

    def _step(self, index: Tensor, epoch: int, step: int) -> None:
        """Take one step on this process's shard of a batch. If memory runs out, use more micro-batches."""
        runtime, stage, progress = self.runtime, self.stage, self.progress
        shard, services = collectives.local_shard(index), stage.services
        partners = collectives.local_shard(index.roll(1)) if services.mixup or services.cutmix else None
        perturb = epoch + step / len(self.sizes) >= services.awp_warmup * stage.epochs
        runtime.draw_threat(stage.name, epoch, step // stage.replays)
        rank = (collectives.rank(),) if collectives.rank() else ()  # dropout and the like differ between processes
        while True:
            torch.manual_seed(seed_from(runtime.seed, stage.name, epoch, step, *rank))
            try:
                batch = runtime.batch(self.data, shard, stage.name, epoch, stage.augment, services, partners)
                weight = collectives.shard_weight(len(shard), len(index))
                loss = one_step(
                    runtime,
                    self.objective,
                    self.optimizer,
                    batch,
                    progress.accumulation_steps,
                    weight,
                    services=services,
                    perturb=perturb,
                    wrapped=self.ddp_objective,
                )
                break
            except Exception as err:
                if collectives.world_size() > 1:  # the other processes wait in this step's collectives: no retry
                    # A RuntimeError that is no lack of memory is most likely a collective that another rank broke.
                    local = not isinstance(err, RuntimeError) or is_out_of_memory(err)
                    raise collectives.PeerLost(err, local=local) from err
                self.optimizer.zero_grad(set_to_none=True)
                progress.accumulation_steps = increase_accumulation(stage, progress.accumulation_steps, len(index), err)
                runtime.reporter.warning(
                    f"stage '{stage.name}': out of memory; "
                    f"accumulating gradients over {progress.accumulation_steps} micro-batches"
                )
        values = {"loss": loss.total, **loss.metrics}
        weighted = [value.detach() * len(shard) for value in values.values()]
        for name, value in zip(values, collectives.all_reduce_sums(weighted), strict=True):
            progress.sums[name] = progress.sums.get(name, 0) + value

    def _finish_epoch(self, epoch: int, first_index: Tensor) -> bool:
        """Log an epoch's metrics and save it; return whether training ends here."""
        metrics = {name: value.item() / sum(self.sizes) for name, value in self.progress.sums.items()}
        hook_metrics, ends = self._run_epoch_hook(epoch, first_index)
        metrics |= hook_metrics
        if self.average:
            with self.stopwatch.account(self.stage.name):
                self.average.after_epoch(epoch, self._clean_batches())
            reduce_account(self.account)
        if self.validate:
            last = ends or epoch + 1 == self.stage.epochs
            metrics |= collectives.on_rank_zero(partial(self.validate, epoch, last))
        self.log(self.stage.name, epoch, metrics)
        self.progress.end_epoch(metrics)
        # No checkpoint if training ends here: a run that resumes from it would train one more epoch.
        if not ends and self.checkpoint and self.checkpoint.due():
            self._save()
        return ends

    def _clean_batches(self) -> Iterator[Tensor]:
        """Iterate over the images of an epoch, in order and not augmented."""
        for index in torch.split(torch.arange(images_per_epoch(self.data)), self.stage.batch_size):
            yield self.data.images(index.to(self.data.labels.device))

    def _run_epoch_hook(self, epoch: int, first_index: Tensor) -> tuple[dict[str, float], bool]:
        """Call the stage's `on_epoch_end` with the epoch's first batch, timed."""
        runtime, stage = self.runtime, self.stage
        if stage.on_epoch_end is None:
            return {}, False
        with self.stopwatch.account(stage.name), runtime.autocast():
            collectives.broadcast_module(self.objective)
            runtime.draw_threat(stage.name, epoch, 0)
            result = stage.on_epoch_end(runtime.batch(self.data, first_index, stage.name, epoch, stage.augment))
            collectives.broadcast_module(self.objective)
        reduce_account(self.account)
        return collectives.on_rank_zero(lambda: result)  # the result of rank 0, on every rank

    def _record(self) -> StageRecord:
        """Return the record, with the stage's final metrics and flags (not timed)."""
        progress, epochs = self.progress, self.progress.epoch
        record = make_stage_record(
            self.stage,
            self.account,
            warmup_seconds=progress.warmup_seconds,
            epochs=epochs,
            images=epochs * images_per_epoch(self.data),
        )
        if self.stage.final_metrics is not None:
            with torch.no_grad(), eval_mode(self.objective):
                images = self.data.images(torch.arange(min(len(self.data), FINAL_METRIC_IMAGES)))
                record.metrics, record.flags = self.stage.final_metrics(images)
        if progress.accumulation_steps > 1:
            record.flags = [*record.flags, f"grad-accumulation-{progress.accumulation_steps}"]
        return record


def warm_up(
    runtime: TrainRuntime, stage: Train, objective: nn.Module, data: ImageSource, accumulation_steps: int = 1
) -> float:
    """Take one step on a copy of the objective and random images, to pay one-off costs; return the seconds."""
    stopwatch = Stopwatch(runtime.device)
    with stopwatch.account("warm-up") as account, torch.random.fork_rng():
        model_copy = copy.deepcopy(objective).train()
        runtime.compile(model_copy)
        index = collectives.local_shard(torch.arange(min(len(data), stage.batch_size)))
        real = runtime.batch(data, index, "warm-up", 0)
        batch = Batch(real.rng.uniform_like(real.images), real.labels, real.index, stage.epochs, real.rng)
        optimizer = torch.optim.SGD(model_copy.parameters(), lr=0.0)  # allocates no state
        one_step(runtime, model_copy, optimizer, batch, accumulation_steps, services=stage.services)
    return account.seconds
