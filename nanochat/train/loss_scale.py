"""Dynamic scale of the loss for float16 activations, whose gradients would otherwise be too small for float16's exponents.

Micikevicius et al., 2018 (arXiv 1710.03740): the backward pass computes the gradient of the scaled loss, and the weights' float32 gradients
are divided by the scale before the update. A step whose gradient overflows updates nothing and halves the scale; after many steps without
one it doubles. The decision follows from the gradient norm over all ranks, which every step has anyway, so it needs no synchronisation.
"""

import math
from typing import Any

GROWTH_STEPS = 1000  # steps without overflow until the scale doubles
TOKEN_SCALE = 16  # initial factor of one token's gradient
LARGEST = 2**40


class LossScale:
    """The scale, a power of two from 1 on, and the number of steps since its last change."""

    def __init__(self, scale: int, steps: int = 0):
        self.scale, self.steps = scale, steps

    @staticmethod
    def begin(tokens: int, meta: dict[str, Any]) -> "LossScale":
        """The scale in a checkpoint's metadata, else an initial one for a loss that is the mean over `tokens` tokens."""
        if "loss_scale" in meta:
            return LossScale(meta["loss_scale"], meta["loss_scale_steps"])
        return LossScale(TOKEN_SCALE * 2 ** round(math.log2(max(tokens, 1))))

    def meta(self) -> dict[str, int]:
        """The entries of a checkpoint's metadata."""
        return {"loss_scale": self.scale, "loss_scale_steps": self.steps}

    def halve(self) -> bool:
        """Halve the scale after an overflow. False if it is 1 already, so that the gradient itself is NaN or Inf."""
        if self.scale == 1:
            return False
        self.scale, self.steps = self.scale // 2, 0
        return True

    def grow(self) -> bool:
        """Count a step without overflow; True if the scale has doubled."""
        self.steps += 1
        if self.steps < GROWTH_STEPS or self.scale >= LARGEST:
            return False
        self.scale, self.steps = 2 * self.scale, 0
        return True
