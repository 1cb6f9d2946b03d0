"""The page: what a visitor sees and can do."""

import html
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
from desk import Desk, explain
from limits import Refused
from looking import Look, experts_html, in_common
from messages import LESSONS
from teaching import Lesson

from smope_hf.base.formatting import names_in_short
from smope_hf.base.printable import printable

NOTHING = "nothing"
LABEL, TEXT = 80, 1000  # characters that are shown of a name, and of a sentence
STYLE = """
.gradio-container {max-width: 1100px !important; margin: auto !important}
figure {margin: 0}
img.experts {width: 100%; max-width: 420px}
body:not(.dark) img.on-dark, body.dark img.on-light {display: none !important}
.quiet, figcaption {opacity: .8; font-size: .875rem}
.note {border-left: 4px solid #0072b2; padding: .5rem .75rem; overflow-wrap: anywhere}
.note.refused {border-color: #d55e00}
table.lesson {border-collapse: collapse; width: 100%; margin: .75rem 0}
table.lesson, table.lesson tbody, table.lesson tr {border: none !important}
table.lesson th, table.lesson td {padding: .35rem .5rem !important; border: none !important; text-align: left;
  border-bottom: 1px solid var(--border-color-primary) !important; overflow-wrap: break-word; vertical-align: top}
table.lesson .number {text-align: right}
html body .gradio-container.gradio-container.gradio-container :focus-visible {
  outline: 3px solid #0072b2 !important; outline-offset: 2px}
"""
HEAD = f'<meta name="color-scheme" content="light dark"><style>{STYLE}</style>'
"""In the head, since gradio confines its `css` to its container, and whether a page is dark is told by the body."""

INTRODUCTION = """# Teach a vision transformer new classes
The backbone is frozen; a few prompt experts learn. Drop an image to see what the model takes it for and which experts
it switches on. Then teach a copy of the model a class of your own, and take it home."""


def sent(payload) -> list[str]:
    """Paths of uploaded files as the browser names them; gradio would open images, and leave empty files behind."""
    payloads = payload if isinstance(payload, list) else [] if payload is None else [payload]
    paths = [entry.get("path") if isinstance(entry, dict) else None for entry in payloads]
    if not all(isinstance(path, str) for path in paths):
        raise Refused("That is no upload of this page. Reload it, and try again.")
    return paths


def theme() -> gr.themes.Base:
    """Fonts of the visitor's own system: none is fetched."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def build_page(
    desk: Desk, to_look_at: Sequence[Path] = (), to_teach: Sequence[Path] = (), new_class: str = ""
) -> gr.Blocks:
    """The page of a desk.

    Args:
        desk: does what is asked for.
        to_look_at: image files offered to look at. Default: none.
        to_teach: image files offered to teach with, all of one class. Default: none.
        new_class: the name of that class.
    """
    kept = (60, int(2 * desk.limits.idle_seconds))  # every so many seconds, files older than so many
    with gr.Blocks(title="SMoPE: teach a vision transformer", analytics_enabled=False, delete_cache=kept) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            names = list(desk.checkpoints)
            labels = [(printable(shown_name(name), LABEL), name) for name in names]
            checkpoint = gr.Dropdown(labels, value=names[0], label="Checkpoint", visible=len(names) > 1)
            first = list(desk.checkpoints[names[0]].revisions)
            revision = gr.Dropdown(choices(first), value=first[-1], label="Task revision", filterable=False)
        with gr.Tab("Look", id="look"):
            compare = _look_tab(desk, checkpoint, revision, first, to_look_at)
        with gr.Tab("Teach", id="teach"):
            _teach_tab(desk, checkpoint, revision, compare, to_teach, new_class)
        gr.HTML(f'<p class="quiet">{html.escape(privacy(desk))}</p>', padding=False)

        def choose(name, request: gr.Request):
            try:
                found = list(desk.revisions(request.session_hash, name))
            except Exception as error:
                gr.Warning(plain(explain(error)))
                return gr.skip(), gr.skip()
            return (
                gr.Dropdown(choices(found), value=found[-1]),
                gr.Dropdown(choices([NOTHING, *found]), value=NOTHING),
            )

        checkpoint.change(choose, checkpoint, [revision, compare], api_visibility="private", preprocess=False)

        def end(request: gr.Request):
            desk.visits.end(request.session_hash)

        page.unload(end)
    return page


def _look_tab(desk, checkpoint, revision, revisions, examples) -> gr.Dropdown:
    with gr.Row():
        with gr.Column(min_width=280):
            image = gr.Image(
                label="Image", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=260
            )
            if examples:
                offered = [[str(path)] for path in examples]
                rows = gr.Dataset(components=[image], samples=offered, label="Or one of these", type="index")
                rows.click(lambda row: offered[row][0], rows, image, api_visibility="private", show_progress="hidden")
            compare = gr.Dropdown(
                choices([NOTHING, *revisions]), value=NOTHING, label="Compare with revision", filterable=False
            )
        with gr.Column(min_width=280):
            note = gr.HTML(_note("Drop an image, or choose one below it."), padding=False)
            classes = gr.Label(label="Classes", num_top_classes=5)
            experts = gr.HTML(padding=False)
        with gr.Column(min_width=280, visible=False) as other_column:
            other_note = gr.HTML(padding=False)
            other_classes = gr.Label(label="Classes", num_top_classes=5)
            other_experts = gr.HTML(padding=False)

    def look(name, chosen, other, file, request: gr.Request):
        outputs = dict.fromkeys((classes, experts, other_note, other_classes, other_experts), None)
        outputs |= {note: _note("Drop an image, or choose one below it."), other_column: gr.Column(visible=False)}
        if file is None:
            return outputs
        try:
            (path,) = sent(file)
            one = desk.look(request.session_hash, name, chosen, path)
            outputs |= {note: _note(_seen_by(chosen, one)), classes: shown_classes(one), experts: experts_html(one)}
            if other != NOTHING:
                two = desk.look(request.session_hash, name, other, path)
                text = _seen_by(other, two) + _common(one, two)
                outputs |= {other_column: gr.Column(visible=True), other_note: _note(text)}
                outputs |= {other_classes: shown_classes(two), other_experts: experts_html(two)}
        except Exception as error:
            outputs[note] = _note(explain(error), refused=True)
        return outputs

    gr.on(
        [image.change, revision.change, compare.change],
        look,
        [checkpoint, revision, compare, image],
        [note, classes, experts, other_column, other_note, other_classes, other_experts],
        api_visibility="private",
        show_progress_on=[classes],
        trigger_mode="always_last",
        preprocess=False,
    )
    return compare


def _teach_tab(desk, checkpoint, revision, compare, examples, new_class):
    with gr.Row():
        with gr.Column(min_width=280):
            images = gr.File(label="Images of one new class", file_count="multiple", file_types=["image"], height=220)
            name = gr.Textbox(label="Its name", max_length=desk.limits.name_length, max_lines=1, placeholder="eight")
            if examples:
                offer = gr.Button(f"Take {len(examples)} images of an {new_class}", variant="secondary")
                offer.click(
                    lambda: ([str(path) for path in examples], new_class), None, [images, name],
                    api_visibility="private",
                )  # fmt: skip
            learn = gr.Button("Learn", variant="primary")
        with gr.Column(min_width=280):
            result = gr.HTML(
                _note("The revision chosen above is copied, and the copy learns. It takes seconds."), padding=False
            )
            download = gr.DownloadButton("Download the new checkpoint", visible=False)

    def teach(name_of, chosen, files, class_name, request: gr.Request, progress=gr.Progress()):
        def told(share, text):
            progress(share, desc=text)

        try:
            lesson = desk.learn(request.session_hash, name_of, chosen, sent(files), class_name, told)
            found = list(desk.revisions(request.session_hash, name_of))
            return {
                result: lesson_html(lesson),
                download: gr.DownloadButton(value=str(lesson.archive), visible=True),
                revision: gr.Dropdown(choices(found), value=found[-1]),
                compare: gr.Dropdown(choices([NOTHING, *found]), value=chosen),
                images: None,
                name: "",
            }
        except Exception as error:
            return {result: _note(explain(error), refused=True)}

    gr.on(
        [learn.click, name.submit],
        teach,
        [checkpoint, revision, images, name],
        [result, download, revision, compare, images, name],
        api_visibility="private",
        show_progress_on=[result],
        concurrency_limit=1,
        concurrency_id=LESSONS,
        trigger_mode="once",
        scroll_to_output=True,
        preprocess=False,
    )


def lesson_html(lesson: Lesson) -> str:
    """What a lesson came to, as a table; what was not measured is said to be unknown."""
    measured = f"on {lesson.old_images} held-out images" if lesson.old_images else "no held-out images came along"
    right = f"{round(lesson.new_accuracy * lesson.new_images)} of {lesson.new_images}"
    rows = [
        ("old classes", measured, _percent(lesson.old_before), _percent(lesson.old_after), ""),
        (
            plain(lesson.class_name),
            f"on {lesson.new_images} of your images, held out",
            "not learned",
            _percent(lesson.new_accuracy),
            f'<br><span class="quiet">{right}</span>',
        ),
    ]
    body = "".join(
        f'<tr><td>{name}<br><span class="quiet">{text}</span></td><td class="number">{before}</td>'
        f'<td class="number">{after}{more}</td></tr>'
        for name, text, before, after, more in rows
    )
    return (
        _note(f"Learned {lesson.class_name!r} from {lesson.taught_with} images in {lesson.seconds:.0f} s.")
        + '<table class="lesson"><tr><th>Accuracy</th><th class="number">before</th><th class="number">after</th></tr>'
        + f'{body}</table><p class="quiet">It is chosen above now: look at an image with it, or teach it another '
        "class.</p>"
    )


def privacy(desk: Desk) -> str:
    """What happens to what a visitor sends."""
    return (
        "What you send stays on the machine that runs this page, is used for nothing else, and is deleted when you "
        "close the page, or after "
        f"{desk.limits.idle_seconds / 60:.0f} minutes without use. Limits: {desk.limits.told()}."
    )


def plain(text: str) -> str:
    """Text of others for HTML: as it would be read, with nothing in it that is not seen, and no tag."""
    return html.escape(printable(text, TEXT))


def choices(names: Sequence[str]) -> list[tuple[str, str]]:
    """What a list shows for each choice, and the choice. Gradio shows it as text."""
    return list(zip(unlike(names), names, strict=True))


def shown_classes(look: Look) -> dict[str, float]:
    """Probabilities by the class names as they are shown."""
    return dict(zip(unlike(list(look.classes)), look.classes.values(), strict=True))


def unlike(names: Sequence[str]) -> list[str]:
    """Names as they are shown; those that would look the same are numbered."""
    shown, seen = [], Counter()
    for name in names:
        text = printable(name, LABEL)
        seen[text] += 1
        shown.append(text if seen[text] == 1 else f"{text} ({seen[text]})")
    return shown


def shown_name(checkpoint: str) -> str:
    """A checkpoint as the page names it: the Hub id, or the last part of a folder's path."""
    return checkpoint.rstrip("/").split("/")[-1] if checkpoint.startswith(("/", ".", "~")) else checkpoint


def _note(text: str, refused: bool = False) -> str:
    kind, role = (" refused", "alert") if refused else ("", "status")
    return f'<div class="note{kind}" role="{role}">{plain(text)}</div>'


def _seen_by(revision: str, look: Look) -> str:
    names = unlike(list(look.classes))
    count = "one class" if len(names) == 1 else f"{len(names)} classes"
    return f"Seen by {revision}, which knows {count}: {names_in_short(names, 80)}."


def _common(one: Look, two: Look) -> str:
    share = in_common(one, two)
    return "" if share is None else f" {100 * share:.0f}% of the experts that it switches on are the same."


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f}%"
