"""What of a run's config differs from the shipped config that it began with.

A saved config does not say with which ``--config`` the run was started. The nearest shipped one is
taken, the one with the fewest other values, and named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import isfinite
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research_rl.trainers.overview.folder import RunFolder, nested, texts
from research_rl.trainers.settings import CONFIGS, read_yaml, shipped_configs

FullConfig = Callable[[list[str]], Mapping[str, Any]]
"""From ``--config`` and names of shipped configs to all options that ``research fit`` then has.

Raises ValueError where it cannot be said.
"""
_SECTIONS = {"trainer", "model", "data"}
_ABOUT_ITSELF = ("trainer.default_root_dir", "config", "overwrite", "ckpt_path", "weights_only")
_WRITTEN_BY_FIT = ("model.policy.chat_template.date",)
"""Options that a fit fills in where the config leaves them out."""
_ROOT = "RUN"
_KEPT = "\0text "
"""Stands for a text while references are followed."""
_FIRST, _BEHIND = "quickstart", " + "
_POLICY, _GIVEN = "model.policy.model", "to be given"


class OtherOption(NamedTuple):
    """An option of a run, and what the shipped config says."""

    name: str
    shipped: str
    run: str


class Compared(NamedTuple):
    """The nearest shipped config, and what differs; None and an empty list without a config.

    ``config`` is ``quickstart``, or ``quickstart + three_hops`` where one stands behind another.
    ``whole`` says whether options that the shipped file does not name were compared, too: with
    their defaults.
    """

    config: str | None
    differences: list[OtherOption]
    whole: bool


def compared_with_shipped(run: RunFolder, full: FullConfig | None = None) -> Compared:
    """Return what of a run's config differs from the nearest shipped one.

    Args:
        run: whose config is read.
        full: makes all options of a shipped config, defaults included; None compares those alone
            that the shipped file names.
    """
    name = nearest_config(run)
    if name is None:
        return Compared(None, [], False)
    theirs = _flat(run.config)
    whole = None if full is None else _whole(name, full)
    ours = _all_shipped()[name] if whole is None else _flat(whole)
    names = list(ours) if whole is None else list(dict.fromkeys([*ours, *theirs]))
    return Compared(name, list(_differences(names, ours, theirs)), whole is not None)


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the options in which configs differ, each with its value in every one of them."""
    flat = [_flat(config) for config in configs]
    names = dict.fromkeys(name for options in flat for name in options)
    return {
        name: [_shown(name, options.get(name), options) for options in flat]
        for name in names
        if name not in _ABOUT_ITSELF
        and any(_plain(options.get(name)) != _plain(flat[0].get(name)) for options in flat[1:])
    }


def nearest_config(run: RunFolder) -> str | None:
    """Return the name of the shipped config to which a run's is nearest, None without a config."""
    if not run.config.keys() >= _SECTIONS:
        return None
    theirs = _flat(run.config)
    found = _all_shipped()
    far = {name: len(list(_differences(ours, ours, theirs))) for name, ours in found.items()}
    # of those that differ alike, the one that says more of the run
    return min(far, key=lambda name: (far[name], -len(found[name])), default=None)


def _whole(name: str, full: FullConfig) -> Mapping[str, Any] | None:
    """All options of a shipped config; None where they cannot be said."""
    words = [word for one in name.split(_BEHIND) for word in ("--config", one)]
    if _POLICY not in _all_shipped()[name]:  # it must be given, and is not the shipped one's
        words = [f"--{_POLICY}={_GIVEN}", *words]
    try:
        return full(words)
    except ValueError:
        return None


def _differences(
    names: Any, ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Iterator[OtherOption]:
    for name in names:
        if name in _ABOUT_ITSELF or (name in _WRITTEN_BY_FIT and ours.get(name) is None):
            continue
        one, other = ours.get(name), theirs.get(name)
        if _plain(one) != _plain(other):
            yield OtherOption(name, _shown(name, one, ours), _shown(name, other, theirs))


def _shown(name: str, value: Any, options: Mapping[str, Any]) -> str:
    return texts(value, 300) if name in options else "not set"


def _plain(value: Any) -> Any:
    """A value as it is compared: 4 and 4.0, None and an empty section are the same."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str):
        try:
            number = float(value)  # YAML reads 1e-3 as a text
        except ValueError:
            return value
        return number if isfinite(number) else value
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()} or None
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a config by dotted names, references to its own values followed.

    The run's own folder is called RUN, so that a run in another folder has the same options.
    """
    trainer = config.get("trainer")
    root = trainer.get("default_root_dir") if isinstance(trainer, dict) else None
    options = dict(nested(_followed(config)))
    if not isinstance(root, str) or not root or "${" in root:
        return options
    own = f"{root.rstrip('/')}/"
    inside = {n: v for n, v in options.items() if isinstance(v, str) and f"{v}/".startswith(own)}
    return options | {n: f"{_ROOT}/{v[len(own) :]}".rstrip("/") for n, v in inside.items()}


def _followed(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config whose plain references are followed.

    A resolver, ``${oc.env:NAME}`` for instance, could read an environment variable: such a text
    stays as it is.
    """
    kept: list[str] = []

    def held(value: Any) -> Any:
        if isinstance(value, str) and "${" in value and ":" in value:
            kept.append(value)
            return f"{_KEPT}{len(kept) - 1}"
        if isinstance(value, dict):
            return {held(key): held(inner) for key, inner in value.items()}
        return [held(inner) for inner in value] if isinstance(value, list | tuple) else value

    def given(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(_KEPT):
            place = value.removeprefix(_KEPT)
            known = place.isdecimal() and int(place) < len(kept)
            return kept[int(place)] if known else value
        if isinstance(value, dict):
            return {given(key): given(inner) for key, inner in value.items()}
        return [given(inner) for inner in value] if isinstance(value, list) else value

    try:
        found = OmegaConf.to_container(OmegaConf.create(held(dict(config))), resolve=True)
    except (OmegaConfBaseException, ValueError, TypeError, RecursionError):
        return config
    return given(found) if isinstance(found, dict) else config


@lru_cache(maxsize=1)
def _all_shipped() -> dict[str, dict[str, Any]]:
    """The shipped configs that make a run, flat: by themselves, or behind the quickstart."""
    merged = {name: _shipped(name) for name in shipped_configs() if "/" not in name}
    alone = {name: config for name, config in merged.items() if _is_whole(config)}
    behind = {
        f"{_FIRST}{_BEHIND}{name}": _merged(merged[_FIRST], config)
        for name, config in merged.items()
        if name not in alone
    }
    return {name: _flat(config) for name, config in {**alone, **behind}.items()}


def _is_whole(config: Mapping[str, Any]) -> bool:
    """Whether a config makes a run: it says how to learn."""
    return config.keys() >= _SECTIONS and "optimizer" in config["model"]


def _shipped(name: str) -> dict[str, Any]:
    """A shipped config, merged into its bases."""
    config = read_yaml(CONFIGS / f"{name}.yaml")
    base = config.pop("base", None)
    return _merged(_shipped(str(base)), config) if base else config


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for key, value in more.items():
        before = found.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = _merged(before, value)
        found[key] = value
    return found
