"""Whether a backbone is still the base model that its checkpoint names, told without a look at all of its weights."""

import torch
from torch import Tensor, nn

NUMBERS = 32  # of each weight


class BackboneProbe:
    """What a backbone was when it was loaded: the kind of each of its modules, and some numbers of each weight.

    Training and merged adapters change all numbers of a weight, or nearly so: that the few that are compared stay as
    they were has never been seen, and a hash of all weights at each save would cost more than the save.

    Args:
        backbone: just loaded.
    """

    def __init__(self, backbone: nn.Module):
        self.kinds = {name: type(module) for name, module in backbone.named_modules()}
        self.numbers = _numbers(backbone)

    def change(self, backbone: nn.Module) -> str | None:
        """What is no longer as it was, in words; None where nothing is.

        Args:
            backbone: the same one now. Weights that hold no numbers at the moment, as where they are offloaded, are
                passed over; those of another precision are compared in that.
        """
        trained = [name for name, weight in backbone.named_parameters() if weight.requires_grad]
        if trained:
            return f"{trained[0]} of the backbone and {len(trained) - 1} other weights of it are trained"
        kinds = dict(backbone.named_modules())
        for name in sorted({*kinds, *self.kinds}):
            if name not in kinds or name not in self.kinds or not isinstance(kinds[name], self.kinds[name]):
                return f"the module {name or 'that is all of it'} of the backbone is another one than was loaded"
        for name, now in _numbers(backbone).items():
            before = self.numbers.get(name)
            if before is not None and not torch.equal(before.to(now.dtype), now):
                return f"{name} of the backbone has other numbers than were loaded"
        return None


def has_adapters(model: nn.Module) -> bool:
    """Whether adapters of PEFT are in a model."""
    return getattr(model, "_hf_peft_config_loaded", False) or any(
        type(module).__module__.partition(".")[0] == "peft" for module in model.modules()
    )


@torch.no_grad()
def _numbers(backbone: nn.Module) -> dict[str, Tensor]:
    """Some numbers of each weight, spread over it, on the CPU."""
    found = {}
    for name, weight in backbone.named_parameters():
        plain = type(weight.data) is Tensor  # neither packed by a quantizer nor a part of what lies on other devices
        if plain and not weight.is_meta and weight.is_floating_point():
            flat = weight.detach().reshape(-1)
            found[name] = flat[:: max(1, len(flat) // NUMBERS)][:NUMBERS].clone()
    if not found:
        return {}
    # one copy for each precision: a copy for each weight would wait for the device each time
    for kind in {value.dtype for value in found.values()}:
        names = [name for name, value in found.items() if value.dtype == kind]
        together = torch.cat([found[name] for name in names]).cpu()
        found.update(zip(names, together.split([len(found[name]) for name in names])))
    return found
