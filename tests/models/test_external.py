"""Networks that are not built in: own ones of every usual kind, torchvision's, and what is said of names that are none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import models
from models import libraries, plugin
from models.plugin import PluginError
from models.wrapper import Model
from pipeline.data.spec import DataSpec
from tests.models.hostile import UNBUILDABLE, network

VECTORS = DataSpec(name="v", task="multiclass", sample_shape=(4,), classes=("a", "b", "c"))
IMAGES = DataSpec(
    name="i", task="multiclass", sample_shape=(3, 32, 32), dtype="uint8", value_range=(0, 255), classes=("a", "b", "c")
)
GREY = IMAGES.__class__(**{**vars(IMAGES), "sample_shape": (1, 32, 32)})
HEAD = "import functools\nimport torch\nfrom torch import nn\n"


def built(source: str, data: DataSpec = VECTORS, name: str = "Net", **args: object) -> Model:
    Path("net.py").write_text(source)
    return models.build(f"net.py:{name}", data, args)


@pytest.mark.parametrize("case", UNBUILDABLE)
def test_a_network_that_does_not_fit_is_a_sentence(case: str) -> None:
    source, said = UNBUILDABLE[case]
    with pytest.raises(PluginError, match=said) as caught:
        built(source)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("source", "has_features"),
    [
        (network("return self.fc(h)"), False),
        (network("return self.fc(h), h"), True),
        (network("return [self.fc(h), h]"), True),
        (HEAD + "def Net(num_classes): return nn.Linear(4, num_classes)\n", False),
        (HEAD + "Net = lambda in_features, out_features: nn.Linear(in_features, out_features)\n", False),
        (HEAD + "Net = functools.partial(nn.Linear, 4)\n", False),
        (HEAD + "from torch.nn import Linear as Net\n", False),
        (
            HEAD
            + "class Net(nn.Sequential):\n    def __init__(self, output_dim): super().__init__(nn.LazyLinear(output_dim))\n",
            False,
        ),
        (HEAD + "class Outer:\n    Net = nn.Linear\nNet = Outer.Net\n", False),
    ],
    ids=["tensor", "tuple", "list", "function", "lambda", "partial", "imported", "lazy", "nested"],
)
def test_every_usual_kind_of_network_gives_scores_and_features(source: str, has_features: bool) -> None:
    model = built(source)
    scores, features = model(torch.randn(6, 4))
    assert scores.shape == (6, 3) and features.ndim == 2 and len(features) == 6
    assert model.has_features is has_features and (has_features or features is scores)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_features_of_more_axes_are_flattened() -> None:
    model = built(network("return self.fc(h), x.reshape(-1, 2, 2)"))
    assert model(torch.randn(5, 4))[1].shape == (5, 4)


ASKED = (
    "class Net(nn.Module):\n    def __init__(self, {}):\n        super().__init__()\n        self.told = dict(locals())\n"
    "        self.fc = nn.LazyLinear(3)\n    def forward(self, x): return self.fc(x.flatten(1))\n"
)


@pytest.mark.parametrize(
    ("signature", "data", "args", "told"),
    [
        ("input_shape, num_outputs, num_classes", IMAGES, {}, {"input_shape": (3, 32, 32), "num_outputs": 3, "num_classes": 3}),
        ("in_channels, image_size=224", IMAGES, {}, {"in_channels": 3, "image_size": 32}),
        ("in_chans=3, img_size=7", GREY, {}, {"in_chans": 1, "img_size": 32}),
        ("channels", GREY, {}, {"channels": 1}),
        ("channels=3", GREY, {}, {"channels": 1}),
        ("channels=64", GREY, {}, {"channels": 64}),  # a width
        ("in_features, input_dim, out_features, output_dim", VECTORS, {}, {"in_features": 4, "input_dim": 4, "output_dim": 3}),
        ("num_features", VECTORS, {}, {"num_features": 4}),
        ("num_features=64", VECTORS, {}, {"num_features": 64}),
        ("in_features=9", IMAGES, {}, {"in_features": 9}),
        ("num_classes=10, width=8", VECTORS, {"width": 16, "num_classes": 5}, {"width": 16, "num_classes": 5}),
        ("**more", VECTORS, {"width": 2}, {"more": {"width": 2}}),
    ],
)
def test_a_constructor_gets_what_its_signature_takes(
    signature: str, data: DataSpec, args: dict[str, object], told: dict[str, object]
) -> None:
    model = built(HEAD + ASKED.format(signature), data, **args)
    assert {name: value for name, value in model.network.told.items() if name in told} == told  # type: ignore[union-attr, operator]


def test_an_argument_that_it_does_not_take_is_named_with_those_that_it_does() -> None:
    with pytest.raises(PluginError, match=r"has no argument depth .*It takes: num_outputs, width"):
        built(network("return self.fc(h)", signature="self, num_outputs, width=3"), depth=2)


def test_a_single_score_without_its_axis_is_told_how_to_have_one() -> None:
    data = DataSpec(name="v", task="binary", sample_shape=(4,), classes=("a", "b"))
    with pytest.raises(PluginError, match=r"shape \(2,\), and not \(2, 1\)\. Return scores\[:, None\]"):
        built(network("return self.fc(h)[:, 0]"), data)


def test_building_looks_at_the_network_without_leaving_a_trace() -> None:
    """Its weights are those of the seed, whatever its file draws or seeds when loaded; statistics and modes stay."""
    source = HEAD + (
        "torch.manual_seed(99); torch.rand(5)\n"
        "class Net(nn.Module):\n    def __init__(self, num_outputs):\n        super().__init__()\n"
        "        self.bn = nn.BatchNorm1d(4); self.fc = nn.Linear(4, num_outputs); self.fc.eval()\n"
        "        self.register_buffer('calls', torch.zeros(()))\n"
        "    def forward(self, x):\n        self.calls += 1\n"
        "        return self.fc(nn.functional.dropout(self.bn(x), training=True))\n"
    )
    torch.manual_seed(3)
    model = built(source)
    after = torch.rand(3)
    torch.manual_seed(3)
    alone = nn.Linear(4, 3)
    assert torch.equal(model.network.fc.weight, alone.weight) and torch.equal(torch.rand(3), after)  # type: ignore[union-attr]
    fresh = nn.BatchNorm1d(4).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in model.network.bn.state_dict().items())  # type: ignore[union-attr]
    assert model.network.calls == 0 and model.network.bn.training and not model.network.fc.training  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "body",
    [
        "self.rates = [r.item() for r in torch.linspace(0, 1, 3)]",  # as networks with stochastic depth do
        "self.rates = torch.linspace(0, 1, 3).tolist()",
        "self.rates = torch.zeros(3).numpy()",
    ],
)
def test_a_constructor_that_computes_has_a_skeleton_too(body: str) -> None:
    Path("net.py").write_text(network("return self.fc(h)", f"self.fc = nn.Linear(4, num_outputs)\n{body}"))
    with torch.device("meta"):
        model = models.build("net.py:Net", VECTORS, {})
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_forward_that_needs_values_is_judged_when_it_has_some() -> None:
    Path("net.py").write_text(network("return self.fc(h) if h.sum() > -1e9 else None"))
    with torch.device("meta"):
        models.build("net.py:Net", VECTORS, {})
    assert not models.build("net.py:Net", VECTORS, {}).has_features
    Path("net.py").write_text(network("return self.fc(h)[0]"))
    with torch.device("meta"), pytest.raises(PluginError, match=r"shape \(3,\)"):
        models.build("net.py:Net", VECTORS, {})


def test_muon_gets_the_matrices_between_the_first_layer_and_the_last() -> None:
    layers = "self.a = nn.Linear(4, 5)\nself.b = nn.Linear(5, 6)\nself.bn = nn.BatchNorm1d(6)"
    layers += "\nself.c = nn.Linear(6, 6)\nself.c2 = self.c"
    layers += "\nself.fc = nn.Linear(6, num_outputs)"
    source = network("return self.fc(self.c(self.bn(self.b(self.a(h)))))", layers)
    assert built(source).hidden_matrices == ("network.b.weight", "network.c.weight")
    assert built(source + "    hidden_matrices = ('c.weight',)\n").hidden_matrices == ("network.c.weight",)
    assert built(source + "    hidden_matrices = ()\n").hidden_matrices == ()


@pytest.mark.parametrize("name", ["cnn", "lenet"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_built_in_image_models_take_any_number_of_channels(name: str, channels: int) -> None:
    side = models.find(name).image_size
    data = DataSpec(
        name="i",
        task="multiclass",
        sample_shape=(channels, side, side),
        dtype="uint8",
        value_range=(0, 255),
        classes=("a", "b"),
    )
    assert models.find(name).input_shape == (None, side, side)
    assert models.build(name, data, {})(torch.zeros(2, channels, side, side, dtype=torch.uint8))[0].shape == (2, 2)


@pytest.mark.parametrize("data", [IMAGES, GREY], ids=["rgb", "grey"])
def test_a_network_of_torchvision_takes_grey_images_and_rgb(data: DataSpec) -> None:
    model = models.build("torchvision:resnet18", data, {}, preprocess="scale")
    assert model(torch.zeros(2, *data.sample_shape, dtype=torch.uint8))[0].shape == (2, 3)
    assert not model.has_features and model.repeat_grey == (data is GREY)
    assert len(model.hidden_matrices) == 19 and "network.conv1.weight" not in model.hidden_matrices
    told = models.notes("torchvision:resnet18", data)
    assert [note.startswith("model=torchvision:resnet18 takes RGB: grey") for note in told] == [True] * (data is GREY)


def test_grey_is_the_same_as_rgb_of_three_equal_channels() -> None:
    model = models.build("torchvision:squeezenet1_1", GREY, {}, preprocess="pretrained").eval()
    x = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    expected = model.network((x.expand(-1, 3, -1, -1).float() - model.mean) / model.std)
    assert torch.equal(model(x)[0], expected)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("googlenet", 32),
        ("inception_v3", 96),
        ("vit_b_32", 64),
        ("maxvit_t", 224),
        ("swin_v2_t", 64),
        ("convnext_tiny", 32),
        ("densenet121", 32),
    ],
)
def test_every_kind_of_torchvision_network_is_built_for_the_size_of_the_images(name: str, side: int) -> None:
    with torch.device("meta"):
        model = models.build(f"torchvision:{name}", IMAGES.resized(side), {})
        x = torch.zeros(2, 3, side, side)
    for mode in (True, False):
        scores, _ = model.train(mode)(x)
        assert isinstance(scores, torch.Tensor) and scores.shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "data", "args", "said"),
    [
        ("inception_v3", IMAGES, {}, r"cannot answer samples of shape \(2, 3, 32, 32\).*larger --image_size"),
        ("vit_b_16", IMAGES.resized(50), {}, "50 is no multiple of 16. Use --image_size 48 or 64"),
        ("resnet18", VECTORS, {}, r"takes images, and the data has samples of shape \(4,\)"),
        ("resnet18", DataSpec(**{**vars(IMAGES), "sample_shape": (4, 32, 32)}), {}, "4 channels. Use timm:resnet18"),
        ("resnet18", IMAGES, {"weights": "DEFAULT"}, "does not take weights .*--pretrained"),
        ("resnet18", IMAGES, {"depth": 3}, "cannot be built with num_classes=3, depth=3: TypeError"),
    ],
)
def test_what_torchvision_cannot_do_is_a_sentence(name: str, data: DataSpec, args: dict[str, object], said: str) -> None:
    with torch.device("meta"), pytest.raises(PluginError, match=said) as caught:
        models.build(f"torchvision:{name}", data, args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet18", r"is not known\. Did you mean torchvision:resnet18\?"),
        ("resnt50", "Did you mean torchvision:resnet50"),
        ("lennet", "Did you mean lenet"),
        ("nothing_like_it", "is not known. Choose one of: polynomial"),
        ("torchvision:resnt18", "is not a classification network of torchvision. Did you mean torchvision:resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", "is not a classification network"),
        ("torchvision:raft_large", "is not a classification network"),
        ("torchvision:", "is not a classification network"),
        ("absent.py", "names the file absent.py, which does not exist"),
        ("nets.py", r"is a file\. Say which class of it: nets\.py:Net or nets\.py:Other\."),
        ("empty.py", r"Say which class of it, as in empty\.py:Net"),
    ],
)
def test_a_name_that_is_no_model_is_told_what_was_meant(name: str, said: str) -> None:
    Path("nets.py").write_text(
        "import torch\nfrom torch.nn import Module\nclass Net(Module): pass\nclass Other(Net): pass\nclass No: pass\n"
    )
    Path("empty.py").write_text("")
    with pytest.raises(ValueError, match=said):
        models.find(name)


def test_the_names_read_off_torchvisions_source_are_those_that_it_lists() -> None:
    from torchvision import models as theirs

    assert set(libraries.names_by_source("torchvision")) == set(theirs.list_models(module=theirs))


def test_a_library_knows_the_size_of_its_images_without_a_download() -> None:
    sizes = {
        name: models.find(f"torchvision:{name}").image_size
        for name in ("resnet18", "efficientnet_b4", "inception_v3", "vit_h_14")
    }
    assert sizes == {"resnet18": 224, "efficientnet_b4": 380, "inception_v3": 299, "vit_h_14": 518}


def test_a_missing_timm_is_told_how_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(PluginError, match=r"needs timm, which is not installed\..*trainyard\[timm\].*uv sync --extra timm"):
        models.find("timm:never_asked_for")


def test_the_arguments_of_a_model_are_those_that_a_user_may_give() -> None:
    Path("net.py").write_text(
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from nowhere import Thing\n"
        "def Net(num_classes: int, width: Thing = 3): pass\n"
    )
    assert list(models.parameters("net.py:Net")) == ["num_classes", "width"]
    assert list(models.parameters("cnn")) == ["dropout"]
    assert models.parameters("cnn")["dropout"].annotation is float


def test_other_models_are_found_without_torch_where_they_can_be() -> None:
    Path("net.py").write_text("import torch\nclass Net: pass\n")
    code = (
        "import sys, models\nmodels.find('net.py:Net'); models.find('cnn')\n"
        "for name in ('resnet18', 'net.py', 'absent.py:Net'):\n    try: models.find(name)\n    except ValueError: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_a_plugins_errors_end_a_sentence_and_are_the_users() -> None:
    assert issubclass(plugin.PluginError, ValueError)
