"""The page: what a visitor sees and can do."""

import html

import gradio as gr
from desk import Desk, explain
from looking import experts_html, in_common
from teaching import Lesson

NOTHING = "nothing"
CSS = """
.gradio-container {max-width: 1100px !important; margin: auto !important}
figure {margin: 0}
img.experts {width: 100%; max-width: 480px; display: block}
img.on-dark, .dark img.on-light {display: none}
.dark img.on-dark {display: block}
figcaption, .quiet {color: var(--body-text-color-subdued); font-size: var(--text-sm)}
.note {border-left: 4px solid var(--color-accent); padding: .5rem .75rem; background: var(--block-background-fill)}
.note.refused {border-color: #d55e00}
table.lesson {border-collapse: collapse; width: 100%}
table.lesson th, table.lesson td {padding: .35rem .5rem; text-align: left;
  border-bottom: 1px solid var(--border-color-primary); overflow-wrap: anywhere}
table.lesson td.number {text-align: right; white-space: nowrap}
:focus-visible {outline: 3px solid #d55e00 !important; outline-offset: 2px}
"""
HEAD = '<meta name="color-scheme" content="light dark">'
INTRODUCTION = """# Teach a vision transformer new classes
The backbone is frozen; a few prompt experts learn. Drop an image to see what the model takes it for and which experts
it switches on. Then teach a copy of the model a class of your own, and take it home."""

from gradio.events import Dependency

class UploadedImage(gr.Image):
    """An image that reaches the server as a file: nothing opens it before its size was checked."""

    def get_block_name(self):
        return "image"

    def preprocess(self, payload):
        return None if payload is None else payload.path
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


def theme() -> gr.themes.Base:
    """Fonts of the visitor's own system: none is fetched."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def build_page(desk: Desk, examples: dict[str, list] | None = None, new_class: str | None = None) -> gr.Blocks:
    """The page of a desk.

    Args:
        desk: does what is asked for.
        examples: image files by the name of their class. Default: none are offered.
        new_class: that of them which the models do not know yet.
    """
    with gr.Blocks(
        title="SMoPE: teach a vision transformer", analytics_enabled=False, delete_cache=(60, 3600)
    ) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            names = list(desk.checkpoints)
            labels = [(shown_name(name), name) for name in names]
            checkpoint = gr.Dropdown(labels, value=names[0], label="Checkpoint", visible=len(names) > 1)
            first = list(desk.checkpoints[names[0]].revisions)
            revision = gr.Dropdown(first, value=first[-1], label="Task revision", filterable=False)
        with gr.Tab("Look", id="look"):
            compare = _look_tab(desk, checkpoint, revision, first, examples or {}, new_class)
        with gr.Tab("Teach", id="teach"):
            _teach_tab(desk, checkpoint, revision, compare, (examples or {}).get(new_class), new_class)
        gr.HTML(f'<p class="quiet">{html.escape(privacy(desk))}</p>')

        def choose(name, request: gr.Request):
            found = list(desk.revisions(request.session_hash, name))
            return gr.Dropdown(found, value=found[-1]), gr.Dropdown([NOTHING, *found], value=NOTHING)

        checkpoint.change(choose, checkpoint, [revision, compare], api_visibility="private", queue=False)

        def end(request: gr.Request):
            desk.visits.end(request.session_hash)

        page.unload(end)
    return page


def _look_tab(desk, checkpoint, revision, revisions, examples, new_class) -> gr.Dropdown:
    with gr.Row():
        with gr.Column(min_width=280):
            image = UploadedImage(
                label="Image", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=260
            )
            known = [str(path) for name, paths in examples.items() if name != new_class for path in paths]
            if known:
                gr.Examples(known, image, label="Or one of these", cache_examples=False, api_visibility="private")
            compare = gr.Dropdown(
                [NOTHING, *revisions], value=NOTHING, label="Compare with revision", filterable=False
            )
        with gr.Column(min_width=280):
            note = gr.HTML(_note("Drop an image, or choose one below it."))
            classes = gr.Label(label="Classes", num_top_classes=5)
            experts = gr.HTML()
        with gr.Column(min_width=280, visible=False) as other_column:
            other_note = gr.HTML()
            other_classes = gr.Label(label="Classes", num_top_classes=5)
            other_experts = gr.HTML()

    def look(name, chosen, other, file, request: gr.Request):
        outputs = dict.fromkeys((classes, experts, other_note, other_classes, other_experts), None)
        outputs |= {note: _note("Drop an image, or choose one below it."), other_column: gr.Column(visible=False)}
        if file is None:
            return outputs
        try:
            one = desk.look(request.session_hash, name, chosen, file)
            outputs |= {note: _note(f"Seen by {chosen}"), classes: one.classes, experts: experts_html(one)}
            if other != NOTHING:
                two = desk.look(request.session_hash, name, other, file)
                text = f"Seen by {other}{_common(one, two)}"
                outputs |= {other_column: gr.Column(visible=True), other_note: _note(text)}
                outputs |= {other_classes: two.classes, other_experts: experts_html(two)}
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
    )
    return compare


def _teach_tab(desk, checkpoint, revision, compare, examples, new_class):
    with gr.Row():
        with gr.Column(min_width=280):
            images = gr.File(
                label="Images of one new class", file_count="multiple", file_types=["image"], height=220
            )
            name = gr.Textbox(label="Its name", max_length=desk.limits.name_length, max_lines=1)
            if examples:
                offer = gr.Button(f"Take {len(examples)} images of an {new_class}", variant="secondary")
                offer.click(
                    lambda: ([str(path) for path in examples], new_class), None, [images, name],
                    api_visibility="private", queue=False,
                )  # fmt: skip
            learn = gr.Button("Learn", variant="primary")
        with gr.Column(min_width=280):
            result = gr.HTML(_note("The revision chosen above is copied, and the copy learns. It takes seconds."))
            download = gr.DownloadButton("Download the new checkpoint", visible=False)

    def teach(name_of, chosen, files, class_name, request: gr.Request, progress=gr.Progress()):
        def told(share, text):
            progress(share, desc=text)

        try:
            lesson = desk.learn(request.session_hash, name_of, chosen, files, class_name, told)
            found = list(desk.revisions(request.session_hash, name_of))
            return {
                result: lesson_html(lesson),
                download: gr.DownloadButton(value=str(lesson.archive), visible=True),
                revision: gr.Dropdown(found, value=found[-1]),
                compare: gr.Dropdown([NOTHING, *found], value=chosen),
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
        concurrency_id="teaching",
        trigger_mode="once",
    )


def lesson_html(lesson: Lesson) -> str:
    """What a lesson came to, as a table; what was not measured is said to be unknown."""
    old = [_percent(value) for value in (lesson.old_before, lesson.old_after)]
    measured = f"on {lesson.old_images} held-out images" if lesson.old_images else "no held-out images came along"
    right = round(lesson.new_accuracy * lesson.new_images)
    return (
        f"{_note(f'Learned {lesson.class_name!r} from {lesson.taught_with} images in {lesson.seconds:.0f} s.')}"
        '<table class="lesson"><tr><th>Accuracy</th><th>before</th><th>after</th></tr>'
        f'<tr><td>old classes<br><span class="quiet">{measured}</span></td>'
        f'<td class="number">{old[0]}</td><td class="number">{old[1]}</td></tr>'
        f'<tr><td>{html.escape(lesson.class_name)}<br><span class="quiet">on {lesson.new_images} of your images, held '
        f'out</span></td><td class="number">not known</td>'
        f'<td class="number">{_percent(lesson.new_accuracy)} ({right} of {lesson.new_images})</td></tr></table>'
        '<p class="quiet">It is chosen above now: look at an image with it, or teach it another class.</p>'
    )


def privacy(desk: Desk) -> str:
    """What happens to what a visitor sends."""
    return (
        "What you send stays on the machine that runs this page, is used for nothing else, and is deleted when you "
        f"close the page, or after {desk.limits.idle_seconds / 60:.0f} minutes without use. Limits: {desk.limits.told()}."
    )


def shown_name(checkpoint: str) -> str:
    """A checkpoint as the page names it: the Hub id, or the last part of a folder's path."""
    return checkpoint.rstrip("/").split("/")[-1] if checkpoint.startswith(("/", ".", "~")) else checkpoint


def _note(text: str, refused: bool = False) -> str:
    kind, role = (" refused", "alert") if refused else ("", "status")
    return f'<div class="note{kind}" role="{role}">{html.escape(text)}</div>'


def _common(one, two) -> str:
    share = in_common(one, two)
    return "" if share is None else f"; {100 * share:.0f}% of the experts are the same"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f}%"
class UploadedFiles(gr.File):
    """Files that reach the server as they are: gradio would leave an empty one beside each."""

    def get_block_name(self):
        return "file"

    def preprocess(self, payload):
        return None if payload is None else [file.path for file in payload.root]
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

    