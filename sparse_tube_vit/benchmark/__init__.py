"""The benchmark command: times training, inference, decoding and input.

sparse-tube-vit benchmark scale_up --small Ti --big S
sparse-tube-vit benchmark decode FILE --beside pyav opencv --randaugment 2
sparse-tube-vit benchmark input --config FILE --step_seconds 0.5
sparse-tube-vit benchmark gpu --minutes 8    # see launch/gpu_benchmark.sh
sparse-tube-vit benchmark peers              # beside ViViT, VideoMAE, TimeSformer
"""
