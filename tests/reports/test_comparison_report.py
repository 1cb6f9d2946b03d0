"""Several runs in one report: seeds together, other tasks apart, one file."""

import json
import re

from cli_runs import fails, smope
from pages import Page, check_self_contained
from runs import tiny_stream

from smope_hf.reports.comparison_report import write_comparison

FIRST, OTHER = "a" * 64, "b" * 64


def write(folder, final=0.8, protocol=FIRST, method="SMoPE", tasks=2, **recipe):
    matrix = [[0.9] * t + [final] for t in range(tasks)]
    content = {"accuracy_matrix": matrix, "method": method, "protocol_hash": protocol, "recipe": recipe}
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({**content, "model": {"top_k": 5}, "seconds_by_task": [{"a": 9}]}))
    return folder


def parts(page: Page) -> list[str]:
    return page.raw.split('<section id="protocol-')[1:]


def row(part: str, first: str) -> list[str]:
    """Cells of the first row that begins so."""
    rows = (re.findall(r"<td[^>]*>(.*?)</td>", line) for line in part.splitlines())
    return next(cells for cells in rows if cells and cells[0] == first)


def test_seeds_of_a_recipe_are_one_row_and_one_band(tmp_path):
    runs = [write(tmp_path / f"seed-{seed}", 0.8 + 0.02 * seed, seed=seed, epochs=2) for seed in range(3)]
    runs.append(write(tmp_path / "longer", 0.9, seed=0, epochs=9))
    page = Page(write_comparison(runs, tmp_path / "out.html"))
    check_self_contained(page)
    (part,) = parts(page)
    together, alone = row(part, "SMoPE (epochs=2)"), row(part, "longer")
    assert together[1:6] == ["seed-0, seed-1, seed-2", "3", "2", "86.0 ± 1.0", "84.0 ± 1.5"]
    assert alone[1:6] == ["longer", "1", "2", "90.0", "90.0"]
    assert row(part, "epochs")[1:] == ["2", "9"] and "<td>top_k</td>" not in part
    assert "A single seed of longer" in page.words() and "different tasks" not in page.words()
    assert "mean over 3 seeds" in page.words()


def test_runs_on_other_tasks_share_nothing(tmp_path):
    runs = [write(tmp_path / "a", 0.8), write(tmp_path / "b", 0.6, OTHER, "L2P", 3), write(tmp_path / "c", 0.7)]
    page = Page(write_comparison(runs, tmp_path / "out.html"))
    check_self_contained(page)
    assert "These runs learned different tasks" in page.words()
    first, second = parts(page)
    assert FIRST in first and OTHER not in first and OTHER in second and FIRST not in second
    assert row(first, "a") and row(first, "c") and "L2P" not in first
    assert row(second, "L2P")[3] == "3" and "<td>a</td>" not in second
    assert page.links == ["protocol-1", "protocol-2"]


def test_what_differs_in_the_tasks_is_told(tmp_path):
    for name, seed in (("a", 0), ("b", 3)):
        manifest = tiny_stream(seed=seed).manifest()
        write(tmp_path / name, protocol=manifest["protocol_hash"])
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    page = Page(write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "out.html"))
    assert "What differs from the first part" in page.words() and "task 0: classes [" in page.words()


def test_a_cut_run_and_one_without_numbers_can_be_compared(tmp_path):
    runs = [write(tmp_path / "whole", tasks=3), write(tmp_path / "cut", tasks=2)]
    gaps = write(tmp_path / "gaps", tasks=2)
    (gaps / "metrics.json").write_text(json.dumps({"accuracy_matrix": [[None], [None, None]], "protocol_hash": FIRST}))
    page = Page(write_comparison([*runs, gaps], tmp_path / "out.html"))
    check_self_contained(page)
    assert "Not all runs have learned as many tasks" in page.words()
    assert row(parts(page)[0], "gaps")[4:7] == ["n/a"] * 3
    only = write_comparison([gaps, write(tmp_path / "gaps2")], tmp_path / "out2.html")
    assert Page(only)


def test_hostile_names_of_runs_and_settings_are_text(tmp_path):
    runs = [write(tmp_path / "<u>a"), write(tmp_path / "<u>b", method="<u>M", **{"<u>s": "<u>v"})]
    page = Page(write_comparison(runs, tmp_path / "out.html"))
    check_self_contained(page)
    assert "<u>" not in page.raw and all(name in page.words() for name in ("<u>a", "<u>b", "<u>M", "<u>s", "<u>v"))


def test_the_command(tmp_path):
    one, two = write(tmp_path / "one"), write(tmp_path / "two", method="L2P")
    assert smope("report", one).stdout.strip() == str(one / "report.html")
    assert smope("report", one, "--output", tmp_path / "x.html").stdout.strip() == str(tmp_path / "x.html")
    assert smope("report", one, two, "--output", tmp_path / "y.html").stdout.strip() == str(tmp_path / "y.html")
    check_self_contained(Page(tmp_path / "y.html"))
    assert "--output" in fails("report", one, two)
    assert "ends in .html" in fails("report", one, "--output", tmp_path / "y.pdf")
    assert "given twice" in fails("report", one, one, "--output", tmp_path / "y.html")
    assert "holds no run" in fails("report", tmp_path)
    (one / "metrics.json").write_text("{")
    assert "is no JSON" in fails("report", one)
