"""The README.md of a checkpoint, written from what happened in the run."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from .backbones import EMBEDDED
from .metrics import continual_metrics

TEMPLATE = """---
{{ card_data }}
---

# SMoPE after task {{ num_tasks }}: {{ num_classes }} classes

A frozen vision transformer (`{{ backbone }}`{% if revision %}, revision `{{ revision }}`{% endif %}) that learned
{{ num_classes }} classes of `{{ dataset }}` in {{ num_tasks }} tasks, one after the other and without the images of
earlier tasks, through a Sparse Mixture of Prompt Experts (SMoPE, arXiv 2509.24483). This checkpoint holds the experts,
their routing state, the head, and the class statistics that are needed to teach it more classes.

## Use

```python
import smope_hf
from transformers import pipeline

classifier = pipeline("image-classification", model="path/or/repository")
classifier("image.png")
```

## Results

Measured on the test images of all tasks learned so far, all {{ num_classes }} classes in competition.

| final average accuracy | cumulative average accuracy | forgetting |
|---:|---:|---:|
| {{ faa }} | {{ caa }} | {{ fm }} |

| task | classes | accuracy |
|---:|---|---:|
{% for row in rows %}| {{ row.task }} | {{ row.classes }} | {{ row.accuracy }} |
{% endfor %}
Protocol hash: `{{ protocol_hash }}`. Two results are comparable only if theirs are equal.

## Recipe

```json
{{ recipe }}
```
"""


def build_card(config, stream, matrix, recipe: str, protocol_hash: str) -> str:
    """Write the card of a checkpoint.

    Args:
        config: the model's config.
        stream: the tasks; those learned are described.
        matrix: accuracy matrix so far.
        recipe: the training settings, as JSON text.
        protocol_hash: of the stream's manifest.
    """
    metrics = continual_metrics(matrix)
    base = config.base_model_name_or_path
    on_hub = is_hub_id(base)
    data = ModelCardData(
        library_name="smope_hf",
        license="apache-2.0",
        pipeline_tag="image-classification",
        tags=["smope", "continual-learning", "class-incremental-learning", "prompt-tuning", "mixture-of-experts"],
        base_model=base if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        model_name=f"SMoPE, {len(config.tasks)} tasks",
        eval_results=_results(metrics, stream.name),
    )
    learned = list(stream[: len(config.tasks)])
    rows = [
        {
            "task": task.index + 1,
            "classes": ", ".join(name.replace("|", "/") for name in task.class_names),
            "accuracy": _percent(accuracy),
        }
        for task, accuracy in zip(learned, matrix.as_array()[-1], strict=True)
    ]
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        num_tasks=len(config.tasks),
        num_classes=config.num_labels,
        dataset=stream.name,
        backbone=base if on_hub or base == EMBEDDED else config.backbone_config.model_type,
        revision=config.base_model_revision,
        faa=_percent(metrics["final_average_accuracy"]),
        caa=_percent(metrics["cumulative_average_accuracy"]),
        fm=_percent(metrics["forgetting"]),
        rows=rows,
        recipe=recipe,
        protocol_hash=protocol_hash,
    ).content


def is_hub_id(name: str | None) -> bool:
    """Whether a base model's name is one that another machine can load: an "owner/name" that is no folder here."""
    if name is None or name.count("/") != 1 or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _percent(fraction: float | None) -> str:
    return "n/a" if fraction is None else f"{100 * fraction:.2f}"


def _results(metrics: dict, dataset: str) -> list[EvalResult]:
    names = {
        "final_average_accuracy": "Final average accuracy",
        "cumulative_average_accuracy": "Cumulative average accuracy",
        "forgetting": "Forgetting",
    }
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type=key,
            metric_name=name,
            metric_value=round(metrics[key], 6),
        )
        for key, name in names.items()
        if metrics[key] is not None
    ]
