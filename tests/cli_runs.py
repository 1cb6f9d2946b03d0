"""Commands as a user types them, and a run to try them on."""

from runs import save_backbone, tiny_stream, tiny_trainer
from typer.testing import CliRunner

from smope_hf.cli.program import app

TINY = [
    "--dataset", "embedded", "--num_tasks", "5", "--max-train-samples-per-class", "4", "--max-test-samples-per-class",
    "3", "--epochs", "1", "--batch-size", "8", "--no-report", "--num-experts", "6", "--top-k", "2",
]  # fmt: skip


def smope(*arguments, code=0, width=80):
    done = CliRunner().invoke(app, [str(part) for part in arguments], env={"COLUMNS": str(width)})
    assert done.exit_code == code, done.output + repr(done.exception)
    return done


def fails(*arguments) -> str:
    """The one line that a mistake gives."""
    done = smope(*arguments, code=2)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


def run_with_images(folder):
    """A run of three tasks, its test images as a data set and as files, and its backbone."""
    backbone, stream = save_backbone(folder / "vit"), tiny_stream()
    tiny_trainer(backbone, folder / "run", stream).train()
    import datasets

    tests = datasets.concatenate_datasets([task.test.dataset for task in stream])
    datasets.DatasetDict({"test": tests}).save_to_disk(folder / "data")
    (folder / "images" / "more").mkdir(parents=True)
    for index, part in enumerate(("a.png", "b.PNG", "more/c.jpg")):
        stream[index].test.images([0])[0].save(folder / "images" / part)
    (folder / "images" / "notes.txt").write_text("no image")
    return folder
