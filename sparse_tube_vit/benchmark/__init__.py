"""The benchmark command: times the model, training, decoding and input.

python -m sparse_tube_vit.benchmark model --variant B --frames 32 --size 224
python -m sparse_tube_vit.benchmark scale_up --small Ti --big S
python -m sparse_tube_vit.benchmark decode FILE --beside pyav opencv --randaugment 2
python -m sparse_tube_vit.benchmark input --config FILE --step_seconds 0.5
"""
