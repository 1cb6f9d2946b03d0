"""Reading what `benchmark.py` and `realign.py` leave in a run's folder: each file by one function, checked."""

from pathlib import Path

from smope_hf.storage.field_checks import (
    check_fields,
    is_count,
    is_fraction,
    is_list_of,
    is_number,
    is_object_of,
    is_seconds,
    is_settings,
    is_short_text,
    is_triangle,
)
from smope_hf.storage.foreign_files import read_table
from smope_hf.storage.safe_json import read_json

RECORD_FILE, SETTINGS_FILE, PROCESS_FILE = "record.json", "settings.json", "process.json"
REALIGNED_FILE, TABLE_FILE = "realigned.json", "results.csv"
MEMORY = {"peak_memory_mib": (lambda value: is_number(value) and value >= 0, "a number from 0")}


def _is_name(value) -> bool:
    return value is None or is_short_text(value)


def _is_amount(value) -> bool:
    return is_number(value) and value >= 0


def _are_metrics(value) -> bool:
    return is_object_of(value, lambda number: number is None or is_number(number))


RECORD_FIELDS = {
    "settings": (is_settings, "an object of settings"),
    "protocol_hash": (is_short_text, "text"),
    "base_model_fingerprint": (_is_name, "text"),
    "joint": (lambda value: isinstance(value, bool), "true or false"),
    "accuracy_matrices": (lambda value: is_object_of(value, is_triangle) and len(value) > 0, "a matrix by alignment"),
    "metrics": (lambda value: is_object_of(value, _are_metrics) and len(value) > 0, "numbers by alignment"),
    "parameters": (is_count, "an integer from 0"),
    "gflops_train": (_is_amount, "a number from 0"),
    "gflops_test": (_is_amount, "a number from 0"),
    "seconds_by_task": (
        lambda value: is_list_of(value, lambda task: is_object_of(task, is_seconds)),
        "an object of seconds for each task",
    ),
    **MEMORY,
    "versions": (lambda value: is_object_of(value, is_short_text), "an object of text"),
}


def read_record(path: Path) -> dict:
    """All that a table says of a run, from its record.json.

    Raises:
        ValueError: naming the file and the field.
    """
    record = read_json(path)
    check_fields(record, RECORD_FIELDS, path)
    if record["accuracy_matrices"].keys() != record["metrics"].keys():
        raise ValueError(f"{path}: accuracy_matrices and metrics are of different alignments. Record the run again.")
    return record


def read_settings(folder: Path) -> dict:
    """The settings that a run was begun with, from its settings.json.

    Raises:
        ValueError: naming the file and the field.
    """
    path = folder / SETTINGS_FILE
    content = read_json(path)
    check_fields({"settings": content}, {"settings": (is_settings, "settings by name")}, path)
    return content


def read_peak_memory(folder: Path) -> float:
    """Peak memory of a run's process in MiB, from its process.json.

    Raises:
        ValueError: naming the file and the field.
    """
    content = read_json(folder / PROCESS_FILE)
    check_fields(content, MEMORY, folder / PROCESS_FILE)
    return content["peak_memory_mib"]


def read_realigned(path: Path) -> list[dict]:
    """The rows of a realigned.json: the settings of each, and the accuracies with them.

    Raises:
        ValueError: naming the file and the field.
    """
    content = read_json(path)
    check_fields(content, {"rows": (lambda value: is_list_of(value, _is_row), "settings and accuracies")}, path)
    return content["rows"]


def _is_row(row) -> bool:
    return (
        isinstance(row, dict)
        and is_short_text(row.get("settings"))
        and all(value is None or is_fraction(value) for name, value in row.items() if name != "settings")
    )


def read_results(folder: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a benchmark's results.csv.

    Args:
        folder: of the benchmark.
        columns: those that there have to be.

    Raises:
        ValueError: naming the file and the column or line.
    """
    path = folder / TABLE_FILE
    header, *rows = [row for row in read_table(path) if row] or [[]]
    missing = [name for name in columns if name not in header]
    if missing or not rows:
        raise ValueError(f"{path} has no {f'column {missing[0]!r}' if missing else 'row'}. Run benchmark.py again.")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"{path}: line {number} has {len(row)} cells, and the header {len(header)}.")
    return [dict(zip(header, row, strict=True)) for row in rows]
