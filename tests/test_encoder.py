import jax
import jax.numpy as jnp
import numpy as np

from sparse_tube_vit.encoder import AttentionPooling, Encoder, attention


def random_like(params, seed=0):
    """Parameters none of which is zero or one, so that each of them shows."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten(
        [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def layer_norm(x, p):
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
    return x * p["scale"] + p["bias"]


def multi_head(queries, x, p):
    """Attention by loops over queries and heads."""
    out = np.zeros((len(queries), x.shape[1]))
    for i, row in enumerate(queries):
        for h in range(p["query"]["kernel"].shape[1]):
            q = row @ p["query"]["kernel"][:, h] + p["query"]["bias"][h]
            k = x @ p["key"]["kernel"][:, h] + p["key"]["bias"][h]
            v = x @ p["value"]["kernel"][:, h] + p["value"]["bias"][h]
            mixed = softmax(k @ q / np.sqrt(len(q))) @ v
            out[i] += mixed @ p["out"]["kernel"][h]
        out[i] += p["out"]["bias"]
    return out


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def encode(x, p, depth):
    """The whole encoder on one example (N, D)."""
    for i in range(depth):
        b = p[f"block_{i}"]
        y = np.stack([layer_norm(row, b["norm_1"]) for row in x])
        x = x + multi_head(y, y, b["attention"])
        y = np.stack([layer_norm(row, b["norm_2"]) for row in x])
        y = gelu(y @ b["mlp"]["up"]["kernel"] + b["mlp"]["up"]["bias"])
        x = x + y @ b["mlp"]["down"]["kernel"] + b["mlp"]["down"]["bias"]
    return np.stack([layer_norm(row, p["norm"]) for row in x])


def test_encoder_is_that_of_loops():
    model = Encoder(depth=2, heads=3, mlp_dim=20)
    x = np.random.default_rng(0).normal(size=(2, 5, 12)).astype(np.float32)
    params = random_like(model.init(jax.random.key(0), x)["params"])
    out = model.apply({"params": params}, x)
    host = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    for example, expected in zip(out, x, strict=True):
        np.testing.assert_allclose(example, encode(expected, host, 2), atol=2e-5)


def test_pooling_is_that_of_loops():
    model = AttentionPooling(heads=2)
    x = np.random.default_rng(0).normal(size=(3, 7, 8)).astype(np.float32)
    params = random_like(model.init(jax.random.key(0), x)["params"])
    out = model.apply({"params": params}, x)
    host = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    for pooled, example in zip(out, x, strict=True):
        expected = multi_head(host["probe"][0], example, host["attention"])[0]
        np.testing.assert_allclose(pooled, expected, atol=1e-5)


def test_attention_is_that_of_jax_nn():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 9, 4, 8))
    ours = attention(q[:, :5], k, v)
    theirs = jax.nn.dot_product_attention(q[:, :5], k, v)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_dropout_acts_in_training_alone():
    model = Encoder(depth=1, heads=2, mlp_dim=8, dropout=0.5)
    x = jnp.ones((1, 4, 8))
    params = model.init(jax.random.key(0), x)

    def run(train, seed):
        return model.apply(params, x, train, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(run(False, 0), run(False, 1))
    assert not np.allclose(run(True, 0), run(True, 1))
    np.testing.assert_array_equal(run(True, 0), run(True, 0))


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    model = Encoder(depth=1, heads=2, mlp_dim=8, dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (1, 4, 8))
    params = model.init(jax.random.key(0), x)
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    out = model.apply(params, x)
    assert out.dtype == jnp.bfloat16
    exact = Encoder(depth=1, heads=2, mlp_dim=8).apply(params, x)
    assert 0 < np.abs(out.astype(jnp.float32) - exact).max() < 0.1
