"""A page to look into SMoPE checkpoints and to teach them new classes: `python examples/space/app.py --help`."""

import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import typer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "smope_hf" / "space"


def main(
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", envvar="SMOPE_CHECKPOINTS", help="Run, checkpoint folder or Hub id; repeatable."),
    ] = None,
    test_data: Annotated[
        str | None,
        typer.Option(metavar="DATA", envvar="SMOPE_TEST_DATA", help="Images of known classes, to measure forgetting."),
    ] = None,
    test_split: Annotated[
        str | None, typer.Option(metavar="NAME", envvar="SMOPE_TEST_SPLIT", help="Default: test, else validation.")
    ] = None,
    test_image_column: Annotated[
        str | None, typer.Option(metavar="NAME", envvar="SMOPE_TEST_IMAGE_COLUMN", help="Where there are several.")
    ] = None,
    test_label_column: Annotated[
        str | None, typer.Option(metavar="NAME", envvar="SMOPE_TEST_LABEL_COLUMN", help="Where there are several.")
    ] = None,
    cache: Annotated[
        Path, typer.Option(metavar="DIR", envvar="SMOPE_CACHE", help="Where the digits' checkpoint is kept.")
    ] = CACHE,
    host: Annotated[str, typer.Option(metavar="HOST", envvar="GRADIO_SERVER_NAME")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(metavar="PORT", envvar="GRADIO_SERVER_PORT")] = None,
):
    """Open the page. Without --checkpoint it shows handwritten digits, which it learns first, in seconds."""
    columns = {"split": test_split, "image_column": test_image_column, "label_column": test_label_column}
    if test_data is None and any(columns.values()):
        sys.exit("error: --test-split, --test-image-column and --test-label-column are of --test-data: give it too")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that what visitors sent is deleted then too
    scratch, server, visits = Path(tempfile.mkdtemp(prefix="smope-space-")), None, None
    try:
        server, visits = open_page(scratch, checkpoint, test_data, columns, cache.expanduser(), host, port)
        print(f"The page is open at {server.url} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        pass
    finally:
        from visits import remove_for_good

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if visits is not None:
            visits.close()
        if server is not None:
            server.close()
        remove_for_good(scratch)


def open_page(
    scratch: Path,
    names: list[str] | None,
    test_data: str | None,
    columns: dict[str, str | None],
    cache: Path,
    host: str,
    port: int | None,
):
    """Serve the page from a thread; gives its server and its visits, whose files are all in `scratch`."""
    uploads = scratch / "uploads"
    uploads.mkdir()
    # read when gradio is imported
    os.environ |= {
        "GRADIO_TEMP_DIR": str(uploads), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    from checkpoints import Models, open_checkpoints
    from desk import Desk
    from files import Files
    from first_checkpoint import NEW_CLASS, example_images, first_checkpoint
    from limits import Limits
    from page import build_page
    from serving import serve
    from visits import Visits

    from smope_hf.cli.common import be_quiet
    from smope_hf.models.backbones import EMBEDDED

    be_quiet()
    limits, models, examples = Limits(), Models(), ([], [])
    files = Files(uploads, limits)
    if not names:
        names, test_data = [str(first_checkpoint(cache))], test_data or EMBEDDED
        examples = map(files.add_own, example_images(cache))
    checkpoints = open_checkpoints(names, test_data, **columns)
    visits = Visits(files, limits, models.forget)
    visits.sweep_regularly()
    page = build_page(Desk(checkpoints, visits, models, limits), *examples, NEW_CLASS)
    server = serve(page, files, limits, host, port)
    return server, visits


if __name__ == "__main__":
    typer.run(main)
