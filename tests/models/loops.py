"""The encoder's layers by loops in numpy."""

import math

import numpy as np


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def layer_norm(x, p):
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
    return x * p["scale"] + p["bias"]


def multi_head(queries, x, p):
    """Attention by loops over queries and heads; (output, mean weights)."""
    out = np.zeros((len(queries), x.shape[1]))
    weights = np.zeros((len(queries), len(x)))
    heads = p["query"]["kernel"].shape[1]
    for i, row in enumerate(queries):
        for h in range(heads):
            q = row @ p["query"]["kernel"][:, h] + p["query"]["bias"][h]
            k = x @ p["key"]["kernel"][:, h] + p["key"]["bias"][h]
            v = x @ p["value"]["kernel"][:, h] + p["value"]["bias"][h]
            shares = softmax(k @ q / np.sqrt(len(q)))
            out[i] += shares @ v @ p["out"]["kernel"][h]
            weights[i] += shares / heads
        out[i] += p["out"]["bias"]
    return out, weights


def exact_gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def silu(x):
    return x / (1 + np.exp(-x))


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def encode(x, p, blocks, gelu, gate_after=None):
    """The whole encoder on one example (N, D); (output, weights of every block)."""
    raw, weights = x, []
    for i, block in enumerate(blocks):
        if i == gate_after:
            x = x + np.tanh(p["gate"]) * raw
        b = p[block]
        y = np.stack([layer_norm(row, b["norm_1"]) for row in x])
        mixed, shares = multi_head(y, y, b["attention"])
        x = x + mixed
        weights.append(shares)
        y = np.stack([layer_norm(row, b["norm_2"]) for row in x])
        up = y @ b["mlp"]["up"]["kernel"] + b["mlp"]["up"]["bias"]
        if gate := b["mlp"].get("gate"):
            y = gelu(y @ gate["kernel"] + gate["bias"]) * up
        else:
            y = gelu(up)
        x = x + y @ b["mlp"]["down"]["kernel"] + b["mlp"]["down"]["bias"]
    return np.stack([layer_norm(row, p["norm"]) for row in x]), weights
