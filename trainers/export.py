"""``research export``: a Lightning checkpoint becomes a plain Hugging Face folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from research_rl.agents.policy import LMPolicy, LoraConfig, PolicyConfig
from research_rl.trainers.checkpoint import find_checkpoint

_PREFIX = "policy."


def main(argv: Sequence[str]) -> None:
    """Run ``research export`` with these arguments, and say which folder it wrote."""
    parser = argparse.ArgumentParser(
        prog="research export",
        description="Write weights and tokenizer of a checkpoint as a Hugging Face folder.",
        allow_abbrev=False,
    )
    parser.add_argument("--ckpt", type=Path, required=True, help="a .ckpt file of `research fit`")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--config",
        type=Path,
        help="the run's config.yaml; found beside the checkpoint's folder if not given",
    )
    args = parser.parse_args(argv)
    export(args.ckpt, args.out, args.config)
    print(f"wrote {args.out}")


def export(checkpoint: Path, out: Path, config: Path | None = None) -> None:
    """Write the policy of ``checkpoint`` to the folder ``out``; a LoRA adapter is merged.

    Args:
        checkpoint: a file that ModelCheckpoint wrote.
        out: a folder that is empty or not there yet.
        config: the config.yaml that the run wrote, which names the model and its tokenizer. None
            looks in the checkpoint's folder and in the one above it.

    Raises:
        FileNotFoundError: the checkpoint, the config or the model it names is missing.
        ValueError: the checkpoint does not hold this policy, or ``out`` holds something already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out must be an empty or a new folder, got {out}; name another one")
    checkpoint = find_checkpoint(str(checkpoint), checkpoint.parent)
    policy = LMPolicy.from_config(policy_config(config or _config_of(checkpoint)))
    _load(policy, checkpoint)
    policy.save_pretrained(out)


def _config_of(checkpoint: Path) -> Path:
    folders = (checkpoint.parent, checkpoint.parent.parent)
    found = next((f / "config.yaml" for f in folders if (f / "config.yaml").is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"no config.yaml in {folders[0]} or {folders[1]}; name the run's with --config"
        )
    return found


def policy_config(config: Path) -> PolicyConfig:
    """Return the ``model.policy`` section of a run's config.yaml."""
    loaded: Any = OmegaConf.to_container(OmegaConf.load(config), resolve=True)
    section = loaded.get("model", {}).get("policy") if isinstance(loaded, dict) else None
    if not isinstance(section, dict) or "model" not in section:
        raise ValueError(f"{config} must have model.policy.model; use the config.yaml of a run")
    lora = section.pop("lora", None)
    return PolicyConfig(**section, lora=LoraConfig(**lora) if lora else None)


def _load(policy: LMPolicy, checkpoint: Path) -> None:
    """Put the checkpoint's weights in; one with a LoRA adapter may hold the adapter alone."""
    state: dict[str, Tensor] = torch.load(checkpoint, map_location="cpu", weights_only=True).get(
        "state_dict", {}
    )
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
