"""How a model here classifies images: the backbone with the parts in its attention, the head, the losses."""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import ModelOutput

from .prefix_experts import at_least_float32
from .running_pass import Pass, begun


class ForwardPass:
    """The forward pass of every model here; a model class sets `OUTPUT` and what its parts do before and after.

    `prepare_parts` and `collect_parts` are called around the backbone, `add_losses` where there are labels, and
    `own_outputs` where a caller asks for what the parts have noted.
    """

    ATTENTION: dict[str, str]  # "sdpa" and "eager" -> name of this model's form of it
    OUTPUT: type[ModelOutput]  # what a pass gives

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """Classify images; with labels also the losses.

        Args:
            pixel_values: (B, 3, height, width), as the image processor gives them.
            labels: (B,) class ids of the current (last) task.
            output_hidden_states: also return the backbone's hidden states; default from the config.
            output_attentions: also return the attention weights; this pass then runs the plain form. Default from the
                config.
            interpolate_pos_encoding: accept another image size than the backbone's.
            return_dict: False for a plain tuple; default from the config.

        Raises:
            ValueError: for labels outside the current task.
            RuntimeError: when the backbone's attention runs without the prompts, or for another model.
        """
        return self._forward(
            pixel_values, labels, output_hidden_states, output_attentions, interpolate_pos_encoding, return_dict
        )

    def _forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None,
        output_hidden_states: bool | None,
        output_attentions: bool | None,
        interpolate_pos_encoding: bool | None,
        return_dict: bool | None,
        output_noted: bool = False,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """The forward pass; `output_noted` also returns what the parts have noted."""
        running = self.prepare_parts(pixel_values, interpolate_pos_encoding)
        outputs = self._run_backbone(
            running,
            pixel_values,
            interpolate_pos_encoding,
            output_hidden_states=self._asked(output_hidden_states, "output_hidden_states"),
            output_attentions=self._asked(output_attentions, "output_attentions"),
        )
        noted = self.collect_parts(running)
        pooled, logits = self._classify(outputs.last_hidden_state)  # (B, D), (B, C)
        losses = {}
        if labels is not None:
            losses = self.add_losses(self._cross_entropy(logits, labels), pooled, labels, noted)
        result = self.OUTPUT(
            **losses,
            **(self.own_outputs(noted) if output_noted else {}),
            logits=logits,
            pooled_output=pooled,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return result if self._asked(return_dict, "return_dict") else result.to_tuple()

    def _asked(self, value: bool | None, setting: str) -> bool:
        """What a caller asks for, or else the config."""
        return getattr(self.config, setting) if value is None else value

    def prepare_parts(self, pixel_values: Tensor, interpolate_pos_encoding: bool | None) -> Pass:
        """The pass to run, with what the parts in the attention need to know in it."""
        return Pass()

    def collect_parts(self, running: Pass):
        """What the parts have noted in the pass while the backbone ran.

        Raises:
            RuntimeError: when the backbone's attention has run without them.
        """

    def add_losses(self, cross_entropy: Tensor, pooled: Tensor, labels: Tensor, noted) -> dict[str, Tensor]:
        """The losses of the output: the cross-entropy, what the method adds, and "loss", their sum."""
        return {"loss": cross_entropy, "cross_entropy": cross_entropy}

    def own_outputs(self, noted) -> dict:
        """Fields of the output that are filled from what the parts have noted, on request."""
        return {}

    def _run_backbone(
        self, running: Pass, pixel_values: Tensor, interpolate_pos_encoding: bool | None, **outputs: bool
    ):
        self._check_not_taken_over()
        kwargs = {name: True for name, wanted in outputs.items() if wanted}
        if self.family.resizes == "argument" and interpolate_pos_encoding:
            kwargs["interpolate_pos_encoding"] = True
        running.weights = "output_attentions" in kwargs
        with begun(running):
            return self.backbone(pixel_values, **kwargs)

    def _classify(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (B, D) and logits (B, C) from the backbone's last hidden state."""
        pooled = self.family.pool(self.backbone, tokens, self.config.pooling)
        kind = pooled.device.type  # a closed-form head weighs small directions up: bfloat16 would drown in them
        autocast = torch.amp.is_autocast_available(kind)
        with torch.autocast(kind, enabled=False) if autocast else contextlib.nullcontext():
            return pooled, self.classifier(pooled.to(self.classifier.weight.dtype))

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Over the classes of the current task alone (docs/method.md, step 9)."""
        if not self.config.tasks:
            raise ValueError("labels were given to a model without classes. Call begin_task(class_names) first.")
        first, last = self.config.tasks[-1][0], self.config.tasks[-1][-1]
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():  # elsewhere it would synchronise
            outside = labels[(labels < first) | (labels > last)]
            if outside.numel():
                raise ValueError(
                    f"labels hold {int(outside[0])}, outside the current task's class ids {first} to {last}. Give "
                    "class ids of the last task only; call begin_task() before training on new classes."
                )
        return F.cross_entropy(at_least_float32(logits[:, first:]), labels - first)
