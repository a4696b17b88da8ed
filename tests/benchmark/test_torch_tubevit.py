import jax
import numpy as np
import pytest

from sparse_tube_vit.config import EncoderOptions
from sparse_tube_vit.models.tubes import Tube
from sparse_tube_vit.models.tubevit import TubeViT, init_params
from sparse_tube_vit.models.variants import TUBE_SETS, VARIANTS

torch = pytest.importorskip("torch")
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from sparse_tube_vit.benchmark import torch_steps, torch_tubevit  # noqa: E402
from sparse_tube_vit.benchmark.measuring import job_flops  # noqa: E402
from sparse_tube_vit.benchmark.process import rows  # noqa: E402
from tests.benchmark.jobs import make_job  # noqa: E402

CLIP, IMAGE = (22, 72, 56), (1, 72, 56)
TUBES = (
    *TUBE_SETS["main"],
    Tube(kernel=(2, 4, 8), stride=(12, 18, 32), space_to_depth=(2, 3, 4)),
)
SIZES = {"depth": 2, "width": 48, "mlp_dim": 80, "heads": 4}
CLASSES = {"videos": 5, "images": 7}


def make():
    """Returns our model and random parameters; no bias or head is left at zero."""
    options = EncoderOptions(**SIZES)
    model = TubeViT(tubes=TUBES, classes=CLASSES, options=options)
    params, rng = init_params(model, jax.random.key(0), CLIP), np.random.default_rng(0)
    return model, jax.tree.map(
        lambda x: np.asarray(x + 0.1 * rng.standard_normal(x.shape), np.float32), params
    )


def load(model, params):
    """Loads parameters of our model into the one in PyTorch."""
    params = jax.device_get(params)
    state = {"pooling.probe": torch.tensor(params["pooling"]["probe"])}

    def linear(name, *layers):
        """Stores dense layers of the same inputs as one, their outputs side by side."""
        biases = [layer["bias"].ravel() for layer in layers]
        kernels = [
            layer["kernel"].reshape(-1, bias.size)
            for layer, bias in zip(layers, biases, strict=True)
        ]
        state[f"{name}.weight"] = torch.tensor(np.concatenate(kernels, axis=1).T)
        state[f"{name}.bias"] = torch.tensor(np.concatenate(biases))

    def norm(name, layer):
        state[f"{name}.weight"] = torch.tensor(layer["scale"])
        state[f"{name}.bias"] = torch.tensor(layer["bias"])

    for i in range(len(model.tubes)):
        linear(f"stem.{i}", params["stem"][f"tube_{i}"])
    for i in range(len(model.blocks)):
        block, name = params["encoder"][f"block_{i}"], f"blocks.{i}"
        attention = block["attention"]
        qkv = (attention[part] for part in ("query", "key", "value"))
        linear(f"{name}.attention.qkv", *qkv)
        linear(f"{name}.attention.out", attention["out"])
        linear(f"{name}.up", block["mlp"]["up"])
        linear(f"{name}.down", block["mlp"]["down"])
        norm(f"{name}.norm_1", block["norm_1"])
        norm(f"{name}.norm_2", block["norm_2"])
    norm("norm", params["encoder"]["norm"])
    attention = params["pooling"]["attention"]
    linear("pooling.query", attention["query"])
    linear("pooling.kv", attention["key"], attention["value"])
    linear("pooling.out", attention["out"])
    for name in model.heads:
        linear(f"heads.{name}", params[f"head_{name}"])
    model.load_state_dict(state)


def test_the_model_in_pytorch_has_our_logits_and_gradients():
    model, params = make()
    theirs = torch_tubevit.TubeViT(model.tubes, CLASSES, SIZES, (CLIP, IMAGE))
    load(theirs, params)
    assert sum(x.numel() for x in theirs.parameters()) == sum(
        x.size for x in jax.tree.leaves(params)
    )
    # Windows of space-to-depth reach past the clip, and images pass one tube alone.
    assert any(any(tube.past(CLIP)) for tube in model.tubes)
    rng = np.random.default_rng(1)
    for head, clip in (("videos", CLIP), ("images", IMAGE)):
        x = rng.integers(0, 256, (3, *clip, 3), np.uint8)

        def loss(params, x=x, head=head):
            logits = model.apply({"params": params}, x, head)
            return (logits**2).sum(), logits

        gradient, ours = jax.jit(jax.grad(loss, has_aux=True))(params)
        logits = theirs(torch.from_numpy(x), head)
        scale = np.abs(ours).max()
        assert np.abs(logits.detach().numpy() - ours).max() < 1e-5 * scale
        theirs.zero_grad()
        (logits**2).sum().backward()
        ours = gradient["encoder"]["block_1"]["mlp"]["up"]["kernel"].T
        error = theirs.blocks[1].up.weight.grad.numpy() - ours
        assert np.abs(error).max() < 1e-5 * np.abs(ours).max()


@pytest.mark.parametrize(
    "implementation, frames, package",
    [
        ("pytorch", 20, "torch"),
        ("port", 24, "tubevit"),
        ("videomae", 4, "transformers"),
        ("vivit", 6, "transformers"),
        ("timesformer", 3, "transformers"),
        ("timm", 3, "timm"),
    ],
)
def test_pytorch_counts_the_flops_of_the_formulas(
    implementation, frames, package, monkeypatch
):
    pytest.importorskip(package)
    monkeypatch.setitem(VARIANTS, "Ti", SIZES)
    job = make_job(
        implementation=implementation,
        frames=frames,
        size=64,
        streams="video",
        direction="forward",
        largest=0,
        compiled=False,
    )
    steps = torch_steps.make_steps(job)
    steps.model.requires_grad_(False)  # else the counter asks for gradients
    # Fused attention on a CPU is not counted, nor are fused layers of it.
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        steps.prepare(1).run(1)  # of several clips, the probe's query is made once
    assert counted.get_total_flops() == job_flops(job)


def test_steps_in_pytorch_train(monkeypatch):
    monkeypatch.setitem(VARIANTS, "Ti", SIZES)
    job = make_job(implementation="pytorch", dtype="bfloat16", compiled=False)
    steps = torch_steps.make_steps(job)
    before = [x.detach().clone() for x in steps.model.parameters()]
    measured = [*rows(job, steps)]
    assert [row["batch"] for row in measured] == [2, 3]
    changed = [
        not torch.equal(a, b)
        for a, b in zip(before, steps.model.parameters(), strict=True)
    ]
    assert all(changed)
