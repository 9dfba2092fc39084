"""Export of a checkpoint as a plain Hugging Face folder; a LoRA adapter is merged.

This is what ``research export`` runs. The model's name and its tokenizer come from the run's
``config.yaml``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from research_rl.agents import SamplingParams
from research_rl.agents.policy import LMPolicy, PolicyConfig
from research_rl.envs.system import alone_in, folder_in_place, free_at, is_full
from research_rl.trainers.checkpoint.base_model import base_files, check_base
from research_rl.trainers.checkpoint.files import META, disk_error, find_checkpoint, load_state
from research_rl.trainers.checkpoint.shards import load_plain
from research_rl.trainers.settings import (
    EnvConfig,
    read_run_config,
    refuse_code,
    with_trained_prompt,
    write_policy_file,
)

_PREFIX = "policy."


class ExportError(OSError):
    """A policy could not be written as a folder; nothing is left of it."""


def export_checkpoint(checkpoint: Path, out: Path, config: Path | None = None) -> None:
    """Write the policy of ``checkpoint`` to the folder ``out``; a LoRA adapter is merged.

    Args:
        checkpoint: a file that ModelCheckpoint wrote, or a folder that ranks wrote in shards.
        out: a folder that is empty or not there yet.
        config: the config.yaml that the run wrote, which names the model and its tokenizer. None
            looks in the checkpoint's folder and in the one above it.

    Raises:
        FileNotFoundError: the checkpoint, the config or the model it names is missing.
        ValueError: the checkpoint does not hold this policy, or ``out`` holds something already.
        FileExistsError: another process exports to ``out``.
        ExportError: the disk does not take it; ``out`` is as it was.
        CopyError: what was written is not the policy; ``out`` is as it was.
    """
    place = out.absolute().with_name(f".{out.name}.exporting")
    with alone_in(place, "is the place of another export"):
        try:
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise ValueError(f"out must be an empty or a new folder, got {out}; name another")
            checkpoint = find_checkpoint(str(checkpoint), checkpoint.parent)
            run = checkpoint.parent.parent
            config = config or _config_of(checkpoint)
            settings = policy_config(config, run)
            policy = LMPolicy.from_config(settings)
            load_weights(policy, checkpoint, settings)
            model = read_run_config(config, run)["model"]
            env = model.get("env")
            env = env and with_trained_prompt(env, run, config)
            save_policy(policy, out, env, model.get("sampling"))
        except ExportError as error:
            raise ExportError(f"{error}, then give the same command again") from error
        finally:
            shutil.rmtree(place, ignore_errors=True)


def save_policy(
    policy: LMPolicy,
    target: Path,
    env: EnvConfig | Mapping[str, Any] | None = None,
    sampling: SamplingParams | Mapping[str, Any] | None = None,
) -> None:
    """Write the policy as a Hugging Face folder, whole or not at all; replace what is there.

    What has been written is read back and compared with the policy.

    Args:
        policy: to be written.
        target: the folder.
        env: the environment that it was trained in, or that section of a config, for the folder to
            say how the policy is to be asked; None leaves it unsaid.
        sampling: how its rollouts were sampled, or that section, for the limits of tokens.

    Raises:
        ExportError: the disk does not take it; what was there is untouched.
        CopyError: what was written is not the policy; what was there is untouched.
    """
    with disk_errors_named("export the policy to", target), folder_in_place(target) as partial:
        policy.save_pretrained(partial)
        policy.check_written(partial)
        if env is not None:
            write_policy_file(partial, env, sampling)
        readable(partial)


@contextmanager
def disk_errors_named(what: str, target: Path) -> Iterator[None]:
    """Say what cannot be written where the disk is behind an error.

    Args:
        what: is done, "export the policy to".
        target: where.

    Raises:
        ExportError: it is; safetensors carries its error as text alone.
    """
    try:
        yield
    except Exception as error:
        reason = disk_error(error)
        if reason is None:
            raise
        remedy = "name a folder that may be written to"
        if is_full(error):
            reason += f" ({free_at(target.absolute().parent) / 1e6:.1f} MB free there)"
            remedy = "make room"
        raise ExportError(f"cannot {what} {target}: {reason}; {remedy}") from error


def readable(folder: Path) -> None:
    """Give each file the mode that a new file gets here; safetensors' are the owner's alone."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*.safetensors"):
        path.chmod(mode)


def iteration_of(checkpoint: Path) -> int | None:
    """Return the iterations that the weights in a checkpoint file have learned from."""
    file = checkpoint / META if checkpoint.is_dir() else checkpoint
    state = load_plain(file, mmap=True)
    iteration = state.get("iteration")
    return None if iteration is None else int(iteration)


def learned_nothing(checkpoint: Path) -> bool:
    """Whether a checkpoint's weights are bit for bit those that its run began with.

    A run with a SignalCheck keeps a fingerprint of both; without one it is False.
    """
    file = checkpoint / META if checkpoint.is_dir() else checkpoint
    state = load_plain(file, mmap=True)
    kept = state.get("callbacks") or {}
    seen = next((v for k, v in kept.items() if str(k).startswith("SignalCheck")), None) or {}
    return seen.get("start") is not None and seen["start"] == seen.get("now")


def _config_of(checkpoint: Path) -> Path:
    folders = (checkpoint.parent, checkpoint.parent.parent)
    found = next((f / "config.yaml" for f in folders if (f / "config.yaml").is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"no config.yaml in {folders[0]} or {folders[1]}; name the run's with --config"
        )
    return found


def policy_config(config: Path, run: Path | None = None) -> PolicyConfig:
    """Return the ``model.policy`` section of a run's config.yaml.

    Args:
        config: the file.
        run: where the run's folder is now, for what the config names relative to it; None is
            where it was.

    Raises:
        TrustError: it asks for what only the command line grants.
    """
    loaded = read_run_config(config, run)
    section = loaded.get("model", {}).get("policy") if isinstance(loaded, dict) else None
    if not isinstance(section, dict) or "model" not in section:
        raise ValueError(f"{config} must have model.policy.model; use the config.yaml of a run")
    refuse_code(section, config)
    return PolicyConfig.from_section(section)


def load_weights(policy: LMPolicy, checkpoint: Path, config: PolicyConfig) -> None:
    """Put the checkpoint's weights in; one with a LoRA adapter may hold the adapter alone.

    Args:
        policy: made of ``config``.
        checkpoint: of its run.
        config: of the policy.

    Raises:
        ValueError: the checkpoint does not hold this policy, or its adapter learned on others.
    """
    held = load_state(checkpoint)
    if config.lora is not None:
        check_base(held, config, base_files(config))
    state: dict[str, Tensor] = held.get("state_dict", {})
    own = {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}
    needed = {name for name, p in policy.named_parameters() if p.requires_grad}
    try:
        missing, unknown = policy.load_state_dict(own, strict=False)
    except RuntimeError as error:
        raise ValueError(
            f"{checkpoint} must hold the policy of its config.yaml; {error}"
        ) from error
    lost = sorted(needed & set(missing))
    if lost or unknown:
        raise ValueError(
            f"{checkpoint} must hold the policy of its config.yaml, got {len(lost)} weights too "
            f"few and {len(unknown)} too many (such as {(lost + unknown)[0]}); "
            "name the right config with --config"
        )
