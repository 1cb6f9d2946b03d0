"""`examples/results_tables.py`: what docs/results.md and the README report is what the records say."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "results_tables.py"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("example_results_tables", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(script, monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    script.main()


def test_the_pages_report_what_the_records_say(script, monkeypatch):
    tables = [name for page in script.PAGES for _, name, _ in script.BLOCK.findall(page.read_text())]
    assert set(tables) == set(script.TABLES)
    check(script, monkeypatch, "--check")


def test_a_page_that_differs_from_the_records_is_named_and_mended(script, monkeypatch, tmp_path):
    page = tmp_path / "results.md"
    page.write_text("Before.\n\n<!-- table: overview -->\n| old |\n<!-- table: end -->\n\nAfter.\n")
    monkeypatch.setattr(script, "PAGES", (page,))
    monkeypatch.setattr(script, "FIGURES", tmp_path)
    with pytest.raises(SystemExit, match=r"results\.md"):
        check(script, monkeypatch, "--check")
    check(script, monkeypatch)
    text = page.read_text()
    assert (
        text.startswith("Before.")
        and text.endswith("After.\n")
        and "old" not in text
        and "| SMoPE | lda | 3 |" in text
    )
    names = {"short", "short-costs", "routing-overlap", "routing-survival", "routing-training"}
    assert {f"cifar100-{name}.png" for name in names} | {"sample-efficiency.png"} == {
        path.name for path in tmp_path.glob("*.png") if path.stat().st_size > 1000
    }
    check(script, monkeypatch, "--check")


def test_every_number_is_the_mean_over_the_seeds_with_its_spread(script, monkeypatch, tmp_path):
    record = json.loads((script.RECORDS / script.SHORT / "smope" / "seed-0" / "record.json").read_text())
    for seed, accuracy in enumerate((0.5, 0.6)):
        record["settings"]["seed"] = seed
        for metrics in record["metrics"].values():
            metrics["final_average_accuracy"] = accuracy
        for entry, lost in (("smope", 0), ("smope-noise_epsilon=0.0", 0.1)):
            record["metrics"]["lda"]["final_average_accuracy"] = accuracy - lost * (seed + 1)
            folder = tmp_path / script.SHORT / entry / f"seed-{seed}"
            folder.mkdir(parents=True)
            (folder / "record.json").write_text(json.dumps(record))
    monkeypatch.setattr(script, "RECORDS", tmp_path)
    assert "| SMoPE | lda | 2 | 55.0 ± 7.1 |" in script.overview()
    # 50 - 10 and 60 - 20 against 50 and 60
    without_noise = (
        "| adaptive noise | 2 | 40.0 ± 0.0 | -15.0 ± 7.1 | 55.0 ± 7.1 | +0.0 ± 0.0 | 55.0 ± 7.1 | +0.0 ± 0.0 |"
    )
    assert without_noise in script.differences(script.ABLATIONS, "taken away")
    (tmp_path / script.SHORT / "smope-noise_epsilon=0.0").rename(tmp_path / script.SHORT / "one-prompt")
    assert "| lda | 55.0 ± 7.1 | 40.0 ± 0.0 | +15.0 ± 7.1 | +0.0 ± 0.0 |" in script.sparsity()


def test_pictures_show_the_means_of_the_records(script, monkeypatch):
    drawn = {}
    monkeypatch.setattr(script, "plot_costs", lambda methods, path: drawn.update(costs=methods))
    monkeypatch.setattr(script, "plot_sample_efficiency", lambda curves, path: drawn.update(curves=curves))
    script.draw_costs()
    script.draw_curve()
    means = {row["method"]: (f"{row['FAA']:.1f}", row["FAA std"] is None) for row in drawn["costs"]}
    for line in script.overview().splitlines():
        method = next((entry for entry in means if line.startswith(f"| {script.NAMES[entry]} |")), None)
        if method:
            _, _, alignment, seeds, faa, *_ = (field.strip() for field in line.split("|"))
            assert means.pop(method) == (faa.split()[0], seeds == "1")
    assert not means
    measured = [samples for samples, of in script.efficiency().items() if len(of) == len(script.COMPARED)]
    assert {tuple(curve[0]) for curve in drawn["curves"].values()} == {tuple(measured)}
    assert drawn["curves"]["smope"][1][measured.index(100)] == pytest.approx(
        script.mean_and_spread(script.runs_of(script.SHORT, "smope"))[0]
    )


def test_a_method_with_one_alignment_has_no_other(script):
    rows = [line for line in script.alignments().splitlines() if line.startswith("| nearest class mean")]
    assert len(rows) == 1 and rows[0].split("|")[3:7] == ["  "] * 4 and "**5" in rows[0]


def test_every_protocol_has_a_folder_of_its_own(script):
    hashes = {}
    for path in script.RECORDS.rglob("record.json"):
        place = path.relative_to(script.RECORDS).parts[:-3]
        hashes.setdefault(place, set()).add(json.loads(path.read_text())["protocol_hash"])
    assert all(len(found) == 1 for found in hashes.values())
    assert len(set.union(*hashes.values())) == len(hashes)


def test_the_routing_tables_say_what_was_recorded(script, tmp_path):
    """On the record with numbers of its own in each place, so that none can stand for another."""
    content = json.loads((script.ROUTING / "routing_patterns.json").read_text())
    first, second, third = content["tasks"] = content["tasks"][:3]
    layers, heads = len(content["layers"]), len(first["balance"]["gini"][0])
    for task, shift in ((first, 0), (second, 0.1), (third, 0.2)):
        for part, offset in (("balance", 0.01), ("own_balance", 0.02)):
            task[part] = {
                name: [[shift + offset + step] * heads] * layers
                for name, step in (("entropy", 0.3), ("gini", 0.4), ("dead_share", 0.5))
            }
    second["overlap"] = {"usage": [[0.61]] * layers, "experts": [[0.62]] * layers}
    third["overlap"] = {"usage": [[0.6, 0.8]] * layers, "experts": [[0.1, 0.3]] * layers}
    second["survival"], third["survival"] = [[0.9] * layers], [[0.5] * layers, [0.7] * layers]
    third["frequently_used_share"] = [[0.33] * heads] * layers
    (tmp_path / "routing_patterns.json").write_text(json.dumps(content))
    assert script.routing_tasks(tmp_path).splitlines()[2:] == [
        "| 1 | 51% | 52% | 0.32 | 0.42 |  |  |  |  |",
        "| 2 | 61% | 62% | 0.42 | 0.52 | 61% | 62% | 90% | 90% |",
        "| 3 | 71% | 72% | 0.52 | 0.62 | 70% | 20% | 50% | 60% |",
    ]
    assert script.routing_layers(tmp_path).splitlines()[2:] == [
        f"| {layer} | 72% | 33% | 0.52 | 0.62 |" for layer in content["layers"]
    ]


def test_the_tables_of_realigned_runs_say_what_was_found(script, tmp_path):
    """Numbers of their own in each place, so that none can stand for another."""
    from results_realigned import PENALTIES, drift_ceiling, drift_penalties, shrinkages

    rows = []
    for first, kind in enumerate(("none", "shift", "linear", "afresh")):
        for second, penalty in enumerate(PENALTIES):
            for third, shrinkage in enumerate(("0.001", "estimated")):
                found = first / 10 + second / 50 + third / 500 + (0.2 if (kind, penalty) == ("linear", "1") else 0)
                settings = f"alignment_shrinkage={shrinkage},drift_compensation={kind},drift_shrinkage={penalty}"
                rows.append({"settings": settings, "held_out": found, "test": found + 0.5})
    for seed, more in ((1, 0.0), (2, 0.01)):
        folder = tmp_path / "here" / "smope" / f"seed-{seed}"
        folder.mkdir(parents=True)
        moved = [row | {kind: row[kind] + more for kind in ("held_out", "test")} for row in rows]
        (folder / "realigned.json").write_text(json.dumps({"rows": moved}))
    lines = drift_penalties(tmp_path / "here", {"smope": "SMoPE", "l2p": "L2P"}).splitlines()
    held_out = "6.5 | 16.5 | 20.5 | **42.5** | 24.5 | 26.5 | 28.5"
    assert lines[2:] == [f"| SMoPE | 2 | {held_out} | 76.5 ± 0.7 | 74.5 ± 0.7 | 74.7 ± 0.7 |"]
    lines = drift_ceiling(tmp_path / "here", {"smope": "SMoPE"}).splitlines()
    means = (6.5, 24.5, 36.5, 56.5, 74.5, 86.5)
    assert lines[2:] == ["| SMoPE | 2 | " + " | ".join(f"{mean} ± 0.7" for mean in means) + " |"]
    lines = shrinkages({"10": tmp_path / "here"}, {"smope": "SMoPE"}).splitlines()
    assert lines[2:] == ["| 10 | SMoPE | 2 | 26.5, 76.5 |  |  | 26.7, 76.7 |"]
