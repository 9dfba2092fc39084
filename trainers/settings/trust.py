"""What a folder that may be somebody else's can make a command do: nothing but give data.

``research export``, ``evaluate``, ``ask``, ``replay`` and ``fit --config runs/x/config.yaml``
read a config that came with a run's folder. Such a config may set numbers and texts. To run code
that comes with a model, to name classes of other packages, to read environment variables or to
have keys sent to the servers it names takes ``--trust`` on the command line; see docs/trust.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import _common, set_parsing_settings

from research_rl.envs.system import TrustError, grant, trusted
from research_rl.envs.web import name_servers, withhold_keys
from research_rl.trainers.settings.errors import UsageError
from research_rl.trainers.settings.yaml_files import read_yaml

_CLASSES = (
    *("research_rl", "torch.optim", "pytorch_lightning", "lightning_fabric"),
    *("bitsandbytes.optim", "torchao.optim"),
)
"""Packages whose classes any config may name."""
_OF_A_RUN = ("checkpoints", "metrics.csv", "signal.jsonl", "*.ckpt", "*.safetensors", "config.json")
"""What lies beside the config.yaml of a run or a model, and not beside one that a user wrote."""
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""With it torch.load unpickles nothing, whoever calls it and with whatever arguments."""
_POLICY = ("import_path_verdicts", "import_paths_enforced")
"""Settings of jsonargparse that can be changed by its function, but not put back."""
_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


class _Command:
    """What the running command was told, and the config it distrusts, if any."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self.distrusts: Path | None = None
        names = [w.partition("=")[2] if w.startswith("-") else w for w in words]
        self.names = names
        self.classes = [n for n in names if _CLASS_PATH.fullmatch(n) and not Path(n).exists()]


_command: _Command | None = None


@contextmanager
def careful(words: Sequence[str]) -> Iterator[None]:
    """Within, one command runs; what it was forbidden is forgotten at its end.

    Whatever the command is, torch unpickles nothing, also where a library or a plug-in calls it.
    Within another one it changes nothing: the command is the outer one.

    Args:
        words: of its command line. Classes and servers that stand there are named by the user.
    """
    global _command
    if _command is not None:
        yield
        return
    kept, forced = dict(_common.parsing_settings), os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    _command = _Command(words)
    try:
        yield
    finally:
        if _command.distrusts is not None:
            _common.parsing_settings.update({name: kept[name] for name in _POLICY})
            _let_resolve_variables(True)
            withhold_keys(False)
        _command = None
        if forced is None:
            del os.environ[_FORCE]


def came_with_a_run(file: Path) -> bool:
    """Whether a config lies in the folder of a run or a model, so that it may be somebody's."""
    return any(next(file.parent.glob(name), None) is not None for name in _OF_A_RUN)


def distrust(file: Path) -> None:
    """Hold the command to what a config that came with a folder may do, unless it is trusted.

    Until the end of the command, see ``careful``, only the classes in _CLASSES are imported for a
    config, no reference reads an environment variable, and keys go only to servers that the user
    named.

    Raises:
        TrustError: the file refers to an environment variable or another resolver.
    """
    if trusted():
        return
    if file.is_file():
        refuse_resolvers(read_yaml(file), file)
    if _command is None:
        return
    if _command.distrusts is None:
        allowed = [*_CLASSES, *_command.classes]
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=allowed)
        _let_resolve_variables(False)
        withhold_keys(True)
        name_servers(" ".join(_command.words))
    _command.distrusts = file


def refuse_class(path: str, where: str) -> None:
    """Refuse to import a class that a config names which came with a folder.

    jsonargparse is held to the same; this is for names that are imported without it.

    Args:
        path: with its module, ``my_file.MyAgent`` or ``my_file:MyEnv-v0`` for instance.
        where: the option that names it.

    Raises:
        TrustError: it is of another package, and the user has not named it.
    """
    if _command is None or _command.distrusts is None or path in _command.names:
        return
    dotted = f"{path.replace(':', '.')}."
    if not any(dotted.startswith(f"{known}.") for known in _CLASSES):
        said = f"names in {where} a class of another package ({path})"
        raise TrustError(grant(said, _command.distrusts))


def distrusted() -> Path | None:
    """Return the config that this command read and does not trust, None without one."""
    return _command.distrusts if _command is not None else None


def refuse_code(policy: Mapping[str, Any], where: Path | str) -> None:
    """Refuse the ``model.policy`` of a run's config that lets a model or a kernel bring code.

    Raises:
        TrustError: it does, and the command line does not say ``--trust``.
    """
    if policy.get("trust_remote_code") and not trusted():
        raise TrustError(
            grant("asks to run code that comes with the model (trust_remote_code)", where)
        )
    kernel = str(policy.get("attn_implementation") or "")
    if "/" in kernel and not trusted():  # transformers fetches such a name and runs it
        raise TrustError(
            grant(f"asks to run code of the Hub (attn_implementation {kernel})", where)
        )


def refuse_resolvers(config: Any, where: Path) -> None:
    """Refuse ``${oc.env:NAME}`` and its like; ``${trainer.max_steps}`` is a plain reference.

    Raises:
        TrustError: there is one, and the command line does not say ``--trust``.
    """
    if not trusted():
        for text in _texts(config):
            if _has_resolver(text):
                raise TrustError(grant(f"refers to more than its own values ({text})", where))


def read_run_config(file: Path, run: Path | None = None) -> Any:
    """Return the config.yaml of a run as plain data, its references followed.

    Args:
        file: the config.
        run: where the run's folder is now, which ``${trainer.default_root_dir}`` then means; None
            is where it was.

    Raises:
        TrustError: it refers to an environment variable or another resolver.
        UsageError: it is no YAML, or larger or deeper than a config is.
    """
    from omegaconf import OmegaConf

    config = read_yaml(file)
    refuse_resolvers(config, file)
    if not isinstance(config, dict):
        raise UsageError(f"{file} must hold sections such as model, got {type(config).__name__}")
    if run is not None and isinstance(config.get("trainer"), dict):
        config["trainer"]["default_root_dir"] = str(run)
    return OmegaConf.to_container(OmegaConf.create(config), resolve=True)


def _let_resolve_variables(allow: bool) -> None:
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    register: Any = getattr(OmegaConf, "register_resolver", OmegaConf.register_new_resolver)
    register("oc.env", oc.env if allow else _refuse_variable, replace=True)


def _refuse_variable(name: str, default: str | None = None) -> str:
    where = distrusted() or "a config"
    raise TrustError(grant(f"reads the environment variable {name}", where))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _has_resolver(text: str) -> bool:
    """Whether a colon stands within a ``${...}``, which makes it a call."""
    depth = place = 0
    while place < len(text):
        if text.startswith("${", place):
            depth += 1
            place += 1
        elif depth and text[place] == "}":
            depth -= 1
        elif depth and text[place] == ":":
            return True
        place += 1
    return False
