"""One whole training step of M workers on the MNIST network, ours and torch's.

The same network, batch and rule; only the update rule differs between our candidates,
so that their ratio is the price of the rule inside a step. The gradients alone are what
no rule can do without.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmedian as jm
from experiments.common.harness.installed import installed_torch
from experiments.common.training.models import mnist_network
from experiments.systems.benchmark.kernels import SCALE, Run, compiled


def steps(num_workers: int, batch_size: int) -> tuple[dict[str, Run], dict[str, float]]:
    """Lists the candidates of one step and the seconds that ours take to compile."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_workers, batch_size, 784), dtype=np.uint8)
    labels = rng.integers(0, 10, (num_workers, batch_size), dtype=np.int32)
    ours, seconds = _ours({"images": images, "labels": labels})
    return ours | _torch_steps(images, labels), seconds


def _ours(batch: dict[str, np.ndarray]) -> tuple[dict[str, Run], dict[str, float]]:
    model = mnist_network(seed=0)
    systematic = jm.noise.uniform(SCALE, "systematic")
    optimizers = {
        "row mean": optax.chain(jm.worker_mean(), optax.sgd(1e-3)),
        "vote": jm.sign_sgd(1e-3),
        "noisy vote, uniform systematic": jm.noisy_sign_sgd(1e-3, systematic, 0),
        "noisy vote, gaussian independent": jm.noisy_sign_sgd(
            1e-3, jm.noise.gaussian(SCALE), 0
        ),
    }
    device_batch = jax.tree.map(jnp.asarray, batch)
    runs, seconds = {}, {}
    for name, optimizer in optimizers.items():
        step = jm.make_step(model.loss, optimizer)
        state = optimizer.init(model.params)
        runs[name], seconds[name] = compiled(step, model.params, state, device_batch)
    gradients = jm.worker_grads(model.loss)
    name = "gradients alone"
    runs[name], seconds[name] = compiled(gradients, model.params, device_batch)
    return runs, seconds


def _torch_steps(images: np.ndarray, labels: np.ndarray) -> dict[str, Run]:
    """The noisy vote's step in torch: a loop over workers, and torch.func.vmap."""
    torch = installed_torch()
    if torch is None:
        return {}
    params, loss, update = torch_vote(torch)
    x = torch.from_numpy(images).float() / 255
    y = torch.from_numpy(labels).long()
    return torch_steps(torch, params, loss, update, x, y)


def torch_steps(
    torch: Any, params: dict[str, Any], loss: Any, update: Any, x: Any, y: Any
) -> dict[str, Run]:
    """Lists torch's ways to take a step: a loop over workers, and torch.func.vmap."""

    def loop() -> None:
        workers = [
            torch.autograd.grad(loss(params, x[i], y[i]), list(params.values()))
            for i in range(len(x))
        ]
        update([torch.stack(rows) for rows in zip(*workers, strict=True)])

    per_worker = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))

    def vectorised() -> None:
        detached = {name: param.detach() for name, param in params.items()}
        update(list(per_worker(detached, x, y).values()))

    return {"torch loop over workers": loop, "torch.func.vmap": vectorised}


def torch_vote(torch: Any) -> tuple[dict[str, Any], Any, Any]:
    """Returns the network's parameters, one worker's loss, and a noisy vote's step."""
    network = torch.nn.Sequential(
        torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
    )
    params = dict(network.named_parameters())

    def loss(params: dict[str, Any], x: Any, y: Any) -> Any:
        logits = torch.func.functional_call(network, params, (x,))
        return torch.nn.functional.cross_entropy(logits, y)

    return params, loss, torch_update(torch, params)


def torch_update(torch: Any, params: dict[str, Any]) -> Any:
    """Returns the update of a noisy vote, in place: it takes stacked gradients."""

    def update(grads: list[Any]) -> None:
        with torch.no_grad():
            for param, grad in zip(params.values(), grads, strict=True):
                noisy = grad + SCALE * torch.randn_like(grad)
                param -= 1e-3 * torch.sign(torch.sign(noisy).sum(dim=0))

    return update
