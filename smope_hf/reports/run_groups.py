"""Several runs put in order: which are the same but for their seed, and which cannot be compared at all."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass

from .run_folder import RunFolder

SEED = "seed"


@dataclass
class RunGroup:
    """Runs of one method with equal settings, on the same tasks, that differ in their seed alone.

    Args:
        label: what tells the group from the others.
        runs: by name.
    """

    label: str
    runs: dict[str, RunFolder]

    @property
    def first(self) -> RunFolder:
        return next(iter(self.runs.values()))


def settings_of(run: RunFolder) -> dict:
    """All settings that decide a run's result, but for its data and its seed."""
    return {name: value for name, value in {**run.model, **run.recipe}.items() if name != SEED}


def by_protocol(runs: Mapping[str, RunFolder]) -> list[dict[str, RunFolder]]:
    """Runs in parts that learned the same tasks; the parts in the order of their first runs."""
    parts: dict[str | None, dict[str, RunFolder]] = {}
    for name, run in runs.items():
        parts.setdefault(run.protocol_hash, {})[name] = run
    return list(parts.values())


def group_runs(runs: Mapping[str, RunFolder]) -> list[RunGroup]:
    """Put runs of the same tasks together that differ in their seed alone.

    Runs without a record of their settings, with gaps in their accuracies, or with as many tasks learned as no other,
    stay alone.

    Args:
        runs: by name; of one protocol.

    Returns:
        The groups, in the order of their first runs. Each is named by its method; where others have the same, also by
        its run's name where it is one, or else by the settings that differ.
    """
    groups: dict[str, dict[str, RunFolder]] = {}
    for name, run in runs.items():
        alone = [name] if not run.recipe or not run.matrix.is_complete else []
        key = json.dumps([alone, run.method, len(run.matrix), settings_of(run)], sort_keys=True, default=str)
        groups.setdefault(key, {})[name] = run
    found = [RunGroup("", members) for members in groups.values()]
    for group in found:
        rivals = [other for other in found if other.first.method == group.first.method]
        label = group.first.method if len(rivals) == 1 else _label(group, rivals)
        taken = {other.label for other in found}
        numbers = (f"{label} ({number})" for number in itertools.count(2))
        group.label = label if label not in taken else next(text for text in numbers if text not in taken)
    return found


def _label(group: RunGroup, rivals: list[RunGroup]) -> str:
    if len(group.runs) == 1:
        return next(iter(group.runs))
    own = settings_of(group.first)
    settings = ", ".join(f"{name}={own.get(name)}" for name in different_settings(rivals))
    return f"{group.first.method} ({settings or ', '.join(group.runs)})"


def different_settings(groups: list[RunGroup]) -> list[str]:
    """Names of the settings that are not the same in all groups."""
    settings = [settings_of(group.first) for group in groups]
    names = sorted(set().union(*settings))
    return [name for name in names if len({json.dumps(own.get(name), default=str) for own in settings}) > 1]
