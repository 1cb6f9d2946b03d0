"""What a run was begun with and goes on with, where the two differ: then nothing is promised to the bit."""

from .safe_json import shown

UNKNOWN = "not recorded"
MOST_CHANGES, MOST_DIFFERENCES = 1000, 32  # that are read of a file


def version_change(saved: dict[str, str], now: dict[str, str], behind_task: int, step: int | None) -> dict | None:
    """What differs between the versions that wrote a state and those that go on from it, as JSON.

    Args:
        saved: from the state; of checkpoints of older versions some or all are missing.
        now: of `run_state.versions`.
        behind_task: number of tasks that are learned.
        step: of the phase of the next task, where the state is one within a task; None behind a whole task.

    Returns:
        `behind_task`, `step` and `differences`: by name what it was (None where that is not recorded) and what it is.
        None where nothing differs.
    """
    differences = {name: [saved.get(name), value] for name, value in now.items() if saved.get(name) != value}
    if not differences:
        return None
    return {"behind_task": behind_task, "step": step, "differences": differences}


def are_version_changes(value) -> bool:
    """Whether JSON that somebody wrote is a list, within limits, of what `version_change` gives."""
    return isinstance(value, list) and len(value) <= MOST_CHANGES and all(map(_is_version_change, value))


def _is_version_change(value) -> bool:
    if not isinstance(value, dict) or value.keys() != {"behind_task", "step", "differences"}:
        return False
    pairs = value["differences"]
    return (
        _is_number(value["behind_task"])
        and (value["step"] is None or _is_number(value["step"]))
        and isinstance(pairs, dict)
        and len(pairs) <= MOST_DIFFERENCES
        and all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_version, pair)) for pair in pairs.values())
    )


def change_warning(change: dict) -> str:
    """A sentence on a change of versions, and what to do where it matters."""
    where = f"behind task {change['behind_task']}"
    if change["step"] is not None:
        where = f"in task {change['behind_task'] + 1}, behind step {change['step']} of a phase,"
    differences = change["differences"]
    known = {name: pair for name, pair in differences.items() if pair[0] is not None}
    told = [f"{shown(name)[1:-1]} was {shown(before)} and is {shown(now)}" for name, (before, now) in known.items()]
    unknown = [shown(name)[1:-1] for name in differences if name not in known]
    if unknown:
        told.append(f"{', '.join(unknown)} {'was' if len(unknown) == 1 else 'were'} {UNKNOWN}")
    return (
        f"The run went on {where} under other versions: {'; '.join(told)}. Sums may round differently, so it need not "
        "equal, to the bit, a run under one version alone. Where that matters, go on with what it was begun with."
    )


def _is_number(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_version(value) -> bool:
    return value is None or isinstance(value, str)
