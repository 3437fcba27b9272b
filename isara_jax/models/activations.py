"""Activations of MLPs, by the names of HF's configs."""

import functools

import jax

ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),  # torch's, by the error function
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
