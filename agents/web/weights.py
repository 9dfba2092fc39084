"""New weights for a policy that is being served: loaded and checked first, then taken.

Where they cannot be taken, the policy keeps those that it had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from research_rl.agents.policy import LMPolicy
from research_rl.envs.system import LOADING


def take_weights(policy: LMPolicy, folder: str) -> None:
    """Take the weights of a Hugging Face folder.

    Raises:
        ValueError: the folder lacks some, or they are of another model.
    """
    own: Any = policy.model
    with LOADING:  # by the class that is served already: the folder's own code is not looked at
        new, found = type(own).from_pretrained(
            folder,
            dtype="auto",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    if lost := sorted(found["missing_keys"]):
        raise ValueError(
            f"the folder {folder} must hold every weight, got {len(lost)} too few, such as "
            f"{lost[0]}; write it with save_pretrained"
        )
    theirs, ours = _shapes(new.state_dict()), _shapes(own.state_dict())
    if theirs != ours:
        wrong = sorted(n for n in {*ours, *theirs} if ours.get(n) != theirs.get(n))
        raise ValueError(
            f"the folder {folder} must hold the weights of the model that is served, got "
            f"{wrong[0]} of shape {theirs.get(wrong[0], 'none')}, not {ours.get(wrong[0], 'none')}"
        )
    own.load_state_dict(new.state_dict())


def take_adapter(policy: LMPolicy, name: str, folder: str, known: bool) -> None:
    """Take a LoRA adapter from a folder.

    Args:
        policy: of which it becomes a part.
        name: of the adapter.
        folder: written by peft.
        known: whether the policy has one of this name, which it replaces.

    Raises:
        ValueError: the folder lacks weights of it, or they are of another model.
    """
    from peft import PeftConfig
    from peft.utils import get_peft_model_state_dict, load_peft_weights

    config: Any = PeftConfig.from_pretrained(folder)
    _check_adapter(config, folder)
    config.inference_mode = True
    weights = load_peft_weights(folder, device="cpu")
    model: Any = policy.model
    former = None
    if known:
        kept = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        former = model.peft_config[name], {key: value.clone() for key, value in kept.items()}
        model.delete_adapter(name)
    try:
        _attach(policy, name, config, weights, folder)
    except Exception:
        _detach(policy, name)
        if former is not None:
            _attach(policy, name, *former, folder)
        raise


def _check_adapter(config: Any, folder: str) -> None:
    """Refuse an adapter whose config has peft import modules, or read more files.

    Raises:
        ValueError: it does.
    """
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise ValueError(f"the adapter in {folder} must be LoRA, got {kind}")
    start = getattr(config, "init_lora_weights", True)
    if getattr(config, "megatron_config", None) or start not in (True, False, "gaussian"):
        raise ValueError(
            f"the adapter in {folder} must be plain LoRA, without megatron_config and with "
            f"init_lora_weights true, false or gaussian, got {start!r}"
        )


def _attach(
    policy: LMPolicy, name: str, config: Any, weights: Mapping[str, Tensor], folder: str
) -> None:
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    model: Any = policy.model
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
    else:
        model = PeftModel(model, config, adapter_name=name)
        policy.model = model
    needed = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    ours, theirs = _shapes(needed), _shapes(weights)
    wrong = sorted(key for key in ours if ours[key] != theirs.get(key))
    if not wrong:
        taken: Any = set_peft_model_state_dict(model, dict(weights), adapter_name=name)
        wrong = sorted(taken.unexpected_keys)
    if wrong:
        raise ValueError(
            f"the adapter in {folder} must hold the weights that its own config names for this "
            f"model, got {wrong[0]} of shape {theirs.get(wrong[0], 'none')}"
        )
    policy.eval()


def _detach(policy: LMPolicy, name: str) -> None:
    """Take an adapter out, also one that is half in."""
    from peft import PeftModel

    model: Any = policy.model
    if not isinstance(model, PeftModel):
        return
    if set(model.peft_config) <= {name}:
        policy.model = model.unload()
    elif name in model.peft_config:
        model.delete_adapter(name)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}
