"""Loggers that a run can do without: one that fails is left out, and the run goes on.

``metrics.csv`` is no such logger, for a resumed run goes on in it. TensorBoard, W&B and others
draw what is in there; a full disk in TensorBoard's thread must not end a run of days.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any

from pytorch_lightning.loggers import Logger

from research_rl.trainers.checkpoint import RunLogger
from research_rl.trainers.settings import UsageError

log = logging.getLogger(__name__)
_METHODS = (
    *("log_metrics", "log_hyperparams", "log_graph", "save", "finalize"),
    *("after_save_checkpoint", "log_image", "log_text", "log_table"),
)


_NEEDS = {
    **{"WandbLogger": ("wandb", "wandb"), "MLFlowLogger": ("mlflow", "mlflow-skinny")},
    **{"CometLogger": ("comet_ml", "comet-ml"), "NeptuneLogger": ("neptune", "neptune")},
}
"""Loggers of Lightning: the module that each needs, and the package that has it."""


def check_installed_for(loggers: Any) -> None:
    """Refuse loggers whose packages are not installed, before anything is made.

    Args:
        loggers: what a config says under ``trainer.logger``.

    Raises:
        UsageError: one is not; names the package.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        name = str(getattr(logger, "class_path", "")).rpartition(".")[2]
        module, package = _NEEDS.get(name, ("", ""))
        if module and find_spec(module) is None:
            raise UsageError(
                f"trainer.logger names {name}, which needs {module}, and it is not installed: "
                f"pip install {package}; or leave the logger out"
            )


def that_start(loggers: Sequence[Logger]) -> list[Logger]:
    """Return the loggers without those that cannot begin, each of which is told of.

    Lightning makes their files and connections when a run begins, outside of their methods.
    """
    found = []
    for logger in loggers:
        try:
            _ = getattr(logger, "experiment", None)
        except Exception as error:  # whatever a service of somebody else raises
            if isinstance(logger, RunLogger):
                raise
            _tell(logger, "beginning", error)
        else:
            found.append(logger)
    return found


def may_fail(loggers: Iterable[Logger]) -> None:
    """Have each logger but RunLogger fail with a warning, and then be left out of the run."""
    for logger in loggers:
        if not isinstance(logger, RunLogger):
            _guard(logger)


def _guard(logger: Logger) -> None:
    failed = False

    def guarded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal failed
            if failed:
                return None
            try:
                return method(*args, **kwargs)
            except Exception as error:  # whatever a service of somebody else raises
                failed = True
                _tell(logger, name, error)
                return None

        return call

    for name in _METHODS:
        if (method := getattr(logger, name, None)) is not None:
            setattr(logger, name, guarded(name, method))


def _tell(logger: Logger, what: str, error: Exception) -> None:
    log.warning(
        "%s is left out from here on, for its %s failed: %s; the run goes on, and metrics.csv has "
        "its numbers",
        *(type(logger).__name__, what, " ".join(str(error).split()) or type(error).__name__),
    )
