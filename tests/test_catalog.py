from pyro_mvae import compress, export, models
from pyro_mvae.inference import penalties, tuning
from tests import catalog


def test_every_model_has_an_entry():
    assert set(catalog.MODELS) == set(models.__all__)


def test_every_penalty_has_an_entry():
    others = {
        "weights",
        "weights_and_axes",
        "channel_axis",
        "Penalty",
        "mutual_information",
        "attention",
        "bernoulli_divergence",
    }
    defined = catalog.public_functions(penalties) - others
    assert defined == set(catalog.REGULARIZERS) | set(catalog.PENALTIES)


def test_every_controller_has_an_entry():
    classes = {name for name in catalog.public_functions(tuning) if isinstance(getattr(tuning, name), type)}
    assert classes - {"Now", "Change", "Controller"} == set(catalog.CONTROLLERS)


def test_every_pass_has_an_entry():
    public = {name for name in compress.__all__ if isinstance(getattr(compress, name), type)}
    assert public - {"Pass"} == {name.split(",")[0] for name in catalog.PASSES}
    assert all(isinstance(value, compress.Pass) for value in catalog.PASSES.values())


def test_every_exporter_has_an_entry():
    assert {name for name in export.__all__ if name.startswith("export_")} == set(catalog.EXPORTERS) | catalog.OF_SEVERAL_PARTS
