"""Makes the weights of tiny ViTs and what timm and transformers compute with them.

    pip install torch==2.13.0 timm==1.0.31 transformers==5.23.0 safetensors==0.8.0
    python tests/golden/make.py

Writes, beside itself, `timm.safetensors`, `hugging_face.safetensors`, `augreg.npz` and
`references.npz`. The tests read these alone: they need none of the packages above.
"""

import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_patch_embed
from transformers import ViTConfig, ViTForImageClassification

HERE = Path(__file__).parent
WIDTH, DEPTH, HEADS, MLP_DIM, CLASSES = 24, 2, 2, 48, 5


def timm_vit(patch, size):
    return timm.create_model(
        "vit_tiny_patch16_224",
        patch_size=patch,
        img_size=size,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=MLP_DIM / WIDTH,
        num_classes=CLASSES,
    ).eval()


@torch.no_grad()
def randomize(model, seed):
    """Weights large enough that every part of the model shows in its outputs."""
    generator = torch.Generator().manual_seed(seed)
    for name, x in model.named_parameters():
        spread = 0.02 if "patch" in name else 0.3
        x.copy_(spread * torch.randn(x.shape, generator=generator))
        if "norm" in name and name.endswith("weight"):
            x += 1


def images(size, seed):
    return np.random.default_rng(seed).integers(0, 256, (2, size, size, 3), np.uint8)


@torch.no_grad()
def logits(model, images):
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    outputs = model(x)
    return getattr(outputs, "logits", outputs).numpy()


def to_augreg(model):
    """A timm model's weights as google-research/vision_transformer names them."""
    t = {name: x.numpy() for name, x in model.state_dict().items()}
    arrays = {
        "cls": t["cls_token"],
        "embedding/kernel": t["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": t["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": t["pos_embed"],
        "Transformer/encoder_norm/scale": t["norm.weight"],
        "Transformer/encoder_norm/bias": t["norm.bias"],
        "head/kernel": t["head.weight"].T,
        "head/bias": t["head.bias"],
    }
    for i in range(DEPTH):
        ours, theirs = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        for n, m in ((0, 1), (2, 2)):
            arrays[f"{ours}LayerNorm_{n}/scale"] = t[f"{theirs}norm{m}.weight"]
            arrays[f"{ours}LayerNorm_{n}/bias"] = t[f"{theirs}norm{m}.bias"]
        for n in (0, 1):
            dense = f"{ours}MlpBlock_3/Dense_{n}/"
            arrays[f"{dense}kernel"] = t[f"{theirs}mlp.fc{n + 1}.weight"].T
            arrays[f"{dense}bias"] = t[f"{theirs}mlp.fc{n + 1}.bias"]
        attention = f"{ours}MultiHeadDotProductAttention_1/"
        weights = np.split(t[f"{theirs}attn.qkv.weight"], 3)
        biases = np.split(t[f"{theirs}attn.qkv.bias"], 3)
        for part, w, b in zip(("query", "key", "value"), weights, biases, strict=True):
            arrays[f"{attention}{part}/kernel"] = w.T.reshape(WIDTH, HEADS, -1)
            arrays[f"{attention}{part}/bias"] = b.reshape(HEADS, -1)
        out = t[f"{theirs}attn.proj.weight"].T
        arrays[f"{attention}out/kernel"] = out.reshape(HEADS, -1, WIDTH)
        arrays[f"{attention}out/bias"] = t[f"{theirs}attn.proj.bias"]
    return arrays


def main():
    references = {}

    model = timm_vit(patch=16, size=48)
    randomize(model, seed=0)
    save_file(model.state_dict(), HERE / "timm.safetensors")
    references["timm/images"] = images(48, seed=0)
    references["timm/logits"] = logits(model, references["timm/images"])

    # Patches of 14 pixels; timm's own loader reads the file, and resizes patches and
    # positions to 16 pixels on another grid.
    model = timm_vit(patch=14, size=42)
    randomize(model, seed=1)
    np.savez(HERE / "augreg.npz", **to_augreg(model))
    for name, patch, size in (("augreg", 14, 42), ("augreg_resized", 16, 64)):
        loaded = timm_vit(patch, size)
        loaded.load_pretrained(str(HERE / "augreg.npz"))
        references[f"{name}/images"] = images(size, seed=size)
        references[f"{name}/logits"] = logits(loaded, references[f"{name}/images"])

    # In bfloat16, as some files are. Embeddings so small that epsilon shows.
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=WIDTH,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            intermediate_size=MLP_DIM,
            image_size=48,
            num_labels=CLASSES,
        )
    ).eval()
    randomize(model, seed=2)
    with torch.no_grad():
        for x in model.vit.embeddings.parameters():
            x *= 0.01
    model.to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        weights = Path(directory, "model.safetensors").read_bytes()
        (HERE / "hugging_face.safetensors").write_bytes(weights)
        model = ViTForImageClassification.from_pretrained(
            directory, dtype=torch.float32
        ).eval()
    references["hugging_face/images"] = images(48, seed=2)
    references["hugging_face/logits"] = logits(model, references["hugging_face/images"])
    references["hugging_face/module_names"] = np.array(sorted(model.state_dict()))

    # Patches that shrink, by the pseudo-inverse of a smoothed bilinear resize.
    kernel = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    references["resize/old"] = kernel.numpy()
    for h, w in ((8, 8), (12, 4), (16, 20)):
        references[f"resize/{h}x{w}"] = resample_patch_embed(
            kernel, (h, w), interpolation="bilinear", antialias=True
        ).numpy()
    np.savez_compressed(HERE / "references.npz", **references)


if __name__ == "__main__":
    main()
