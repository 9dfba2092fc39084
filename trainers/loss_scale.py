"""A scale of the loss for float16: small gradients must not round to 0 on their way to the weights.

float16 has no number between 0 and 6e-8. The loss is multiplied by a large scale, the gradients of
the float32 weights are divided by it again. If one of them is not finite the step is left out and
the scale halved; after many good steps it is doubled. As in torch's ``GradScaler``, whose numbers
are taken over, but for optimizer steps of many portions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from torch import Tensor

log = logging.getLogger(__name__)

_START = 2.0**16
_PATIENCE = 2000
"""Good steps in a row after which the scale is doubled."""


class LossScale:
    """What the loss is multiplied by.

    Args:
        compute_dtype: of ``updates``; only float16 needs a scale, all else has 1.
    """

    def __init__(self, compute_dtype: str | None = None) -> None:
        self._adapts = compute_dtype == "float16"
        self.value = _START if self._adapts else 1.0
        self.skipped = 0
        """Steps that were left out so far."""
        self._good = 0

    def unscale(self, parameters: Iterable[Tensor], norm: Tensor) -> bool:
        """Divide the gradients by the scale, and adapt it.

        Args:
            parameters: all that the optimizer moves.
            norm: of the scaled gradients, over all ranks and before they were clipped.

        Returns:
            Whether the step may be taken. If not, no parameter has a gradient any more, so that
            an optimizer changes nothing, and the scale is halved.
        """
        if not self._adapts:
            return True
        if bool(norm.isfinite()):
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(self.value)
            self._good += 1
            if self._good >= _PATIENCE:
                self.value, self._good = self.value * 2, 0
            return True
        if self.value <= 1:
            return True  # it is not the scale; who measures the norm refuses it
        for parameter in parameters:
            parameter.grad = None
        self.value, self._good, self.skipped = self.value / 2, 0, self.skipped + 1
        log.warning(
            "a gradient in float16 is not finite: the step is left out and the loss scaled by %g "
            "from here on; if that goes on, compute in bfloat16",
            self.value,
        )
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on with the same scale."""
        return {"value": self.value, "good": self._good, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved scale; without float16 it stays 1."""
        if self._adapts and state:
            self.value, self._good = float(state["value"]), int(state["good"])
            self.skipped = int(state["skipped"])
