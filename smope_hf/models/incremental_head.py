"""The classifier that grows with the classes."""

import torch
from torch import nn


class IncrementalHead(nn.Linear):
    """A linear head over the classes seen so far, (B, D) -> (B, C); starts without any and grows by rows."""

    @torch.no_grad()
    def reset_parameters(self):
        self.weight.normal_(std=0.02)
        self.bias.zero_()

    @torch.no_grad()
    def grown(self, num_new: int) -> "IncrementalHead":
        """The same head with new rows below the old ones, which stay bit-equal."""
        rows = self.out_features
        head = IncrementalHead(
            self.in_features, rows + num_new, device=self.weight.device, dtype=self.weight.dtype
        ).train(self.training)
        head.weight[:rows], head.bias[:rows] = self.weight, self.bias
        return head
