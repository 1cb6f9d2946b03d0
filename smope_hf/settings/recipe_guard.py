"""What a checkpoint may choose where training goes on from it: how the model learns, within limits."""

from pathlib import Path

from transformers.utils import logging

from ..base.named_settings import nearest_name
from ..base.printable import printable
from ..storage.safe_json import shown
from .training_args import LEARNING, OWN, ROUNDING, ContinualTrainingArguments

logger = logging.get_logger(__name__)

MOST = {  # that is taken without the user's own word: memory and time grow with these
    "epochs": 1000, "batch_size": 1024, "eval_batch_size": 1024, "gradient_accumulation_steps": 1024,
    "alignment_epochs": 1000, "alignment_batch_ratio": 16,
}  # fmt: skip
NOT_CONTINUED = ("compare_alignments",)  # needs a run from the first task


def arguments_to_go_on(saved: dict, folder: Path, given: dict) -> ContinualTrainingArguments:
    """The settings of a run that goes on: how the checkpoint learned, under what the user gives.

    Args:
        saved: the checkpoint's state, with its `recipe` and, unless it is an older one, `eval_batch_size`.
        folder: of the checkpoint, for messages.
        given: settings of the user's.

    Raises:
        ValueError: for a setting that does not exist or is not allowed, and for one of the recipe that would take
            more time or memory than a file may ask for.
    """
    _check_given(given)
    taken = {name: value for name, value in _taken(saved, folder).items() if name not in given}
    _check_most(taken, folder)
    try:
        return ContinualTrainingArguments(**taken, **given)
    except ValueError as error:
        refused = [name for name in taken if f"ContinualTrainingArguments.{name} = " in str(error)]
        if not refused:
            raise
        raise ValueError(f"{error} It is from the recipe in {folder}: set {refused[0]} too.") from error


def _taken(saved: dict, folder: Path) -> dict:
    """What the checkpoint says of how it learned; a warning names what else its recipe would choose."""
    recipe = saved["recipe"]
    unknown = [name for name in recipe if name not in (*LEARNING, *ROUNDING, *OWN)]
    if unknown:
        raise ValueError(
            f"The recipe in {folder} has the settings {shown(unknown)}, which this version of smope_hf does not know. "
            "Install the version that wrote it; the model card names it."
        )
    own = {name: value for name, value in recipe.items() if name in OWN}
    if own:
        what = ", ".join(f"{name} = {shown(value)}" for name, value in own.items())
        reason = (
            "which is not taken from a checkpoint: where your work goes and how your machine is used is yours to say. "
            "smope_hf writes no such recipe: somebody has changed this one."
        )
        logger.warning(printable(f"The recipe in {folder} says {what}, {reason}"))
    taken = {name: value for name, value in recipe.items() if name in LEARNING and name not in NOT_CONTINUED}
    rounding = {name: saved.get(name) for name in ROUNDING}  # which older checkpoints lack
    return {**taken, **{name: value for name, value in rounding.items() if value is not None}}


def _check_most(taken: dict, folder: Path):
    for name, most in MOST.items():
        value = taken.get(name)
        if isinstance(value, (int, float)) and value > most:
            raise ValueError(
                f"The recipe in {folder} says {name} = {shown(value)}. Allowed: at most {most}, as it takes time and "
                f"memory of this machine. Give {name} yourself (on a command line --{name.replace('_', '-')}), this "
                "value or another."
            )


def _check_given(given: dict):
    known = (*LEARNING, *ROUNDING, *OWN)
    wrong = [name for name in given if name not in known]
    if wrong:
        nearest = " ".join(filter(None, (nearest_name(name, known) for name in wrong)))
        raise ValueError(f"{wrong} are no training settings. {nearest or 'There are: ' + ', '.join(known) + '.'}")
