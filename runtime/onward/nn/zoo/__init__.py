"""Published networks. Every function returns a network whose output are logits, for losses that take those.

Options are keyword arguments; all have `num_classes` and `seed`. `build` takes them by name.
"""

from onward.nn.zoo._registry import build, names
from onward.nn.zoo.alexnet import alexnet
from onward.nn.zoo.audio import audiocnn
from onward.nn.zoo.lenet import lenet5
from onward.nn.zoo.mlp import mlp
from onward.nn.zoo.mobilenet import mobilenet_v2
from onward.nn.zoo.resnet import resnet18, resnet20, resnet50
from onward.nn.zoo.text import lstm_classifier, textcnn, transformer_encoder
from onward.nn.zoo.vgg import vgg11

__all__ = [
    "alexnet",
    "audiocnn",
    "build",
    "lenet5",
    "lstm_classifier",
    "mlp",
    "mobilenet_v2",
    "names",
    "resnet18",
    "resnet20",
    "resnet50",
    "textcnn",
    "transformer_encoder",
    "vgg11",
]
