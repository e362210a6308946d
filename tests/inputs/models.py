"""Models of one's own: factories, outputs, precision, modes, classes, sizes, normalization, published models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import robobench
from robobench.models.build import build_model
from robobench.models.spec import ModelSpec
from robobench.planning.planner import Planner
from robobench.planning.request import ExperimentConfig
from tests.inputs.case import Case

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3, channels=3, side=None):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 if side is None else 4 * (side - 2) ** 2, classes)
        self.side = side

    def forward(self, x):
        x = self.bn(self.conv(x)).relu()
        return self.fc(x.mean((2, 3)) if self.side is None else x.flatten(1))

class Output:
    def __init__(self, logits):
        self.logits = logits
"""


def evaluate(
    section, given, code, says="", *, refused=False, call="make", expected=None, data=None, state=None, **flags
):
    """Plan the evaluation of a factory on 6 images of 16 px in 3 classes; `expected` looks at plan and model."""

    def run(folder):
        (folder / "net.py").write_text(SOURCE + code)
        torch.manual_seed(0)
        images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
        np.savez(folder / "d.npz", x_test=images, y_test=np.arange(6) % 3)
        name = data(folder) if data else "npz:d.npz"
        if state is not None:
            torch.save(build_model(state).state_dict(), folder / "w.pt")
            flags["weights"] = Path("w.pt")
        request = {"model": f"net.py:{call}", "dataset": name, "attacks": ("fgsm",), "device": "cpu", **flags}
        planner = Planner(ExperimentConfig(external=True, protocol="white-box", out=folder / "out", **request))
        plan = planner.plan()
        if expected is not None:
            expected(plan)
        return [note for note in plan.notes if "test images" not in note]

    return Case(section, given, run, says, refused)


def wrapped(forward):
    """A factory whose model returns `forward(self, x, logits)`."""
    return f"""
class Wrapped(Net):
    def forward(self, x):
        logits = super().forward(x)
        return {forward}

def make(num_classes):
    return Wrapped(num_classes)
"""


def make(body, signature="num_classes"):
    return f"\ndef make({signature}):\n    {body}\n"


def forward(body):
    lines = "\n        ".join(body.split("\n"))
    own = f"\nclass Own(Net):\n    def forward(self, x):\n        {lines}\n"
    return own + make("return Own(num_classes)")


def spec_has(**values):
    def look(plan):
        for name, value in values.items():
            assert getattr(plan.models[0].spec, name) == value, getattr(plan.models[0].spec, name)

    return look


FACTORY, OUTPUT, SIZE = "Factories", "Outputs of a model", "Image size and normalization"
FACTORIES = [
    *(evaluate(FACTORY, f"def make({name})", make(f"return Net({name})", name))
      for name in ("num_classes", "n_classes", "classes", "num_labels", "k")),
    evaluate(FACTORY, "def make()", make("return Net(3)", "")),
    evaluate(FACTORY, "def make(pretrained=False)", make("assert pretrained is False\n    return Net(3)",
                                                         "pretrained=False")),
    evaluate(FACTORY, "def make(depth=28, num_classes=10)",
             make("assert depth == 28\n    return Net(num_classes)", "depth=28, num_classes=10")),
    evaluate(FACTORY, "def make(*, num_classes)", make("return Net(num_classes)", "*, num_classes")),
    evaluate(FACTORY, "def make(**options), as torchvision's", make("return Net(options['num_classes'])", "**options")),
    evaluate(FACTORY, "def make(**options) that refuses num_classes",
             make("return Net(**options)", "**options")),
    evaluate(FACTORY, "a class", "", call="Net"),
    evaluate(FACTORY, "functools.partial", "import functools\nmake = functools.partial(Net, 3)\n"),
    evaluate(FACTORY, "def make(depth, width)", make("return Net(3)", "depth, width"), "needs depth, width",
             refused=True),
    evaluate(FACTORY, "def make(num_classes, depth)", make("return Net(3)", "num_classes, depth"), "needs depth",
             refused=True),
    evaluate(FACTORY, "a function that fails", make("return Net(num_classes) + 1"), "make(3) raised" if False else
             "raised TypeError", refused=True),
    evaluate(FACTORY, "a function that returns no module", make("return 3"), "must return an nn.Module, got int",
             refused=True),
    evaluate(FACTORY, "a function that is not there", "", "unknown function in net.py 'make'", refused=True),
    evaluate(FACTORY, "a file that is not there", "", "no file 'other.py'", refused=True, model="other.py:make"),
    evaluate(FACTORY, "a file without a function", "", "write net.py:FUNCTION", refused=True, model="net.py"),
    evaluate(FACTORY, "a file that does not import", "import nothing_of_this_name\n", "fails to import", refused=True),
]  # fmt: skip

OUTPUTS = [
    evaluate(OUTPUT, "a tuple", wrapped("logits, x"), "the first entry of its tuple output"),
    evaluate(OUTPUT, "a list", wrapped("[logits]"), "the first entry of its list output"),
    evaluate(OUTPUT, "a dict with 'logits'", wrapped("{'aux': x, 'logits': logits}"), "the entry 'logits'"),
    evaluate(OUTPUT, "a dict without 'logits'", wrapped("{'out': logits}"), "the entry 'out'"),
    evaluate(OUTPUT, "an object with .logits, as of Hugging Face", wrapped("Output(logits)"), ".logits"),
    evaluate(OUTPUT, "(B, K, 1, 1)", wrapped("logits[:, :, None, None]"), "flattened"),
    evaluate(OUTPUT, "half precision", make("return Net(num_classes).half()"), "float16 parameters"),
    evaluate(OUTPUT, "bfloat16", make("return Net(num_classes).bfloat16()"), "bfloat16 parameters"),
    evaluate(OUTPUT, "double precision", make("return Net(num_classes).double()"), "float64 parameters"),
    evaluate(OUTPUT, "None", wrapped("None"), "returned a NoneType", refused=True),
    evaluate(
        OUTPUT, "feature maps (B, K, H, W)", wrapped("x"), "must return one (B, K) tensor of logits", refused=True
    ),
    evaluate(OUTPUT, "logits that are not finite", wrapped("logits / 0"), "not finite", refused=True),
    evaluate(
        OUTPUT,
        "a model for one channel",
        make("return Net(num_classes, channels=1)"),
        "images.mean(1, keepdim=True)",
        refused=True,
    ),
    evaluate(
        OUTPUT,
        "a model for images of another size",
        make("return Net(num_classes, side=32)"),
        "add --image-size N",
        refused=True,
    ),
    evaluate(
        OUTPUT,
        "a model for images of another size, --image-size 32",
        make("return Net(num_classes, side=32)"),
        image_size=32,
        expected=spec_has(image_size=32),
    ),
    evaluate(
        OUTPUT, "a model that raises", forward("raise KeyError('x')"), "fails on images (2, 3, 16, 16)", refused=True
    ),
    evaluate(
        OUTPUT,
        "BatchNorm in training mode inside forward",
        forward("self.train()\nreturn super().forward(x)"),
        "changes its BatchNorm statistics when evaluated",
        refused=True,
    ),
    evaluate(OUTPUT, "a model saved in training mode", make("return Net(num_classes).train()")),
    evaluate(OUTPUT, "a model that changes its input in place", forward("x.sub_(0.5)\nreturn super().forward(x)")),
    evaluate(
        OUTPUT,
        "fewer logits than classes",
        make("return Net(2)"),
        "gives 2 classes, data set 'npz:d.npz' has 3",
        refused=True,
    ),
    evaluate(
        OUTPUT,
        "more logits than the labels of own arrays show",
        make("return Net(10)"),
        "labels are read as numbers of the model's classes",
    ),
    evaluate(
        OUTPUT,
        "more logits than classes of a known data set",
        make("return Net(1000)"),
        "gives 1000 classes, data set 'digits' has 10",
        refused=True,
        dataset="digits",
    ),
]


def folder_of(*names, size=(16, 16)):
    def write(folder):
        for number, name in enumerate(names):
            (folder / "images/test" / name).mkdir(parents=True)
            Image.new("RGB", size, (80 * number, 9, 9)).save(folder / "images/test" / name / "0.png")
        return "imagefolder:images"

    return write


def resolution(side, model_side=None):
    def look(plan):
        assert (plan.dataset.resolution, plan.models[0].spec.image_size) == (side, model_side or side)

    return look


def labels_are(numbers):
    def look(plan):
        assert plan.dataset.num_classes == 1000 and numbers

    return look


SIZES = [
    evaluate(SIZE, "own arrays keep their size", make("return Net(num_classes)"), expected=resolution(16)),
    evaluate(SIZE, "own arrays keep their size in any preset", make("return Net(num_classes)"), preset="paper",
             expected=resolution(16)),
    evaluate(SIZE, "--image-size 24", make("return Net(num_classes)"), image_size=24, expected=resolution(24)),
    evaluate(SIZE, "--set run.image_size=24: the model resizes", make("return Net(num_classes)"),
             sets=("run.image_size=24",), expected=resolution(16, 24)),
    evaluate(SIZE, "--image-size and --set run.image_size", "", "leave one out", refused=True, image_size=24,
             sets=("run.image_size=24",)),
    evaluate(SIZE, "--image-size 0", "", "--image-size must be 1 or more", refused=True, image_size=0),
    evaluate(SIZE, "image folders keep their size", make("return Net(num_classes)"), data=folder_of("a", "b", "c"),
             expected=resolution(16)),
    evaluate(SIZE, "an image folder that is not square", make("return Net(num_classes)"), "add --image-size 12",
             refused=True, data=folder_of("a", "b", "c", size=(16, 12))),
    evaluate(SIZE, "--mean without --std", make("return Net(num_classes)"), "--mean without --std", refused=True,
             mean="0.5,0.5,0.5"),
    evaluate(SIZE, "--std without --mean", make("return Net(num_classes)"), "--std without --mean", refused=True,
             std="0.5,0.5,0.5"),
    evaluate(SIZE, "--mean 0.5,0.4,0.3 --std 0.2,0.2,0.2", make("return Net(num_classes)"), mean="0.5,0.4,0.3",
             std="0.2,0.2,0.2", expected=spec_has(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))),
    evaluate(SIZE, "--mean '[0.5, 0.4, 0.3]' and fractions", make("return Net(num_classes)"),
             mean="[127.5/255, .4, 0.3]", std="(1, 1, 1)", expected=spec_has(mean=(0.5, 0.4, 0.3), std=(1, 1, 1))),
    evaluate(SIZE, "--mean 125.3,123.0,113.9", make("return Net(num_classes)"), "--mean 0.4914,0.4824,0.4467",
             refused=True, mean="125.3,123.0,113.9", std="63,62,66.7"),
    evaluate(SIZE, "--mean of negative numbers", make("return Net(num_classes)"), "must be 0 or more", refused=True,
             mean="-0.5,0.5,0.5", std="1,1,1"),
    evaluate(SIZE, "--std 0,1,1", make("return Net(num_classes)"), "must be above 0", refused=True, mean="0,0,0",
             std="0,1,1"),
    evaluate(SIZE, "--mean 0.5", make("return Net(num_classes)"), "one per channel: 0.5,0.5,0.5", refused=True,
             mean="0.5", std="1,1,1"),
    evaluate(SIZE, "--mean of words", make("return Net(num_classes)"), "takes three numbers", refused=True,
             mean="imagenet", std="1,1,1"),
    evaluate(SIZE, "a model of robobench on own data", "", "normalizes with ImageNet's mean", model="cnn",
             state=ModelSpec("cnn", 3)),
    evaluate(SIZE, "a timm model trained on own data: their size, the config's mean", "", "mean 0.5,0.5,0.5",
             model="timm:test_resnet", state=ModelSpec("timm:test_resnet", 3),
             expected=spec_has(image_size=16, mean=(0.5, 0.5, 0.5), stem="native")),
    evaluate(SIZE, "a timm model of as many classes as its published weights", "", "resizes images to 160 px",
             model="timm:test_resnet", state=ModelSpec("timm:test_resnet", 1000), data=folder_of("3", "20"),
             expected=resolution(16, 160)),
    evaluate(SIZE, "the same model, --image-size 32", "", "class folders that are whole numbers", image_size=32,
             model="timm:test_resnet", state=ModelSpec("timm:test_resnet", 1000), data=folder_of("3", "20"),
             expected=resolution(32)),
    evaluate(SIZE, "the same model, images that are not square", "", "is cropped and resized to 160 px",
             model="timm:test_resnet", state=ModelSpec("timm:test_resnet", 1000),
             data=folder_of("3", "20", size=(16, 12)), expected=resolution(160)),
    evaluate(SIZE, "a timm network for one size, trained at that of the data", "", "mean 0.5,0.5,0.5",
             model="timm:test_vit", state=ModelSpec("timm:test_vit", 3, image_size=16), expected=resolution(16)),
    evaluate(SIZE, "a timm network for one size, trained at its own", "", "mean 0.5,0.5,0.5",
             model="timm:test_vit", state=ModelSpec("timm:test_vit", 3), expected=resolution(16, 160)),
    evaluate(SIZE, "torchvision.models:NAME gets the mean of torchvision's weights", "", "as torchvision's weights do",
             model="torchvision.models:shufflenet_v2_x0_5",
             expected=spec_has(mean=(0.485, 0.456, 0.406), image_size=16)),
    evaluate(SIZE, "a model of 1000 classes on a folder of WordNet IDs", make("return Net(1000)"),
             "WordNet IDs are matched with ImageNet's 1000 classes", data=folder_of("n01440764", "n01443537"),
             expected=labels_are([0, 1])),
    evaluate(SIZE, "a model of 1000 classes on a folder of numbers", make("return Net(1000)"),
             "class folders that are whole numbers", data=folder_of("3", "20"), expected=labels_are([3, 20])),
    evaluate(SIZE, "a model of 1000 classes on a folder of other names", make("return Net(1000)"),
             "name the class folders by the model's class numbers", refused=True, data=folder_of("cat", "dog")),
    evaluate(SIZE, "a model of 1000 classes on unknown WordNet IDs", make("return Net(1000)"),
             "is not one of ImageNet's 1000", refused=True, data=folder_of("n00000001", "n01443537")),
]  # fmt: skip


# --- robobench.attack ---------------------------------------------------------------------------


def attack(given, says="", *, refused=False, images=None, labels=(0, 1), **options):
    def run(folder):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
        found = torch.full((2, 3, 2, 2), 0.5) if images is None else images
        adv = robobench.attack("fgsm", options.pop("net", net), found, labels, **{"eps": 8 / 255, **options})
        clean = torch.as_tensor(found)
        assert (adv - clean).abs().max() <= 8 / 255 + 1e-6 and not torch.equal(adv, clean)
        return []

    return Case("robobench.attack", given, run, says, refused)


class TupleNet(torch.nn.Sequential):
    def forward(self, x):
        return super().forward(x), x


class InPlaceNet(torch.nn.Sequential):
    def forward(self, x):
        return super().forward(x.sub_(0.5).mul_(4))


UNIT = np.full((2, 3, 2, 2), 0.5, np.float32)
TUPLE_NET = TupleNet(torch.nn.Flatten(), torch.nn.Linear(12, 3))
ATTACKED = [
    attack("tensors", labels=torch.tensor([0, 1])),
    attack("numpy images and labels", images=UNIT, labels=np.array([0, 1])),
    attack(
        "float64 images",
        images=torch.full((2, 3, 2, 2), 0.5).double(),
        net=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).double(),
    ),
    attack("lists", images=UNIT.tolist(), labels=[0, 1]),
    attack("int32 labels", labels=torch.tensor([0, 1], dtype=torch.int32)),
    attack("norm=numpy.inf", norm=np.inf),
    attack("norm='linf'", norm="linf"),
    attack("norm=2", norm=2, eps=0.03),
    attack("eps='8./255'", eps="8./255"),
    attack("a model that returns a tuple", net=TUPLE_NET),
    attack("a model that changes its input in place", net=InPlaceNet(torch.nn.Flatten(), torch.nn.Linear(12, 3))),
    attack("half images", "an eps ball needs both", refused=True, images=torch.full((2, 3, 2, 2), 0.5).half()),
    attack("uint8 images", "images / 255", refused=True, images=torch.ones(2, 3, 2, 2, dtype=torch.uint8)),
    attack("images in 0 to 255", "[0, 1]", refused=True, images=UNIT * 255),
    attack("one image without a batch dimension", "images[None]", refused=True, images=UNIT[0]),
    attack("labels of text", "labels must be", refused=True, labels=["a", "b"]),
    attack("float labels", "labels must be (2,) int64", refused=True, labels=torch.tensor([0.0, 1.0])),
    attack("one-hot labels", "one class per image", refused=True, labels=torch.eye(2).long()),
    attack("a label without a logit", "labels must be 0 to 2, got 0 to 7", refused=True, labels=[0, 7]),
    attack("a negative label", "labels must be 0 to 2", refused=True, labels=[0, -1]),
    attack("a model that fails", "fails on images", refused=True, net=torch.nn.Linear(5, 2)),
    attack("a function as a model", "must be a torch.nn.Module", refused=True, net=torch.relu),
    attack("norm=3", "unknown norm '3'", refused=True, norm=3),
]

CASES = [*FACTORIES, *OUTPUTS, *SIZES, *ATTACKED]
