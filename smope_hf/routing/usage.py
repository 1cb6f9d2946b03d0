"""Reading routing.json: which experts of a checkpoint are used, by layer and head."""

import os
from pathlib import Path

from ..base.named_settings import MAX_EXPERTS
from ..storage.checkpoint_guard import inside
from ..storage.checksums import check_file
from ..storage.field_checks import (
    Fields,
    check_fields,
    is_count,
    is_fraction,
    is_list_of,
    is_list_per_task,
    is_number_of_experts,
    require,
)
from ..storage.safe_json import read_json

ROUTING_FILE = "routing.json"
ROUTINGS = ("masked", "unmasked", "random")
ROUTING_FIELDS: Fields = {
    "num_experts": (is_number_of_experts, f"an integer from 1 to {MAX_EXPERTS}"),
    "top_k": (is_number_of_experts, f"an integer from 1 to {MAX_EXPERTS}"),
    "noise_epsilon": (is_fraction, "a number in [0, 1]"),
    "routing": (lambda value: isinstance(value, str) and value in ROUTINGS, "masked, unmasked or random"),
    "images_by_task": (lambda value: is_list_per_task(value, is_count), "an integer from 0 for each task"),
    "dead_share": (is_fraction, "a number in [0, 1]"),
    "frequently_used_share": (is_fraction, "a number in [0, 1]"),
    "layers": (lambda value: is_list_of(value, lambda item: isinstance(item, dict)), "an object for each layer"),
}
PER_HEAD = "a list for each head"


def load_routing(folder: str | os.PathLike) -> dict:
    """The routing report of a checkpoint's folder (`routing_report` says what is in it).

    Raises:
        ValueError: naming the field that is missing or has another type, range or length than a report has.
        OSError: when there is no report.
    """
    file = inside(folder, Path(folder) / ROUTING_FILE)
    report = read_json(file)
    check_fields(report, ROUTING_FIELDS, file)
    experts, tasks = report["num_experts"], len(report["images_by_task"])
    require(file, "top_k", report["top_k"], report["top_k"] <= experts, f"1 to num_experts = {experts}")
    heads = None
    for index, layer in enumerate(report["layers"]):
        where = f"layers[{index}]."
        check_fields(layer, {"usage_share": (lambda value: is_list_of(value, _is_list), PER_HEAD)}, file, where)
        heads = len(layer["usage_share"]) if heads is None else heads
        check_fields(layer, _layer_fields(heads, experts, tasks), file, where)
    check_file(file)
    return report


def _layer_fields(heads: int, experts: int, tasks: int) -> Fields:
    """Of a layer: every list is as long as the report says, so that no number takes more memory than the file."""

    def per_head(value, fits) -> bool:
        return is_list_of(value, lambda head: is_list_of(head, fits)) and len(value) == heads > 0

    def shares(value) -> bool:
        return per_head(value, is_fraction) and all(len(head) == experts for head in value)

    def ids(value) -> bool:
        fits = per_head(value, lambda expert: is_count(expert) and expert < experts)
        return fits and all(len(head) <= experts for head in value)

    def shares_by_task(value) -> bool:
        return is_list_of(value, shares) and len(value) == tasks

    share = f"{experts} numbers in [0, 1] for each of {heads} heads"
    some = f"ids below num_experts = {experts}, for each of {heads} heads"
    return {
        "layer": (is_count, "an integer from 0"),
        "dead_experts": (ids, some),
        "frequently_used_experts": (ids, some),
        "usage_share": (shares, share),
        "usage_share_by_task": (shares_by_task, f"{share}, for each of {tasks} tasks"),
    }


def _is_list(value) -> bool:
    return isinstance(value, list)
