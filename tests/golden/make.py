"""Makes the weights of tiny ViTs and what timm and transformers compute with them.

    pip install torch==2.13.0 timm==1.0.31 transformers==5.23.0 safetensors==0.8.0
    python tests/golden/make.py

Writes, beside itself, `timm.safetensors`, `hugging_face.safetensors`, `augreg.npz` and
`references.npz`; and below `image_vits/` one folder a family, as on the Hugging Face
Hub, with `references.npz`. The tests read these alone: they need none of the packages
above.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from timm.layers import resample_patch_embed
from timm.models._hub import save_for_hf
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


# ---- one folder a family: width 16, patches of 8 pixels, weights in float16

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 24,
    "patch_size": 8,
}
DINOV2 = {k: v for k, v in SMALL.items() if k != "intermediate_size"} | {"mlp_ratio": 2}
MAE = SMALL | {f"decoder_{k}": v for k, v in SMALL.items()} | {"decoder_hidden_size": 8}
TEXT = SMALL | {"vocab_size": 10, "max_position_embeddings": 4}
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLIP = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
HALF = [0.5] * 3, [0.5] * 3


def last_and_pooled(trunk, x):
    out = trunk(x)
    return out.last_hidden_state, out.pooler_output


def first_token(trunk, x):
    tokens = trunk(x).last_hidden_state
    return tokens, tokens[:, 0]


def mae(trunk, x):
    """Without a mask, in the order of the patches."""
    trunk.config.mask_ratio = 0.0
    noise = torch.arange(9.0)[None].expand(len(x), -1)
    tokens = trunk(x, noise=noise).last_hidden_state
    return tokens, tokens[:, 0]


def clip(trunk, x):
    out = trunk(x)
    return trunk.post_layernorm(out.last_hidden_state), out.pooler_output


def videomae(trunk, x):
    """Its trunk has no norm at its end."""
    dimmed = [x * brightness for brightness in (0.25, 0.5, 0.75, 1)]
    tokens = trunk(torch.stack(dimmed, 1))
    tokens = torch.nn.functional.layer_norm(tokens.last_hidden_state, (16,))
    return tokens, tokens.mean(1)


def hugging_face_models():
    """Yields name, model to save, its trunk, what it computes, mean and std."""
    model = hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**SMALL))
    yield "deit_distilled", model, model.deit, first_token, IMAGENET
    model = hf.ViTMAEForPreTraining(hf.ViTMAEConfig(**MAE))
    yield "mae", model, model.vit, mae, IMAGENET
    model = hf.ViTModel(hf.ViTConfig(**SMALL))
    yield "dino", model, model, first_token, IMAGENET
    model = hf.Dinov2ForImageClassification(hf.Dinov2Config(**DINOV2))
    yield "dinov2", model, model.dinov2, first_token, IMAGENET
    config = hf.Dinov2WithRegistersConfig(**DINOV2, num_register_tokens=2)
    model = hf.Dinov2WithRegistersModel(config)
    yield "dinov2_registers", model, model, first_token, IMAGENET
    sizes = {"text_config": TEXT, "vision_config": SMALL, "projection_dim": 4}
    model = hf.CLIPModel(hf.CLIPConfig(**sizes))
    yield "clip", model, model.vision_model, clip, CLIP
    model = hf.SiglipVisionModel(hf.SiglipVisionConfig(**SMALL))
    yield "siglip", model, model, last_and_pooled, HALF
    model = hf.VideoMAEModel(hf.VideoMAEConfig(**SMALL, num_frames=4))
    yield "videomae", model, model, videomae, IMAGENET
    model = hf.Dinov2Model(hf.Dinov2Config(**DINOV2, use_swiglu_ffn=True))
    yield "dinov2_gated", model, model, first_token, IMAGENET
    config = hf.Dinov2WithRegistersConfig(
        **DINOV2, num_register_tokens=2, use_swiglu_ffn=True
    )
    model = hf.Dinov2WithRegistersModel(config)
    yield "dinov2_registers_gated", model, model, first_token, IMAGENET
    model = hf.ViTModel(hf.ViTConfig(**SMALL, qkv_bias=False))
    yield "without_biases", model, model, first_token, HALF


TIMM_MODELS = {
    "deit": "deit_tiny_patch16_224",
    "deit_distilled": "deit_tiny_distilled_patch16_224",
    "deit3": "deit3_small_patch16_224",
    "dinov2": "vit_small_patch14_dinov2",
    "dinov2_registers": "vit_small_patch14_reg4_dinov2",
    "clip": "vit_base_patch32_clip_quickgelu_224",
    "siglip": "vit_base_patch16_siglip_224",
    "dinov2_gated": "vit_giant_patch14_dinov2",
    "average": "vit_tiny_patch16_224",
    "fc_norm": "eva_large_patch14_196",
    "without_biases": "vit_base_patch16_224_miil",
    "eva": "eva_giant_patch14_224",
}
TIMM_OPTIONS = {
    "average": {"global_pool": "avg", "fc_norm": False},
    "eva": {"global_pool": "token"},
}

#: Architectures with names of their own, whose kinds are refused.
REFUSED = {
    "vit_pe_core_tiny_patch16_384",
    "vit_tiny_patch16_dinov3_qkvb",
    "vit_small_patch16_rope_mixed_224",
    "beit_base_patch16_224",
    "cait_xxs24_224",
    "hiera_tiny_224",
    "vit_dwee_patch16_reg1_gap_256",
    "beit3_base_patch16_224",
}


def timm_models():
    """Yields name, model, its mean and std."""
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    for name, architecture in TIMM_MODELS.items():
        options = sizes | TIMM_OPTIONS.get(name, {})
        model = timm.create_model(
            architecture, patch_size=8, img_size=24, num_classes=3, **options
        )
        cfg = model.pretrained_cfg
        yield name, model, (list(cfg["mean"]), list(cfg["std"]))


def timm_architectures():
    """Names of arrays of those that are refused; heads of all plain ViTs."""
    references, rows = {}, []
    ours = ["vit_*", "deit*", "eva_large*", "flexivit*", "test_vit*", *REFUSED]
    for architecture in timm.list_models(ours):
        with torch.device("meta"):
            model = timm.create_model(architecture)
        if architecture in REFUSED:
            references[f"refused/{architecture}"] = np.array([*model.state_dict()])
        patches = getattr(model, "patch_embed", None)
        kinds = "VisionTransformer", "VisionTransformerDistilled"
        if type(model).__name__ in kinds and not hasattr(patches, "backbone"):
            attn, mlp = (getattr(model.blocks[0], x, None) for x in ("attn", "mlp"))
            if attn is None or mlp is None:  # parallel blocks
                continue
            gated = mlp.fc1.out_features != mlp.fc2.in_features
            rows.append((architecture, model.embed_dim, gated, attn.num_heads))
    return references | {"heads": np.array(rows)}


@torch.no_grad()
def randomize_in_float16(model, seed):
    randomize(model, seed)
    for x in model.parameters():
        x.copy_(x.half().float())
    return model.eval()


def normalized(images, mean_and_std):
    mean, std = map(torch.tensor, mean_and_std)
    x = torch.from_numpy(images).float() / 255
    return ((x - mean) / std).permute(0, 3, 1, 2)


def halve(file):
    arrays = {k: x.half() for k, x in load_file(file).items()}
    save_file(arrays, file)


def to_big_vision(model):
    """timm's SigLIP as big_vision names it."""
    t = {name: x.numpy() for name, x in model.state_dict().items()}
    arrays = {
        "embedding/kernel": t["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": t["patch_embed.proj.bias"],
        "pos_embedding": t["pos_embed"],
        "MAPHead_0/probe": t["attn_pool.latent"],
    }

    def dense(ours, weight, bias):
        arrays[f"{ours}/kernel"], arrays[f"{ours}/bias"] = weight.T, bias

    def norm(ours, theirs):
        arrays[f"{ours}/scale"] = t[f"{theirs}.weight"]
        arrays[f"{ours}/bias"] = t[f"{theirs}.bias"]

    def block(ours, theirs, q, k, v, attention, out):
        for part, (w, b) in zip(("query", "key", "value"), (q, k, v), strict=True):
            arrays[f"{ours}{attention}/{part}/kernel"] = w.T.reshape(16, 2, 8)
            arrays[f"{ours}{attention}/{part}/bias"] = b.reshape(2, 8)
        arrays[f"{ours}{attention}/out/kernel"] = t[f"{out}.weight"].T.reshape(2, 8, 16)
        arrays[f"{ours}{attention}/out/bias"] = t[f"{out}.bias"]
        for i in (0, 1):
            fc = f"{theirs}mlp.fc{i + 1}"
            dense(f"{ours}MlpBlock_0/Dense_{i}", t[f"{fc}.weight"], t[f"{fc}.bias"])

    norm("Transformer/encoder_norm", "norm")
    for i in range(2):
        ours, theirs = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        norm(f"{ours}LayerNorm_0", f"{theirs}norm1")
        norm(f"{ours}LayerNorm_1", f"{theirs}norm2")
        qkv = zip(
            np.split(t[f"{theirs}attn.qkv.weight"], 3),
            np.split(t[f"{theirs}attn.qkv.bias"], 3),
            strict=True,
        )
        attention = "MultiHeadDotProductAttention_0"
        block(ours, theirs, *qkv, attention, f"{theirs}attn.proj")
    pool = "attn_pool."
    kv = [np.split(t[f"{pool}kv.{leaf}"], 2) for leaf in ("weight", "bias")]
    q = t[f"{pool}q.weight"], t[f"{pool}q.bias"]
    attention = "MultiHeadDotProductAttention_0"
    block("MAPHead_0/", pool, q, *zip(*kv, strict=True), attention, f"{pool}proj")
    norm("MAPHead_0/LayerNorm_0", f"{pool}norm")
    return {f"params/img/{k}": x.astype(np.float16) for k, x in arrays.items()}


@torch.no_grad()
def make_image_vits():
    folder = HERE / "image_vits"
    shutil.rmtree(folder, ignore_errors=True)
    picture = images(24, seed=5)
    references = {"images": picture}

    for seed, (name, model, trunk, compute, mean_and_std) in enumerate(
        hugging_face_models()
    ):
        name = f"hugging_face_{name}"
        randomize_in_float16(model, seed + 10)
        model.save_pretrained(folder / name)
        halve(folder / name / "model.safetensors")
        mean, std = mean_and_std
        (folder / name / "preprocessor_config.json").write_text(
            json.dumps({"do_normalize": True, "image_mean": mean, "image_std": std})
        )
        tokens, pooled = compute(trunk, normalized(picture, mean_and_std))
        references[f"{name}/tokens"] = tokens.numpy()
        references[f"{name}/pooled"] = pooled.numpy()
        references[f"{name}/module_names"] = np.array(sorted(model.state_dict()))

    for seed, (name, model, mean_and_std) in enumerate(timm_models()):
        name = f"timm_{name}"
        randomize_in_float16(model, seed + 30)
        save_for_hf(model, folder / name, safe_serialization=True)
        halve(folder / name / "model.safetensors")
        tokens = model.forward_features(normalized(picture, mean_and_std))
        references[f"{name}/tokens"] = tokens.numpy()
        pooled = model.forward_head(tokens, pre_logits=True)
        references[f"{name}/pooled"] = pooled.numpy()

    references |= timm_architectures()
    grid = torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(4))
    references["positions/old"] = grid.numpy()
    for side in (3, 7):
        for name, antialias in (("cubic", False), ("smoothed_cubic", True)):
            new = torch.nn.functional.interpolate(
                grid, (side, side), mode="bicubic", antialias=antialias
            )
            references[f"positions/{name}/{side}"] = new.numpy()

    model = timm.create_model(
        "vit_base_patch16_siglip_224",
        **{"patch_size": 8, "img_size": 24, "act_layer": "gelu_tanh"},
        **{"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2},
    )
    randomize_in_float16(model, 50)
    np.savez_compressed(folder / "big_vision.npz", **to_big_vision(model))
    tokens = model.forward_features(normalized(picture, HALF))
    references["big_vision/tokens"] = tokens.numpy()
    references["big_vision/pooled"] = model.forward_head(tokens, True).numpy()
    np.savez_compressed(folder / "references.npz", **references)


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
    make_image_vits()


if __name__ == "__main__":
    main()
