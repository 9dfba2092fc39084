"""The command ``research serve-policy``: a model behind HTTP, in the protocol of ``vllm serve``.

It is for machines that cannot run vLLM: training samples its rollouts from either server.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from research_rl.envs.system import CommandLine
from research_rl.envs.web import (
    SERVER_KEY_VARIABLE,
    check_installed,
    listen,
    server_key,
    warn_if_open,
)
from research_rl.trainers.settings import trusted

_DTYPES = ("float32", "bfloat16", "float16", "auto")


def main(argv: list[str]) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        FileNotFoundError: there is no such model.
        ImportError: the extra ``serve`` is not installed.
        OSError: the address cannot be listened on.
    """
    args = _parser().parse_args(argv)
    check_installed("serving a policy")
    import torch

    from research_rl.agents.policy import LMPolicy, PolicyConfig
    from research_rl.agents.web import RequestQueue, serve_sampling

    key = server_key()
    warn_if_open(args.host, key)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    bound = listen(args.host, args.port)
    policy = LMPolicy.from_config(
        PolicyConfig(args.model, dtype=args.dtype, trust_remote_code=trusted())
    )
    policy.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = args.served_model_name or args.model
    host, port = bound.getsockname()[:2]
    print(f"serving {name} on http://{host}:{port}", flush=True)
    queue = RequestQueue(policy, name, args.max_slots, max_waiting=args.max_waiting)
    serve_sampling(queue, bound, key, args.weights_below)


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(
        prog="research serve-policy",
        description="Serve a model for rollouts, in the protocol of `vllm serve`.",
        epilog=f"Clients must send a key if the variable {SERVER_KEY_VARIABLE} holds one.",
        allow_abbrev=False,
    )
    parser.add_argument("model", help="a Hugging Face id, or a folder")
    parser.add_argument("--served-model-name", help="what clients call it; the default is MODEL")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (%(default)s)")
    parser.add_argument("--dtype", choices=_DTYPES, default="auto", help="of the weights")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; the default is cuda if there")
    parser.add_argument("--max-slots", type=int, default=256, help="turns at once (%(default)s)")
    parser.add_argument(
        "--max-waiting",
        type=int,
        default=4096,
        help="requests that may wait; further ones are answered 429 (%(default)s)",
    )
    parser.add_argument(
        "--weights-below",
        type=Path,
        metavar="DIR",
        help="load new weights and adapters for clients, from this folder alone; with a key and "
        "without this option, from any folder",
    )
    parser.add_argument("--threads", type=int, help="of torch")
    return parser
