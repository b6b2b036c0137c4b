"""The small GPT and ResNet-20 in torch, with the parameters of ours: the same losses.

Written as torch's users would, as functions of a dictionary of tensors: convolutions by
`conv2d`, attention by `scaled_dot_product_attention`.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.common.harness.installed import installed_torch
from experiments.systems.benchmark.kernels import Run
from experiments.systems.benchmark.whole_steps import torch_steps, torch_update

Tensors = dict[str, Any]
Loss = Callable[[Tensors, Any, Any], Any]


def candidates(loss: Loss, params: Any, x: Any, y: Any) -> dict[str, Run]:
    """Lists torch's steps of a noisy vote, with Gaussian noise as torch has it.

    Args:
      loss: `gpt_loss` or `resnet_loss`.
      params: our parameters, from which torch starts.
      x: what goes into the model, ``[M, n, ...]``.
      y: what is to come out, ``[M, n, ...]``.

    Returns:
      A loop over workers, and `torch.func.vmap`; nothing without torch.
    """
    torch = installed_torch()
    if torch is None:
        return {}
    tensors = tensors_of(params)
    for tensor in tensors.values():
        tensor.requires_grad_()
    x, y = (torch.from_numpy(np.array(part)) for part in (x, y))
    x, y = (part.long() if part.dtype == torch.int32 else part for part in (x, y))
    return torch_steps(torch, tensors, loss, torch_update(torch, tensors), x, y)


def tensors_of(params: Any) -> Tensors:
    """Returns our parameters as torch's, by paths such as "blocks/0/attend/kernel"."""
    torch = installed_torch()
    named = jax.tree_util.tree_leaves_with_path(params)

    def name(path: tuple[Any, ...]) -> str:
        keys = (str(getattr(part, "key", getattr(part, "idx", ""))) for part in path)
        return "/".join(key for key in keys if key)

    return {name(path): torch.from_numpy(np.array(leaf)) for path, leaf in named}


def gpt_loss(params: Tensors, text: Any, following: Any) -> Any:
    """Takes characters ``[n, t]`` and those that follow; `training.transformer`."""
    torch = installed_torch()
    functional = torch.nn.functional

    def norm(x: Any, scale: Any) -> Any:
        return functional.layer_norm(x, scale.shape, scale, None, 1e-5)

    positions = params["positions/embedding"][: text.shape[1]]
    x = params["tokens/embedding"][text] + positions
    n, t, width = x.shape
    for i in range(_blocks(params)):
        own = f"blocks/{i}/"
        inputs = norm(x, params[f"{own}norms/0/scale"])
        parts = (inputs @ params[f"{own}attend/kernel"]).reshape(n, t, 3, _HEADS, -1)
        query, key, value = (parts[:, :, j].transpose(1, 2) for j in range(3))
        mixed = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True
        )
        mixed = mixed.transpose(1, 2).reshape(n, t, width)
        x = x + mixed @ params[f"{own}attended/kernel"]
        inputs = norm(x, params[f"{own}norms/1/scale"])
        hidden = functional.gelu(inputs @ params[f"{own}expand/kernel"])
        x = x + hidden @ params[f"{own}contract/kernel"]
    logits = norm(x, params["norm/scale"]) @ params["tokens/embedding"].T
    return functional.cross_entropy(
        logits.reshape(n * t, -1), following.reshape(n * t).long()
    )


_HEADS = 4


def resnet_loss(params: Tensors, images: Any, labels: Any) -> Any:
    """Takes uint8 images ``[n, 32, 32, 3]``; `training.models_convolutional`."""
    functional = installed_torch().nn.functional

    def convolve(x: Any, layer: str, stride: int) -> Any:
        kernel = params[f"{layer}/kernel"].permute(3, 2, 0, 1)
        # Padding "SAME" of an even size: with stride 2 one pixel, at the far side.
        padded = functional.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        return functional.conv2d(padded, kernel, params[f"{layer}/bias"], stride)

    x = images.float().permute(0, 3, 1, 2) / 64 - 2
    x = functional.relu(convolve(x, "first", 1))
    for i in range(_blocks(params)):
        own = f"blocks/{i}/"
        channels = params[f"{own}first/kernel"].shape[-1]
        stride, more = channels // x.shape[1], channels - x.shape[1]
        shortcut = x[:, :, ::stride, ::stride]
        shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, more))
        inner = functional.relu(convolve(x, f"{own}first", stride))
        x = functional.relu(shortcut + convolve(inner, f"{own}second", 1))
    logits = x.mean(dim=(2, 3)) @ params["readout/kernel"] + params["readout/bias"]
    return functional.cross_entropy(logits, labels.long())


def _blocks(params: Tensors) -> int:
    return len({name.split("/")[1] for name in params if name.startswith("blocks/")})
