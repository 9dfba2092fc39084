"""What is claimed of a model called in another way, and comparisons that know no scale.

Small weights hide a fault: what a layer adds is then little beside what it is added to, and
logits are nearly equal whatever they are made of. So attention is compared at its own inputs and
outputs, each token relative to itself; what must not be touched at all is tested with NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from research_rl.agents.kernels import Seen, rope_types, text_config

_FULL = (torch.float32, torch.float64)
_WINDOWS = (
    "sliding_window",
    "sliding_window_size",
    "attention_window_size",
    "attention_window",
    "local_attention_window_size",
    "window_size",
)
"""What configs call the number of keys that a query sees."""
_LOCAL = ("sliding_attention", "local_attention", "local")
"""What configs call a layer with a window."""
LARGEST_TRIED = 96
"""Windows up to this are tried with a text that is longer; of others the config is asked."""
_LONGER = 8
_KEPT = 1 << 20
"""Numbers of a buffer up to which it is put back."""


@dataclass(frozen=True)
class Claim:
    """That a way to call a model computes what its own forward pass does.

    Args:
        who: calls it so, e.g. "packed learning".
        model: of transformers, below the wrapper of peft.
        instead: what to do otherwise, said at the end of a refusal.
    """

    who: str
    model: Any
    instead: str = ""

    def refuse(self, must: str, got: str) -> NoReturn:
        """Raise NotImplementedError with what must hold and what the model does."""
        name = type(self.model).__name__
        raise NotImplementedError(f"{self.who} must {must}, got {name}, {got}{self._behind}")

    @property
    def tolerance(self) -> float:
        """Part of its own size by which rounding may move what attention reads and writes."""
        return 0.01 if next(self.model.parameters()).dtype in _FULL else 0.1

    @contextmanager
    def called(self) -> Iterator[None]:
        """Refuse a model that fails inside, whatever it fails with."""
        try:
            yield
        except (NotImplementedError, torch.OutOfMemoryError):
            raise
        except (AttributeError, TypeError, LookupError, ValueError, RuntimeError) as error:
            got = f"got {type(error).__name__} from {type(self.model).__name__}: {error}"
            raise NotImplementedError(
                f"{self.who} must call the model with an attention of its own, {got}" + self._behind
            ) from error

    @property
    def _behind(self) -> str:
        return f"; {self.instead}" if self.instead else ""

    def check_config(self) -> None:
        """Refuse what the config says cannot be."""
        config = text_config(self.model.config)
        if dynamic := rope_types(config) & {"dynamic", "longrope"}:
            self.refuse(
                "see positions that do not depend on the batch", f"with rope_type {dynamic.pop()!r}"
            )
        if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
            self.refuse("know which keys a query may look at", "which attends in chunks")

    def check_calls(self, ours: list[Seen], theirs: list[tuple[Seen, Tensor | None]]) -> None:
        """Compare all calls of the attention, both of the same tokens in the same order.

        Args:
            ours: of the way that is put to the proof; fewer queries where the rest is not needed.
            theirs: of the model's own forward pass, with masks (..., L, L).
        """
        self.check_replaced(len(ours), len(theirs))
        self._check_windows([seen.window for seen in ours])
        low = self.tolerance > 0.01
        for number, (mine, (stock, mask)) in enumerate(zip(ours, theirs, strict=True)):
            if (mine.scaling, mine.softcap) != (stock.scaling, stock.softcap):
                self.refuse("scale scores as the model does", "which scales them otherwise")
            self._check_mask(mask, mine.window)
            for name in ("q", "k", "out"):
                tensor = getattr(mine, name)
                if not len(tensor):  # the last layer of a pass that only reads
                    continue
                gaps = strayed(tensor, getattr(stock, name)[: len(tensor)])
                # in low precision a router may send some tokens to other experts further up
                gap = float(gaps.median() if low and number else gaps.max())
                if not gap <= self.tolerance:
                    what = {"q": "queries", "k": "keys", "out": "attention outputs"}[name]
                    self.refuse(
                        "compute what the model does",
                        f"whose {what} differ by {gap:.2g} of their size in attention {number + 1}",
                    )

    def check_replaced(self, ours: int, theirs: int) -> None:
        """Compare how often an attention of ours was called, here and in the model's own pass."""
        if not ours or ours != theirs:
            got = f"which calls it {ours} times instead of {theirs}"
            none = "which attends by code of its own, or not at all"
            self.refuse("replace the attention of each layer", got if ours else none)

    def _check_windows(self, used: list[int | None]) -> None:
        """Refuse a window that the config names and the attention is not told of."""
        asked = asked_windows(self.model.config)
        if len(asked) == len(used) and any(asked) and asked != used:
            wrong = next(a or b for a, b in zip(asked, used, strict=True) if a != b)
        else:
            wrong = next((window for window in asked if window and window not in used), None)
        if wrong is not None:
            self.refuse(
                "be told of sliding windows by each attention layer",
                f"whose config names a window of {wrong} tokens that its attention does not "
                "hand on",
            )

    def _check_mask(self, mask: Tensor | None, window: int | None) -> None:
        must = "know which keys a query may look at"
        if mask is None:
            self.refuse(must, "which hands its attention no mask")
        size = mask.shape[-1]
        here = torch.arange(size, device=mask.device)
        hidden = here > here[:, None]
        if window is not None:
            hidden |= here <= here[:, None] - window
        masked = mask <= torch.finfo(mask.dtype).min / 2
        if not bool((masked == hidden).all()):
            of = "" if window is None else f" within {window} tokens"
            self.refuse(must, f"whose mask is another than that of all keys before a query{of}")
        if bool(mask.masked_fill(masked, 0.0).any()):
            self.refuse(must, "whose mask adds something to its scores")

    def check_apart(self, found: Tensor, spoiled: Tensor, what: str) -> None:
        """Refuse a model in which NaN in some tokens arrives elsewhere, or not where it must.

        Args:
            found: (N, D) behind it.
            spoiled: (N,) bool; where NaN must arrive.
            what: of which it is said that they touch each other.
        """
        touched = ~found.isfinite().all(-1)
        if bool((touched & ~spoiled).any()):
            self.refuse(f"keep {what} apart", f"in which {what} change each other")
        if bool((spoiled & ~touched).any()):
            self.refuse(
                f"know on what {what} depend", "whose outputs do not show what its inputs are"
            )

    def check_equal(self, ours: Tensor, theirs: Tensor, must: str, got: str) -> None:
        """Compare (N, ...) with what may differ from it by rounding alone."""
        gaps = strayed(ours, theirs)
        gap = float(gaps.median() if self.tolerance > 0.01 else gaps.max())
        if not gap <= self.tolerance:
            self.refuse(must, f"{got} by {gap:.2g} of their size")

    def check_repeated(self, ours: Tensor, theirs: Tensor, must: str, got: str) -> None:
        """Compare (N, ...) with the same computation in another place: it differs by a few ulps."""
        gap = float(strayed(ours, theirs).median())
        few = 32 * torch.finfo(ours.dtype).eps
        if not gap <= few:
            self.refuse(must, f"{got} by {gap:.2g} of their size")


def strayed(ours: Tensor, theirs: Tensor) -> Tensor:
    """Distance (N,) of ours (N, ...) from theirs, each relative to the size of theirs."""
    a, b = (x.float().flatten(1) for x in (ours, theirs))
    gap, size = (a - b).norm(dim=1), b.norm(dim=1)
    same = (a == b).all(1)
    return torch.where(same, 0.0, gap / size.clamp(min=torch.finfo(torch.float32).tiny))


def asked_windows(config: Any) -> list[int | None]:
    """The window of each attention layer as the config says it; None where a layer sees all.

    Where the config does not tell layers apart, the one window that it names.
    """
    text = text_config(config)
    if getattr(text, "use_sliding_window", True) is False:
        return []
    found = (getattr(text, name, None) for name in _WINDOWS)
    window = next((w for w in found if isinstance(w, int) and w > 0), None)
    if window is None:
        return []
    types = getattr(text, "layer_types", None)
    if not types:
        return [window]
    kinds = [t for t in types if "attention" in t and not t.startswith("linear")]
    return [window if t in _LOCAL else None for t in kinds]


def tried_length(config: Any) -> int:
    """Tokens of a text that is longer than the config's window; 0 where none need be."""
    windows = [w for w in asked_windows(config) if w and w <= LARGEST_TRIED]
    return max(windows) + _LONGER if windows else 0


@contextmanager
def spoiled(model: Any, where: Tensor, factor: float = torch.nan) -> Iterator[None]:
    """Inside, the embeddings of some tokens are NaN.

    Args:
        model: a causal language model.
        where: bool, in the shape of the ids that it is called with.
        factor: what they are multiplied by instead.
    """

    def spoil(module: Any, given: Any, out: Tensor) -> Tensor:
        return torch.where(where[..., None], out * factor, out)

    handle = model.get_input_embeddings().register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def state_put_back(model: Any) -> Iterator[None]:
    """Put back behind what modules keep of a forward pass, such as recurrent states."""
    loose: list[tuple[Any, dict[str, Any]]] = []
    buffers: list[tuple[Tensor, Tensor]] = []
    for module in model.modules():
        loose.append((module, {k: v for k, v in vars(module).items() if _may_be_state(v)}))
        for buffer in module.buffers(recurse=False):
            if buffer.numel() <= _KEPT:
                buffers.append((buffer, buffer.clone()))
    try:
        yield
    finally:
        for module, before in loose:
            for name, value in list(vars(module).items()):
                if isinstance(value, Tensor) and before.get(name, ...) is not value:
                    if name in before:
                        vars(module)[name] = before[name]
                    else:
                        del vars(module)[name]
        for buffer, kept in buffers:
            if not torch.equal(buffer, kept):
                buffer.copy_(kept)


def centred(logits: Tensor) -> Tensor:
    """Logits (N, V) in float32, without what is added to all of a row."""
    return logits.float() - logits.float().mean(-1, keepdim=True)


def _may_be_state(value: Any) -> bool:
    return value is None or isinstance(value, Tensor)
