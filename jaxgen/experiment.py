"""An experiment: one configuration, and what is done with it, the same for every family of models.

`train` wires the data, the train step, validation, reports and checkpoints together; `dry_run` only looks at shapes; the report at the end,
`finish`, is in final_report.py. A model's methods (`log_prob`, `elbo`, `sample(..., known=)`), not its class, decide what is done with it.
"""

import dataclasses
import signal
import sys
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxgen import config, evaluation, sharding, trained, training
from jaxgen import stages as staging
from jaxgen.data import DataConfig, Dataset, class_names
from jaxgen.data.arrays import NO_SPLIT
from jaxgen.data.augment import augmented
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.measures import scores
from jaxgen.models import MODELS, build, count_parameters
from jaxgen.processes import interruption, printing
from jaxgen.processes.interruption import INTERRUPTED, PREEMPTED
from jaxgen.reports import first_line
from jaxgen.reports.drawing import captions_for, draw_for, modelled, noun, with_inputs
from jaxgen.reports.drawing import draw as draw  # for scripts, which import it from this file
from jaxgen.reports.final_report import finish as finish
from jaxgen.reports.final_report import load_data as load_data
from jaxgen.reports.final_report import validates, without_test
from jaxgen.runs import checkpoint, report
from jaxgen.runs.report import ReportConfig
from jaxgen.sharding import announce, warn
from jaxgen.stages import Stage
from jaxgen.training import OptimizerConfig, TrainConfig

Sets = tuple[Dataset, Dataset | None]
"""The training and the validation split; None where there is nothing to validate on."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run: what is trained, on what, how, where it is kept, and what its reports hold.

    stages: parts of the model that are trained before it, or that start from other runs, see stages.py; on the command line
    --stages.NAME.train.steps 1000, or --stages.NAME.start_from RUN.
    """

    model: Any
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    workdir: str = "runs/experiment"  # folder of the run: checkpoints, metrics, pictures; local or gs://
    report: ReportConfig = ReportConfig()
    stages: dict[str, Stage] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.workdir:
            raise ConfigError("workdir", "a folder", "nothing")
        staging.check_stages(self.model, self.stages)

    def of_stage(self, name: str) -> "Experiment":
        """The experiment that trains one part, on the same data, in the folder WORKDIR/NAME."""
        stage, workdir = self.stages[name], f"{self.workdir.rstrip('/')}/{name}"
        wanted = dataclasses.replace(self.report, metrics=())  # the metrics chosen for the whole model may not exist for a part
        return Experiment(getattr(self.model, name), self.data, stage.optimizer, stage.train, workdir, wanted, stage.stages)


def train(
    experiment: Experiment,
    restart=False,
    sets: Sets | None = None,
    from_step: int | None = None,
    allow_data_change: bool = False,
) -> int:
    """Train, or go on from the newest intact checkpoint. Returns 0 at the end; 130 (SIGINT) or 75 after a signal and a checkpoint.

    sets: the splits that are in memory already; None loads those that `experiment.data` names. A run with stages trains them
    first, in their order; once it has a checkpoint of its own, which holds their weights too, it does not read their folders again.
    from_step: go on from this checkpoint; the later ones, and the rows of metrics after it, are deleted once its state was read.
    allow_data_change: go on, with a warning, where a split has other examples than when the run began.
    """
    if from_step is not None:
        if restart:
            raise ConfigError("--from-step", "either --from-step or --restart", "both")
        checkpoint.check_step(experiment.workdir, from_step, "--from-step")
    if not restart and (saved := checkpoint.begun_config(experiment.workdir)):
        asked, experiment = experiment, dataclasses.replace(experiment, data=experiment.data.as_begun(saved.get("data") or {}))
        if asked.data.splits != experiment.data.splits and asked.data.follows_rule:
            announce(f"{experiment.workdir} keeps the rule of splits by which it began: {experiment.data.splits}, not {asked.data.splits}")
    options = experiment.train
    shapes = jax.eval_shape(lambda: build(experiment.model, options.seed))
    if closed_form(shapes):
        _check_closed_form(experiment)
    in_memory = sets is not None
    training_set = load_data(experiment, "train", sets)
    validation_set = load_data(experiment, "validation", sets) if validates(experiment) else None
    sets = training_set, validation_set
    if experiment.data.augment and "image" not in training_set.features:
        raise ConfigError("data.augment", "none, since only images are augmented", ", ".join(experiment.data.augment))
    experiment = _with_class_names(experiment, training_set)
    fingerprint = training_set.fingerprint(options.batch_size, options.seed) | _contents_of_others(experiment, validation_set, in_memory)
    mesh = sharding.make_mesh(options.fsdp)
    optimizer = make_optimizer(experiment)
    if restart:  # an experiment whose state cannot be built fails here, before the old run is deleted
        _shapes(experiment, optimizer)
    if experiment.stages and (restart or checkpoint.newest(experiment.workdir) is None):
        staging.check_parts(experiment.model, experiment.stages)
    complete = partial(_completed, [*staging.classes(experiment.model), type(experiment.data)])
    saved = config.to_json(dataclasses.replace(experiment, data=experiment.data.absolute()))
    opened = checkpoint.Checkpointer(
        experiment.workdir, saved, fingerprint, restart=restart, complete=complete, allow_data_change=allow_data_change
    )
    with opened as checkpoints:
        if restart:  # all at once: if this run is killed now, it must not go on with the old weights of a later stage
            _clear_stages(experiment)
        evaluation.check_metrics(shapes, training_set if validation_set is None else validation_set, experiment.report.metrics)
        if closed_form(shapes):
            return _fit(experiment, build(experiment.model, options.seed), checkpoints, sets, mesh)
        begun = not experiment.stages or sharding.first_process_says(len(checkpoints.steps()))
        if not begun and (code := _train_stages(experiment, sets, allow_data_change)):
            return code
        state = _first_state(experiment, optimizer, mesh)
        resumed, state = checkpoints.restore(state, from_step) or (0, state)
        if not resumed and (experiment.stages or hasattr(shapes, "initialise")):  # initialise: on the first global batch, never again
            state = None  # frees its memory before the next state is made
            batch = training_set.batch(0, options.batch_size, options.seed, process=(0, 1)) if hasattr(shapes, "initialise") else None
            state = _first_state(experiment, optimizer, mesh, batch, _trained_parts(experiment))
        reporter = report.Reporter(experiment.workdir, resumed, writer=jax.process_index() == 0, gone=checkpoints.gone)
        with reporter, interruption.Interruption(checkpoints.steps) as stop:
            announce(first_line.beginning(experiment, resumed, training_set))
            run = _Run(experiment, checkpoints, reporter, validation_set, mesh, training_set, stop)
            run.validate_again(resumed, state)
            batches = training_set.batches(resumed, options.batch_size, options.seed)
            if experiment.data.augment:
                batches = augmented(batches, experiment.data.augment, options.seed, resumed, (jax.process_index(), jax.process_count()))
            state = training.fit(
                state,
                training.make_train_step(optimizer, mesh, options.ema_decay, options.accumulate),
                (sharding.place_batch(mesh, batch) for batch in batches),
                jax.random.key(options.seed),
                options.steps,
                on_metrics=run.log,
                events=((options.eval_every, run.validate_and_save),),
                stop=stop,
                max_seconds=options.max_minutes and 60 * options.max_minutes,
            )
            # Does nothing if the validation at this step has saved it; if that save failed (a full disk), tries again and raises.
            run.save(int(state.step), state, last=True)
            if stop.signal is None:
                return 0
            name = signal.Signals(stop.signal).name
            announce(f"stopped by {name} after step {int(state.step)}; saved; the same command goes on from there")
            return INTERRUPTED if stop.signal == signal.SIGINT else PREEMPTED


def _contents_of_others(experiment: Experiment, validation_set: Dataset | None, in_memory: bool) -> dict[str, Any]:
    """{"validation": its content, "test": its content}, those that there are: arrays in memory and some data have no test split.

    Warns where there is none, and raises DataError where it cannot be read: the report at the end would.
    """
    contents = {} if validation_set is None else {"validation": validation_set.content()}
    try:
        return contents | {"test": load_data(experiment, "test").content()}
    except NO_SPLIT as error:
        evaluated = "the validation split" if validates(experiment) else "nothing"
        _warn_once("" if in_memory else f"no test split, so the report at the end evaluates {evaluated} ({without_test(error)})")
    except (OSError, ValueError):
        if not in_memory:
            raise
    return contents


def _with_class_names(experiment: Experiment, dataset: Dataset) -> Experiment:
    """The experiment with the names of the classes of its training set, if its model uses labels; warns of classes without examples."""
    if "label" not in experiment.model.features:
        return experiment
    _warn_once(class_names.without_examples(dataset))
    names = class_names.names_of(dataset.features)
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, class_names=names)) if names else experiment


@cache
def _warn_once(text: str) -> None:
    """`warn`, once for each text: every stage of a run has the same data."""
    warn(text)


def _first_state(experiment: Experiment, optimizer, mesh, batch: dict | None = None, parts: dict | None = None) -> training.TrainState:
    """The state before the first step, placed on the mesh. batch: for models with `initialise(batch)`. parts: {name: trained part}."""

    def make(parts):
        model = build(experiment.model, experiment.train.seed)
        for name, part in parts.items():
            nnx.update(getattr(model, name), nnx.state(part))
        return training.new_state(model if batch is None else model.initialise(batch), optimizer)

    parts = parts or {}
    return training.born(mesh, make, parts) if experiment.train.fsdp > 1 else sharding.place_state(mesh, make(parts))


def _clear_stages(experiment: Experiment) -> None:
    """Delete the checkpoints of all stages in this run's folder, and of their stages; runs named by `start_from` stay."""
    for name, stage in experiment.stages.items():
        if not stage.start_from:
            part = experiment.of_stage(name)
            if checkpoint.newest(part.workdir) is not None:
                checkpoint.Checkpointer(part.workdir, config.to_json(part), restart=True).close()
            _clear_stages(part)


def _train_stages(experiment: Experiment, sets: Sets, allow_data_change: bool) -> int:
    """Train the parts that do not start from another run, each with its report at its end; the exit code of the first
    that a signal stopped, else 0."""
    for name, stage in experiment.stages.items():
        if stage.start_from:
            continue
        part = experiment.of_stage(name)
        last = 1 if closed_form(jax.eval_shape(lambda: build(part.model))) else part.train.steps  # noqa: B023 (called at once)
        done = (checkpoint.newest(part.workdir) or 0) >= last
        announce(f"stage {name} of {experiment.workdir}")
        if code := train(part, sets=sets, allow_data_change=allow_data_change):
            return code
        if not done:
            finish(part, sets)
    return 0


def _trained_parts(experiment: Experiment) -> dict[str, Any]:
    """{name: model} of the stages, with the averaged weights of their runs; split over the devices if the whole will be (fsdp > 1)."""
    runs = {name: stage.start_from or experiment.of_stage(name).workdir for name, stage in experiment.stages.items()}
    mesh = sharding.split_mesh(experiment.train.fsdp)
    return {name: trained.load(run, models=staging.classes(getattr(experiment.model, name)), mesh=mesh) for name, run in runs.items()}


def _fit(experiment: Experiment, model, checkpoints: checkpoint.Checkpointer, sets: Sets, mesh) -> int:
    """Fits a closed-form model by `Model.fit(training set, config, key)`, validates it, saves checkpoint 1; returns 0. Does nothing
    if there is a checkpoint."""
    state = training.init_state(model, optax.identity(), mesh)
    resumed, _ = checkpoints.restore(state) or (0, state)
    if resumed:
        announce(f"{experiment.workdir} is finished: its model has a closed form; --restart starts over")
        return 0
    with report.Reporter(experiment.workdir, 0, writer=jax.process_index() == 0, gone=checkpoints.gone) as reporter:
        announce(first_line.fitting(experiment, sets[0]))
        model = type(model).fit(sets[0], experiment.model, jax.random.key(experiment.train.seed))
        state = sharding.place_state(mesh, dataclasses.replace(training.new_state(model, optax.identity()), step=jnp.int32(1)))
        run = _Run(experiment, checkpoints, reporter, sets[1], mesh, sets[0])
        run.validate_and_save(1, state)
        run.save(1, state, last=True)  # raises if the save in validate_and_save failed and fails again
    return 0


def _check_closed_form(experiment: Experiment) -> None:
    """Raise ConfigError for a setting without effect on a model that is fitted from the data as they are, not by steps."""
    lists, default = {"stages": experiment.stages, "data.augment": experiment.data.augment}, vars(OptimizerConfig())
    given = {f"optimizer.{name}": value for name, value in vars(experiment.optimizer).items() if value != default[name]}
    for name, value in (given | {name: ", ".join(value) for name, value in lists.items() if value}).items():
        raise ConfigError(name, "its default: the model is fitted in closed form, without steps", value)


def closed_form(model) -> bool:
    """Whether a model is fitted by `Model.fit`, not trained by steps."""
    return hasattr(model, "fit") and not hasattr(model, "loss")


def make_optimizer(experiment: Experiment):
    """The optimizer of a run; `players` in a model's configuration names submodules that get an optimizer each."""
    return training.make_optimizer(experiment.optimizer, experiment.train.steps, getattr(experiment.model, "players", ()))


def _shapes(experiment: Experiment, optimizer) -> training.TrainState:
    """The state before the first step as shapes and dtypes: nothing is computed."""
    return jax.eval_shape(lambda: training.new_state(build(experiment.model, experiment.train.seed), optimizer))


def _completed(classes: list[type], old: dict) -> dict:
    """A saved configuration, with defaults for fields that the version which wrote it did not have. classes: of parts and data."""
    return config.to_json(trained.from_saved([Experiment, *MODELS, *classes], old, "the newest checkpoint"))


@dataclasses.dataclass(frozen=True)
class _Run:
    """What one run does between train steps: logs, validates, draws, saves."""

    experiment: Experiment
    checkpoints: checkpoint.Checkpointer
    reporter: report.Reporter
    validation_set: Dataset | None
    mesh: jax.sharding.Mesh
    training_set: Dataset | None = None
    stop: interruption.Interruption | None = None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """A row of metrics every log_every steps, and a line of progress every few seconds."""
        options = self.experiment.train
        if step % options.log_every == 0 or step == options.steps:
            if jax.process_count() == 1:  # several look at every save
                self.checkpoints.check_folder()
            model, optimizer = self.experiment.model, self.experiment.optimizer
            rates = training.learning_rates(optimizer, options.steps, step, getattr(model, "players", ()))
            self.reporter.scalars(step, metrics | rates | self.reporter.times(step, options.batch_size, noun(model)))
        self.reporter.progress(step, options.steps, options.batch_size, metrics, noun(self.experiment.model))

    def validate_again(self, step: int, state: training.TrainState) -> None:
        """The validation of the step from which a run goes on, if Ctrl-C has ended it; its checkpoint was saved without numbers."""
        options = self.experiment.train
        due = step > 0 and (step % options.eval_every == 0 or step == options.steps) and self.validation_set is not None
        if due and sharding.first_process_says(not checkpoint.list_metrics(self.experiment.workdir).get(step)):
            self.validate_and_save(step, state)

    def validate_and_save(self, step: int, state: training.TrainState) -> None:
        """Evaluates the averaged model on the validation split if there is one, draws samples (same key every time), saves a checkpoint.
        Ctrl-C ends the process within seconds, with a checkpoint without numbers."""
        save_by = self.stop.save_by if self.stop else lambda save: None
        save_by(lambda: self.save(step, state, last=True))
        numbers = self._validate_and_draw(step, state)
        save_by(None)
        self.save(step, state, numbers, last=step == self.experiment.train.steps)
        self.reporter.restart_clock(step)

    def _validate_and_draw(self, step: int, state: training.TrainState) -> dict[str, float]:
        options, model = self.experiment.train, training.ema_model(state)
        key = jax.random.key(options.seed)
        if self.validation_set is None:
            announce(f"step {step}  not validated")
        numbers = {} if self.validation_set is None else self._validate(step, model, key)
        split = options.fsdp > 1  # then the model may not fit one device, so it stays split and all processes draw together
        model = model if split else sharding.on_one_device(self.mesh, model)
        if (split or jax.process_index() == 0) and hasattr(model, "sample") and self._draws_at(step):
            dataset = self.training_set if self.validation_set is None else self.validation_set
            n = self.experiment.report.samples
            samples = with_inputs(model, dataset, draw_for(model, dataset, key, n))
            self.reporter.samples(step, "samples", samples, modelled(model), **captions_for(model, dataset, n))
        self.reporter.curve()
        return numbers

    def _validate(self, step: int, model, key) -> dict[str, float]:
        """Evaluates a model on the validation split and reports its metrics; returns those that are finite numbers."""
        options, wanted = self.experiment.train, self.experiment.report.metrics
        metrics = evaluation.evaluate(model, self.validation_set, batch_size=options.batch_size, key=key, mesh=self.mesh, metrics=wanted)
        metrics = evaluation.with_floor(metrics, model, self.validation_set, self.training_set)
        name, value = evaluation.headline(metrics)
        announce(f"step {step}  validation {name} {scores.not_computed(name, metrics) or f'{value:.4f}'}")
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float) and np.isfinite(value)}
        self.reporter.scalars(step, {f"validation_{name}": value for name, value in numbers.items()})
        earlier = checkpoint.list_metrics(self.experiment.workdir) if self.checkpoints.steps() else {}
        warn(scores.ruined(metrics, modelled(model), {saved: told for saved, told in earlier.items() if saved < step}))
        return numbers

    def _draws_at(self, step: int) -> bool:
        """Whether the validation at this step draws samples: every samples_every-th one does, and the last."""
        options, wanted = self.experiment.train, self.experiment.report
        return wanted.samples > 0 and (step // options.eval_every % wanted.samples_every == 0 or step == options.steps)

    def save(self, step: int, state: training.TrainState, metrics: dict | None = None, last: bool = False) -> None:
        """Flushes the rows of metrics, then saves a checkpoint; so no row up to a saved step is missing.

        If saving fails (a full disk), a warning is printed and training goes on; for the last checkpoint CheckpointError is raised, and
        FolderGone for any if the run's folder was deleted.
        """
        self.reporter.flush()
        try:
            self.checkpoints.save(step, state, metrics)
        except CheckpointError as error:
            if last or isinstance(error, checkpoint.FolderGone):
                raise
            printing.say(f"jaxgen: warning: {error}; training goes on", sys.stderr)


def dry_run(experiment: Experiment) -> int:
    """Print shapes, parameter count, memory and sharding of a run; nothing is computed and no data is read."""
    mesh = sharding.make_mesh(experiment.train.fsdp)
    optimizer = make_optimizer(experiment)
    state = _shapes(experiment, optimizer)
    shardings = jax.tree.leaves(sharding.state_sharding(mesh, state))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    per_device = 0
    for (path, leaf), placed in zip(leaves, shardings, strict=True):
        per_device += np.prod(placed.shard_shape(leaf.shape), dtype=np.int64) * leaf.dtype.itemsize
        name = jax.tree_util.keystr(path)
        if name.startswith(".model"):
            print(f"{name.removeprefix('.model'):<60} {leaf.dtype.name:<9} {str(list(leaf.shape)):<22} {placed.spec}")
    needed = ", ".join(feature.said for feature in experiment.model.features.values())
    print(f"data                  {experiment.data.name}, not read; {needed}, as the model says")
    print(f"parameters            {count_parameters(state.model):,}")
    print(f"state per device      {per_device / 2**20:,.1f} MiB (parameters, optimizer, average), before activations")
    print(f"mesh                  {dict(mesh.shape)} of {jax.device_count()} {jax.devices()[0].platform} device(s)")
    for name, stage in experiment.stages.items():
        part = jax.eval_shape(lambda: build(getattr(experiment.model, name)))  # noqa: B023 (called at once)
        how = f"from {stage.start_from}" if stage.start_from else f"trained first, {stage.train.steps} steps"
        print(f"{f'stage {name}':<21} {count_parameters(part):,} parameters, {how}")
    size = experiment.train.batch_size
    print(f"batch                 {size} {noun(experiment.model)}s, {size // jax.device_count()} per device")
    return 0
