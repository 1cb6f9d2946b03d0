"""What the page of examples/space does: checkpoints and their revisions, experts of an image, teaching."""

import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, DatasetDict
from PIL import Image
from space import files

from smope_hf import SMoPEForImageClassification
from smope_hf.data.embedded import digits

from checkpoints import Models, find_revisions, open_checkpoints  # isort: skip
from desk import Desk, explain  # isort: skip
from files import Files  # isort: skip
from first_checkpoint import example_images, first_checkpoint  # isort: skip
from limits import Limits, Refused  # isort: skip
from looking import Look, chosen_shares, experts_html, in_common, look_at  # isort: skip
from page import _note, _seen_by, choices, lesson_html, plain, shown_classes, shown_name  # isort: skip
from visits import Visits  # isort: skip

LIMITS = Limits()


def send(desk: Desk, paths: list[Path]) -> list[str]:
    """The files as an upload keeps them."""
    sent = [desk.visits.files.place(path.name) for path in paths]
    for path, place in zip(paths, sent, strict=True):
        shutil.copy(path, place)
        desk.visits.files.add_sent(place, "image/png", "1.2.3.4")
    return list(map(str, sent))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(cache) -> Path:
    return first_checkpoint(cache, epochs=1)


@pytest.fixture
def desk(run, tmp_path) -> Desk:
    models = Models()
    visits = Visits(Files(tmp_path / "uploads", LIMITS), LIMITS, models.forget)
    return Desk(open_checkpoints([str(run)], "embedded"), visits, models, LIMITS)


# ---------------------------------------------------------------------- checkpoints and experts


def test_revisions_of_folders(run, tmp_path):
    assert list(find_revisions(str(run))) == ["task-01", "task-02", "task-03", "task-04"]
    assert list(find_revisions(str(run / "task-02"))) == ["task-02"]
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        find_revisions(str(tmp_path / "nowhere"))
    assert shown_name("/home/somebody/runs/digits/") == "digits"  # nobody else's business where it lies
    assert shown_name("me/my-model") == "me/my-model"


def test_test_data_that_a_checkpoint_does_not_know_is_a_mistake(run, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "test" / name / "1.png")
    with pytest.raises(ValueError, match="knows none of the 2 classes"):
        open_checkpoints([str(run)], str(tmp_path))


def test_the_test_data_may_have_its_own_names_of_split_and_columns(run, tmp_path):
    rows, data = digits()["test"].select(range(40)), str(tmp_path / "data")
    rows = rows.add_column("parity", [label % 2 for label in rows["label"]])
    DatasetDict(held_out=rows.cast_column("parity", ClassLabel(names=["even", "odd"]))).save_to_disk(data)
    with pytest.raises(ValueError, match="several label columns"):
        open_checkpoints([str(run)], data, split="held_out")
    (opened,) = open_checkpoints([str(run)], data, split="held_out", label_column="label").values()
    assert sum(map(len, opened.tests)) == sum(label < 8 for label in rows["label"])


def test_models_are_loaded_once_and_only_the_last_few_are_kept(run):
    models, places = Models(kept=2), list(find_revisions(str(run)).values())
    first = models.get(places[0])
    assert models.get(places[0]) is first and first.class_names == ["zero", "one"]
    models.get(places[1]), models.get(places[2])
    assert models.get(places[0]) is not first
    last = models.get(places[2])
    models.forget(run)
    assert models.get(places[2]) is not last


def test_a_visitor_who_leaves_while_a_model_loads_is_no_fault_of_the_page(desk, run, cache, monkeypatch, capsys):
    """The files go with the visit, under whoever reads them."""

    def left(place):
        desk.visits.end("a")
        raise ValueError("class_statistics.safetensors was changed while the checkpoint was read")

    (image,) = send(desk, [example_images(cache)[0][0]])
    monkeypatch.setattr(desk.models, "get", left)
    with pytest.raises(Refused, match="This visit has ended") as refused:
        desk.look("a", str(run), "task-04", image)
    assert explain(refused.value) == str(refused.value) and not capsys.readouterr().err
    monkeypatch.setattr(desk.models, "get", lambda place: 1 / 0)
    (image,) = send(desk, [example_images(cache)[0][0]])
    with pytest.raises(ZeroDivisionError):  # of a visitor who is still there
        desk.look("b", str(run), "task-04", image)


def test_the_experts_shown_are_those_of_the_largest_scores(desk, run, cache):
    loaded = desk.models.get(find_revisions(str(run))["task-04"])
    image = LIMITS.read_image(example_images(cache)[0][0])
    look = look_at(loaded, image)
    assert list(look.classes) == loaded.class_names and abs(sum(look.classes.values()) - 1) < 1e-5
    pixels = loaded.processor(images=image, return_tensors="pt")["pixel_values"]
    scores = loaded.model(pixels, output_router_scores=True).router_scores
    for score, experts, usage in zip(scores, look.selected, look.usage, strict=True):
        allowed = score[0].detach().numpy() + np.where(usage > 0, 0, -np.inf)  # masked routing: used ones only
        assert np.array_equal(np.sort(experts), np.sort(np.argsort(-allowed, axis=1)[:, :5]))
    assert in_common(look, look) == 1.0 and chosen_shares(look)[1] == 0.0
    text = experts_html(look)
    assert (
        text.count("<img") == 2 and text.count("data:image/png;base64,") == 2 and "6 layers, each of 3 heads" in text
    )


def test_two_revisions_share_some_experts(run, cache):
    models, revisions = Models(), find_revisions(str(run))
    image = LIMITS.read_image(example_images(cache)[0][1])
    first, last = (look_at(models.get(revisions[name]), image) for name in ("task-01", "task-04"))
    assert 0 < in_common(first, last) < 1
    assert in_common(first, replace(last, layers=[6, 7, 8, 9, 10, 11])) is None


# ---------------------------------------------------------------------- teaching


def test_a_lesson_leaves_the_model_alone_and_gives_a_checkpoint_to_take_home(desk, run, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "elsewhere"))
    before, told = files(run), []
    to_look_at, to_teach = example_images(cache)
    lesson = desk.learn(
        "me", str(run), "task-04", send(desk, to_teach), "eight", lambda share, text: told.append(share)
    )
    assert files(run) == before and not (tmp_path / "elsewhere").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["uploads"]
    assert told == sorted(told) and told[0] == 0.0 and 0.5 < told[-1] <= 1.0
    assert (lesson.taught_with, lesson.new_images, lesson.old_images) == (15, 5, 160)
    assert lesson.old_before > 0.8 and lesson.old_after > 0.7 and lesson.new_accuracy >= 0.4
    with zipfile.ZipFile(lesson.archive) as packed:
        assert {Path(name).suffix for name in packed.namelist()} <= {".safetensors", ".json", ".md", ".png"}
        packed.extractall(tmp_path / "home")
    model = SMoPEForImageClassification.from_pretrained(tmp_path / "home" / "taught-model")
    assert model.config.id2label[8] == "eight" and model.config.num_labels == 9
    assert "yours: task-05 with eight" in desk.revisions("me", str(run))
    assert "yours: task-05 with eight" not in desk.revisions("another", str(run))
    look = desk.look("me", str(run), "yours: task-05 with eight", send(desk, to_look_at)[-1])
    assert max(look.classes, key=look.classes.get) == "eight"
    desk.visits.end("me")
    with pytest.raises(Refused, match="no revision 'yours: task-05 with eight' any more"):
        desk.look("me", str(run), "yours: task-05 with eight", send(desk, to_look_at)[-1])


def test_a_second_lesson_goes_on_from_the_first_and_remembers_its_held_out_images(desk, run, cache):
    _, to_teach = example_images(cache)
    paths = send(desk, to_teach)
    desk.learn("me", str(run), "task-02", paths[:8], "eight", lambda share, text: None)
    second = desk.learn("me", str(run), "yours: task-03 with eight", paths[8:14], "another", lambda *_: None)
    assert second.old_images == 4 * 20 + 2 and second.place.name.endswith("task-04")
    assert list(desk.models.get(second.place).class_names[-2:]) == ["eight", "another"]


def test_what_was_not_measured_is_unknown(run, cache, tmp_path):
    models = Models()
    visits = Visits(Files(tmp_path / "u", LIMITS), LIMITS, models.forget)
    desk = Desk(open_checkpoints([str(run)], None), visits, models, LIMITS)
    lesson = desk.learn("me", str(run), "task-01", send(desk, example_images(cache)[1][:4]), "<b>", lambda *_: None)
    assert lesson.old_before is None and lesson.old_after is None and lesson.old_images == 0
    text = lesson_html(lesson)
    assert text.count("unknown") == 2 and "no held-out images" in text and "on 1 of your images" in text
    assert "<b>" not in text and "&lt;b&gt;" in text


HOSTILE = [
    "<img src=x onerror=alert(1)>", "<b>x</b>", "**a** [b](javascript:alert(1))", "ab\u202egnp.exe", "a\x1b[31mred",
    "x" * 10_000, "x" * 5000 + "y" + "x" * 4999, "a\nb", "$\\frac{1}{2}$", "</script><script>alert(2)</script>",
    "\u3164",
]  # fmt: skip


def test_names_of_others_are_shown_as_text(run):
    look = Look(dict.fromkeys(HOSTILE, 1 / len(HOSTILE)), None, None, [])
    shown = list(shown_classes(look))
    assert len(shown) == len(HOSTILE) == len(set(shown)) and shown[:3] == HOSTILE[:3]
    assert shown[3:5] == ["ab\\u202egnp.exe", "a\\x1b[31mred"] and shown[6].endswith(" (2)")
    assert all(text.isprintable() and len(text) <= 90 for text in shown)
    labels, values = zip(*choices(HOSTILE), strict=True)
    assert list(labels) == shown and list(values) == HOSTILE  # what is chosen stays what it is
    for text in (_note("".join(HOSTILE)), _note(_seen_by(HOSTILE[0], look)), plain(HOSTILE[3]), plain(HOSTILE[5])):
        inner = text.removesuffix("</div>").split(">", 1)[1] if text.startswith("<div") else text
        assert not re.search("[<>\x1b\u202e\n]", inner) and len(inner) < 1500


@pytest.mark.parametrize("size, taken", [((1000, 1), False), ((3, 900), False), ((5000, 25), True), ((200, 1), True)])
def test_what_can_be_looked_at_can_be_taught(desk, run, tmp_path, size, taken):
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        Image.new("RGB", size, (60 * number, 0, 90)).save(path)

    def both():
        yield lambda: desk.look("me", str(run), "task-01", send(desk, paths)[0])
        yield lambda: desk.learn("me", str(run), "task-01", send(desk, paths), "line", lambda *_: None)

    for do in both():
        if taken:
            assert do()
        else:
            with pytest.raises(Refused, match="one side is over 200 times the other. Send another one"):
                do()


@pytest.mark.parametrize(
    ("revision", "name", "count", "message"),
    [
        ("task-04", "Seven", 6, "knows a class 'seven' already"),
        ("task-04", "eight", 3, "3 images of the new class: at least 4"),
        ("task-04", "", 6, "has no name"),
        ("task-09", "eight", 6, "no revision 'task-09'"),
    ],
)
def test_lessons_that_are_refused(desk, run, cache, revision, name, count, message):
    paths = send(desk, example_images(cache)[1][:count])
    with pytest.raises(Refused, match=message):
        desk.learn("me", str(run), revision, paths, name, lambda *_: None)
    visit = desk.visits.of("me")
    assert not visit.lessons and not visit.busy and not list(visit.folder.iterdir())


def test_a_lesson_that_takes_too_long_is_given_up(desk, run, cache):
    desk.limits = replace(LIMITS, lesson_seconds=0.0)
    paths = send(desk, example_images(cache)[1][:4])
    with pytest.raises(Refused, match="took longer than 0 seconds and was given up"):
        desk.learn("me", str(run), "task-04", paths, "eight", lambda *_: None)
    visit = desk.visits.of("me")
    assert not visit.lessons and not visit.busy and visit.taught_seconds > 0
    assert list(desk.revisions("me", str(run))) == ["task-01", "task-02", "task-03", "task-04"]


def test_a_lesson_whose_visitor_has_gone_stops(desk, run, cache):
    paths = send(desk, example_images(cache)[1][:4])
    visit = desk.visits.of("me")

    def leave(share, text):
        if "step 1" in text:
            desk.visits.end("me")

    with pytest.raises(Refused, match="was stopped"):
        desk.learn("me", str(run), "task-04", paths, "eight", leave)
    assert not visit.folder.exists()
