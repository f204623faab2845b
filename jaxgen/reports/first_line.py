"""The first line that a run prints. `experiment` is a `jaxgen.experiment.Experiment`."""

from typing import Any

from jaxgen.data import Dataset
from jaxgen.data.archives import listed
from jaxgen.reports.drawing import noun
from jaxgen.reports.final_report import validates


def beginning(experiment: Any, resumed: int, dataset: Dataset | None = None) -> str:
    """That the run is new, what its model is given and what of the training set it does not use; or from which step it goes on, or that
    it is finished."""
    options = experiment.train
    if not resumed:
        conditions = {name: feature for name, feature in experiment.model.features.items() if name != experiment.model.modelled}
        names = f": {listed(experiment.data.class_names)}" if experiment.data.class_names else ""
        said = [f"the label ({conditions['label'].said}{names})"] if "label" in conditions else []
        said += [conditions["vector"].said] if "vector" in conditions else []
        given = f", given {' and '.join(said)}" if said else ""
        return f"training to step {options.steps} in {experiment.workdir}{given}{_not_used(experiment, dataset)}"
    if resumed < options.steps:
        return f"resumed from step {resumed} of {options.steps}, data position {resumed * options.batch_size} {noun(experiment.model)}s"
    return f"{experiment.workdir} is finished at step {resumed}; a larger --train.steps goes on, --restart starts over"


def fitting(experiment: Any, dataset: Dataset) -> str:
    """That a model is fitted in closed form, and what of the training set it does not use."""
    return f"fitting in closed form in {experiment.workdir}{_not_used(experiment, dataset)}"


def _not_used(experiment: Any, dataset: Dataset | None) -> str:
    """Columns that the model does not use; and that a run trains on all examples, if it does."""
    unused = dataset.unused_by(experiment.model.features) if dataset is not None else []
    on_all = "" if validates(experiment) else ", on all examples: nothing is validated, the newest step counts as the best"
    return (f", without the data's {' and '.join(unused)}" if unused else "") + on_all
