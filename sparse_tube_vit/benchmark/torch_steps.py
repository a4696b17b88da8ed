"""Steps of models in PyTorch: ours, and those of others."""

import contextlib
import functools
import gc
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from sparse_tube_vit.benchmark.implementations import CLASSES
from sparse_tube_vit.benchmark.process import Job, Step, first_line
from sparse_tube_vit.benchmark.torch_tubevit import TubeViT, normalize
from sparse_tube_vit.models.variants import TUBE_SETS, VARIANTS


def tubevit(job: Job, dtype: torch.dtype) -> nn.Module:
    """Returns the model of `torch_tubevit`."""
    clips = [job.clip] + [(1, *job.clip[1:])] * (job.streams == "joint")
    model = TubeViT(TUBE_SETS["main"], CLASSES, VARIANTS[job.variant], clips)
    model.forward = functools.partial(model.forward, dtype=dtype)
    return model


class TransformersClassifier(nn.Module):
    """A video classifier of transformers, on uint8 clips (B, T, H, W, 3)."""

    #: Names of the classes, and options by which they are fastest: PyTorch's fused
    #: attention, which TimeSformer lacks, and its GELU in place of ViViT's own, which
    #: computes the same in seven passes over memory.
    KINDS = {
        "videomae": ("VideoMAE", {"attn_implementation": "sdpa"}),
        "vivit": (
            "Vivit",
            {"attn_implementation": "sdpa", "hidden_act": "gelu_pytorch_tanh"},
        ),
        "timesformer": ("Timesformer", {"attn_implementation": "eager"}),
    }

    def __init__(self, job: Job, dtype: torch.dtype):
        import transformers

        super().__init__()
        sizes = VARIANTS[job.variant]
        name, options = self.KINDS[job.implementation]
        config = getattr(transformers, f"{name}Config")(
            image_size=job.size,
            num_frames=job.frames,
            hidden_size=sizes["width"],
            num_hidden_layers=sizes["depth"],
            num_attention_heads=sizes["heads"],
            intermediate_size=sizes["mlp_dim"],
            num_labels=CLASSES["videos"],
            **options,
        )
        self.dtype = dtype
        make = getattr(transformers, f"{name}ForVideoClassification")
        self.model = make(config)

    def forward(self, x, head):
        x = normalize(x, self.dtype).permute(0, 1, 4, 2, 3)  # (B, T, 3, H, W)
        return self.model(pixel_values=x).logits.float()


class TimmViT(nn.Module):
    """timm's ViT on every frame of uint8 clips (B, T, H, W, 3), its logits averaged."""

    def __init__(self, job: Job, dtype: torch.dtype):
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        sizes = VARIANTS[job.variant]
        self.dtype = dtype
        self.model = VisionTransformer(
            img_size=job.size,
            patch_size=16,
            embed_dim=sizes["width"],
            depth=sizes["depth"],
            num_heads=sizes["heads"],
            mlp_ratio=sizes["mlp_dim"] / sizes["width"],
            num_classes=CLASSES["videos"],
        )

    def forward(self, x, head):
        b, t = x.shape[:2]
        x = normalize(x.flatten(0, 1), self.dtype).permute(0, 3, 1, 2)
        return self.model(x).float().view(b, t, -1).mean(1)


class PublicPort(nn.Module):
    """TubeViT of github.com/daniel-code/TubeViT, on uint8 clips (B, T, H, W, 3)."""

    def __init__(self, job: Job, dtype: torch.dtype):
        from tubevit.model import TubeViT as Port

        super().__init__()
        sizes = VARIANTS[job.variant]
        self.dtype = dtype
        self.model = Port(
            num_classes=CLASSES["videos"],
            video_shape=(3, *job.clip),
            num_layers=sizes["depth"],
            num_heads=sizes["heads"],
            hidden_dim=sizes["width"],
            mlp_dim=sizes["mlp_dim"],
        )

    def forward(self, x, head):
        x = normalize(x, self.dtype).permute(0, 4, 1, 2, 3)  # (B, 3, T, H, W)
        return self.model(x).float()


MODELS = {"pytorch": tubevit, "timm": TimmViT, "port": PublicPort}
MODELS |= dict.fromkeys(TransformersClassifier.KINDS, TransformersClassifier)


class NoSuchDevice(RuntimeError):
    """PyTorch does not see the GPU that is measured."""


class TorchSteps:
    """Train steps and forward passes: autocast, fused AdamW, `torch.compile`.

    Attributes:
        device: Name of the device and versions, for the report.
        limit_bytes: Memory of it that is free, or None.
        fixed_bytes: Memory of the parameters, and in training of the state.
    """

    def __init__(self, job: Job):
        self.job, self.dtype = job, getattr(torch, job.dtype)
        on_gpu = torch.cuda.is_available() and job.platform != "cpu"
        if job.platform == "gpu" and not on_gpu:
            raise NoSuchDevice(f"torch {torch.__version__} sees no GPU")
        self.chosen = torch.device("cuda" if on_gpu else "cpu")
        self._memory = torch.cuda.max_memory_allocated if on_gpu else None
        self.device = {
            "kind": torch.cuda.get_device_name() if on_gpu else "cpu",
            "platform": "gpu" if on_gpu else "cpu",
            "threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
        }
        self.limit_bytes = torch.cuda.mem_get_info()[0] if on_gpu else None
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")
        self.model = MODELS[job.implementation](job, self.dtype).to(self.chosen)
        self.fixed_bytes = sum(4 * x.numel() for x in self.model.parameters())
        if job.direction == "train":
            self.fixed_bytes *= 4  # gradient and moments
            self.optimizer = torch.optim.AdamW(
                self.model.parameters(), 5e-5, weight_decay=1e-3, fused=True
            )

    def prepare(self, batch: int) -> Step:
        """Returns the step for batches of a number of clips, compiled if that works."""
        if self.chosen.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        prepare = self._train if self.job.direction == "train" else self._forward
        if not self.job.compiled:
            return Step(prepare(batch, compiled=False), self._memory)
        run = prepare(batch, compiled=True)
        try:
            run(1)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self.release()
            note = f"not compiled: {first_line(error)}"
            return Step(prepare(batch, compiled=False), self._memory, (note,))
        return Step(run, self._memory)

    def release(self) -> None:
        """Frees memory that nothing refers to, and compiled graphs."""
        self.model.zero_grad(set_to_none=True)
        torch._dynamo.reset()
        gc.collect()
        if self.chosen.type == "cuda":
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def traced(self, folder: str):
        """Writes a trace of the body for Perfetto, and its kernels by time."""
        with torch.profiler.profile() as profile:
            yield
        Path(folder).mkdir(parents=True, exist_ok=True)
        profile.export_chrome_trace(f"{folder}/trace.json")
        by_time = profile.key_averages().table(row_limit=60, max_name_column_width=90)
        Path(folder, "kernels.txt").write_text(by_time)

    def _autocast(self):
        narrow = self.dtype != torch.float32
        return torch.autocast(self.chosen.type, self.dtype, enabled=narrow)

    def _example(self, batch, frames):
        clip = torch.randint(256, (1, frames, *self.job.clip[1:], 3), dtype=torch.uint8)
        return clip.to(self.chosen).repeat(batch, 1, 1, 1, 1)

    def _synchronize(self):
        if self.chosen.type == "cuda":
            torch.cuda.synchronize()

    def _train(self, batch, compiled):
        heads = ("videos", "images") if self.job.streams == "joint" else ("videos",)
        inputs = {
            head: self._example(batch, 1 if head == "images" else self.job.frames)
            for head in heads
        }
        labels = torch.ones(batch, dtype=torch.long, device=self.chosen)
        self.model.train()

        def loss(inputs):
            with self._autocast():
                logits = [self.model(x, head) for head, x in inputs.items()]
            return sum(F.cross_entropy(each, labels) for each in logits)

        if compiled:
            loss = torch.compile(loss, dynamic=False)

        def run(steps):
            for _ in range(steps):
                self.optimizer.zero_grad(set_to_none=True)
                loss(inputs).backward()
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
            self._synchronize()

        return run

    def _forward(self, batch, compiled):
        videos = self._example(batch, self.job.frames)
        self.model.eval()

        def forward(x):
            with self._autocast():
                return self.model(x, "videos")

        if compiled:
            forward = torch.compile(forward, dynamic=False)

        def run(steps):
            with torch.inference_mode():
                for _ in range(steps):
                    forward(videos)
            self._synchronize()

        return run


make_steps = TorchSteps
