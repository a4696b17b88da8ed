"""Names of clips in a folder, and the config of fine-tuning on it."""

from sparse_tube_vit.config.flags import read

CLIPS = [f"{name}/{i}.mp4" for name in ("Kür & pas", "walk the dog") for i in range(4)]


def config_of(clips, data_dir, model="", *arguments, train=""):
    """The config file's, as on the command line."""
    return read(
        [
            f"--config=configs/finetune.py:{train}",
            f"--config.data_dir={data_dir}",
            f"--config.data.folder={clips}",
            f"--config.init.weights={model}",
            *arguments,
        ]
    )
