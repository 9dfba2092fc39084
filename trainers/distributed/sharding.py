"""Sharded training (FSDP2): weights, gradients and optimizer state are divided among the ranks.

While rollouts are sampled, every rank holds a plain copy of all weights, gathered once for the
whole phase. Gathering a layer at each decode step would be a collective, and ranks decode
different numbers of steps. While the policy learns, each layer is gathered for its own forward and
backward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities import rank_zero_info
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from research_rl.agents.kernels import ENTRY
from research_rl.agents.policy import (
    LMPolicy,
    PolicyConfig,
    Reference,
    decoder_layers,
    empty_model,
    load_model,
    load_tokenizer,
)
from research_rl.envs.system import clear_partial, partial_folder, replace_folder
from research_rl.trainers.checkpoint import CheckpointError, disk_error, remove_checkpoint
from research_rl.trainers.lightning_internals import save_in_shards, shard_over

_TIMEOUT = timedelta(hours=2)
"""Of a collective. The other ranks wait in one while the slowest rank samples its rollouts."""


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy (FSDP2) with all ranks in one data-parallel group.

    Args:
        save_distributed_checkpoint: each rank writes its own share, and a checkpoint is a folder.
            Otherwise the first rank gathers all weights and writes one file, as it always does
            with a LoRA adapter. Both can be resumed on any number of ranks.
        process_group_backend: nccl, gloo, ...; None takes the usual one of the device.
    """

    def __init__(
        self, save_distributed_checkpoint: bool = False, process_group_backend: str | None = None
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=_TIMEOUT,
        )
        self._in_shards = save_distributed_checkpoint

    def setup_environment(self) -> None:
        """Count the ranks and connect them."""
        shard_over(self, self.num_nodes * self.num_processes)
        super().setup_environment()

    def setup(self, trainer: Any) -> None:
        """Place the model, and decide that an adapter is written as one file."""
        super().setup(trainer)
        if self._adapter_only and self._in_shards:
            self._in_shards = False
            save_in_shards(self, False)
            rank_zero_info("a LoRA adapter is small: its checkpoints are single files")

    @property
    def _adapter_only(self) -> bool:
        config = getattr(self.lightning_module, "policy_config", None)
        return getattr(config, "lora", None) is not None

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the weights for a checkpoint; with LoRA only those that are trained."""
        if not self._adapter_only:
            return super().lightning_module_state_dict()
        assert self.model is not None
        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=True
        )
        return get_model_state_dict(self.model, options=options)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint, a file or a folder, completely or not at all.

        Raises:
            CheckpointError: it cannot be written; an earlier one is unchanged.
        """
        target = Path(self.broadcast(filepath))
        partial = partial_folder(target)
        sharded = self._in_shards
        if self.is_global_zero:
            clear_partial(target.parent, target.name)
            if not sharded and target.is_dir():
                remove_checkpoint(target)
        self.barrier()
        if not sharded:
            super().save_checkpoint(checkpoint, target, storage_options)
            return
        try:
            super().save_checkpoint(checkpoint, partial, storage_options)
        except Exception as error:
            if (reason := disk_error(error)) is None:
                raise
            raise CheckpointError(f"cannot write the checkpoint {target}: {reason}") from error
        self.barrier()
        if self.is_global_zero:
            replace_folder(partial, target)
        self.barrier()


class Shards:
    """Divides models among the ranks, and gathers them again.

    Args:
        mesh: of the strategy.
        dtype: in which the layers compute; weights are cast when they are gathered. None is the
            weights' own. Gradients are averaged in float32.

    Raises:
        ValueError: the mesh is also tensor-parallel.
    """

    def __init__(self, mesh: DeviceMesh, dtype: torch.dtype | None = None) -> None:
        if mesh["tensor_parallel"].size() != 1:
            raise ValueError(
                "tensor_parallel_size must be 1, got "
                f"{mesh['tensor_parallel'].size()}; use ShardedStrategy, which shards over all "
                "ranks"
            )
        self._mesh = mesh["data_parallel"]
        self._mixed = MixedPrecisionPolicy()
        if dtype is not None:
            self._mixed = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        self._skeleton: nn.Module | None = None
        self._is_whole = False

    def policy(self, config: PolicyConfig) -> LMPolicy:
        """Return the sharded policy; only the first rank reads its weights from disk."""
        tokenizer = load_tokenizer(config)
        model = empty_model(config)
        self._skeleton = copy.deepcopy(model)
        return LMPolicy(self._filled(model, config), tokenizer)

    def reference(self, policy: LMPolicy, config: PolicyConfig) -> Reference:
        """Return the sharded reference; with LoRA it is the policy with its adapter off."""
        if config.lora is not None:
            return Reference(policy)
        plain = replace(config, compile=None, gradient_checkpointing=False)
        model = empty_model(plain).requires_grad_(False)
        return Reference(policy, model=self._filled(model, plain))

    def _filled(self, model: Any, config: PolicyConfig) -> Any:
        """Shard a model without weights, and broadcast the weights that the first rank has read."""
        first = dist.get_rank() == 0
        whole: Any = load_model(replace(config, compile=None)) if first else None
        self._lay(model)
        model.to_empty(device=_device_of(self._mesh))
        _root(model).tie_weights()
        state = whole.state_dict() if first else {}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(model, state, options=options)
        kept: list[Any] = [None, None]
        if first:  # rotary frequencies are buffers that no state dict holds
            kept = [dict(whole.named_buffers()), whole.generation_config]
        dist.broadcast_object_list(kept)
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[0][name])
        model.generation_config = kept[1]
        return model

    def _lay(self, model: nn.Module) -> None:
        root = _root(model)
        for layer in decoder_layers(root):
            fully_shard(layer, mesh=self._mesh, mp_policy=self._mixed)
        fully_shard(root, mesh=self._mesh, mp_policy=self._mixed)
        setattr(root, ENTRY, MethodType(_below_the_head, root))
        register_fsdp_forward_method(root, ENTRY)

    @contextmanager
    def whole(self, policy: LMPolicy, dtype: torch.dtype | None = None) -> Iterator[None]:
        """Replace the policy's model by a plain copy with all weights; every rank must enter.

        Args:
            policy: the one that this object has sharded.
            dtype: of the copy; None is the dtype in which the layers compute.
        """
        if self._is_whole:
            yield
            return
        sharded: Any = policy.model
        self._is_whole = True
        try:
            policy.model = self._gathered(sharded, dtype or self._mixed.param_dtype)
            yield
        finally:
            policy.model = sharded
            self._is_whole = False

    @torch.no_grad()
    def _gathered(self, model: nn.Module, dtype: torch.dtype | None) -> Any:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        twin = copy.deepcopy(self._skeleton)
        assert twin is not None
        made: dict[nn.Parameter, nn.Parameter] = {}
        for ours, theirs in zip(twin.modules(), model.modules(), strict=True):
            ours.train(theirs.training)
            for name, weight in theirs.named_parameters(recurse=False, remove_duplicate=False):
                if weight not in made:
                    full = weight.full_tensor() if isinstance(weight, DTensor) else weight.detach()
                    wanted = dtype if full.is_floating_point() else None
                    made[weight] = nn.Parameter(full.to(wanted or full.dtype), weight.requires_grad)
                setattr(ours, name, made[weight])
            for name, buffer in theirs.named_buffers(recurse=False):
                setattr(ours, name, buffer)
        twin.generation_config = model.generation_config
        return twin


def _root(model: Any) -> Any:
    """The transformers model below the wrapper of peft."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _below_the_head(model: Any, **kwargs: Any) -> Any:
    return model.base_model(**kwargs)


def _device_of(mesh: DeviceMesh) -> torch.device:
    if mesh.device_type == "cpu":
        return torch.device("cpu")
    return torch.device(mesh.device_type, torch.cuda.current_device())
