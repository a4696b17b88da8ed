import pytest

from sparse_tube_vit.config import (
    InvalidConfig,
    default_config,
    evaluation,
    from_json,
    stream,
)
from sparse_tube_vit.config.keys import REQUIRED
from sparse_tube_vit.config.schema import EVALUATION, SCHEMA, STREAM, leaves

VIDEO = {"kind": "video", "dataset": "d", "head": "h", "batch_size": 4}


@pytest.mark.parametrize("schema", [SCHEMA, STREAM, EVALUATION])
def test_every_key_has_a_meaning_and_a_default_that_its_rule_accepts(schema):
    for name, key in leaves(schema):
        assert key.meaning[0].isupper() and key.meaning.endswith("."), name
        if key.rule and key.default not in (None, REQUIRED):
            assert key.rule.problem(name, key.default) is None


def test_the_schema_lists_every_key_of_a_config():
    config = default_config()
    names = [name for name, _ in leaves(SCHEMA)]
    assert len(names) == len(set(names)) == 76
    for name in names:
        section, _, key = name.rpartition(".")
        assert key in (config[section] if section else config)
    assert set(stream(**VIDEO)) == set(STREAM)
    assert set(evaluation(**VIDEO)) == set(EVALUATION)


def test_a_misspelt_key_in_a_config_file_names_the_nearest():
    config = default_config()
    with pytest.raises(AttributeError, match="Did you mean.*total_steps"):
        config.totl_steps = 1
    with pytest.raises(AttributeError, match="Did you mean.*warmup_steps"):
        config.optimizer.warm_up_steps = 1
    with pytest.raises(InvalidConfig, match="colour_jitter .*mean color_jitter"):
        stream(**VIDEO, colour_jitter=0.4)
    with pytest.raises(InvalidConfig, match="evaluation lacks: batch_size, head"):
        evaluation(kind="video", dataset="d")


def test_frozen_layers_of_a_saved_config_leave_the_trained_ones():
    values = default_config().to_dict() | {"total_steps": 20_000}
    for frozen, trained in ((None, None), (8, 4), (12, 0)):
        values["optimizer"]["frozen_layers"] = frozen
        assert from_json(values).optimizer.trained_layers == trained


def test_a_saved_config_takes_defaults_for_keys_it_lacks_and_no_unknown_ones():
    config = default_config()
    config.total_steps = 20_000
    config.streams.video = stream(**VIDEO, crop_area=(0.5, 1.0))
    saved = config.to_dict()
    saved["streams"]["video"]["crop_area"] = [0.5, 1.0]  # as JSON has it
    del saved["optimizer"]["ema_decay"], saved["streams"]["video"]["flip"]
    assert from_json(saved) == config
    saved["streams"]["video"]["frames"] = 4
    with pytest.raises(InvalidConfig, match="unknown keys: frames.*upgrade"):
        from_json(saved)
