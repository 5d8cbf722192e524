"""Networks in torch with random weights, small ones of the usual kinds; knows nothing of onward.

Imported by the interpreter that has torch, transformers and timm. `ARCHITECTURES` makes each: a module, and a
function that draws inputs for so many samples. Dropout is off, so that gradients can be compared.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Inputs = tuple[torch.Tensor, ...]
Made = tuple[nn.Module, Callable[[int], Inputs]]

VOCABULARY = 1000
LENGTH = 64
"""Tokens in a sequence."""


class First(nn.Module):  # type: ignore[misc]
    """The first output of a model of transformers."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=False)[0]


def images(size: int = 64, channels: int = 3) -> Callable[[int], Inputs]:
    return lambda n: (torch.randn(n, channels, size, size),)


def tokens(n: int, length: int = LENGTH) -> Inputs:
    return (torch.randint(1, VOCABULARY, (n, length)),)


def masked_tokens(n: int) -> Inputs:
    mask = (torch.arange(LENGTH) < torch.randint(LENGTH // 3, LENGTH + 1, (n, 1))).long()
    return *tokens(n), mask


def vit() -> Made:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=512, image_size=64,
        patch_size=8, num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return First(ViTForImageClassification(config), "pixel_values"), images()


def bert() -> Made:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=LENGTH, num_labels=3, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return First(BertForSequenceClassification(config), "input_ids", "attention_mask"), masked_tokens


def gpt2() -> Made:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=128, n_layer=3, n_head=4, use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = First(GPT2LMHeadModel(config), "input_ids", "attention_mask")
    return model, lambda n: (*tokens(n), torch.ones(n, LENGTH, dtype=torch.long))


def t5_encoder() -> Made:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=VOCABULARY, d_model=128, d_kv=32, d_ff=512, num_layers=3, num_heads=4, dropout_rate=0.0
    )
    return First(T5EncoderModel(config), "input_ids"), tokens


def whisper_encoder() -> Made:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=128, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=512, num_mel_bins=80,
        max_source_positions=100, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
        encoder_layerdrop=0.0,
    )  # fmt: skip
    return First(WhisperEncoder(config), "input_features"), lambda n: (torch.randn(n, 80, 200),)


def swin() -> Made:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=64, patch_size=4, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4,
        num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, drop_path_rate=0.0,
    )  # fmt: skip
    return First(SwinForImageClassification(config), "pixel_values"), images()


def efficientnet() -> Made:
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        image_size=64, width_coefficient=0.5, depth_coefficient=0.5, hidden_dim=640, num_labels=5,
        dropout_rate=0.0, drop_connect_rate=0.0, initializer_range=0.2,
    )  # fmt: skip
    return First(EfficientNetForImageClassification(config), "pixel_values"), images()


def convnext() -> Made:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(
        hidden_sizes=[32, 64, 128, 256],
        depths=[1, 1, 2, 1],
        image_size=64,
        num_labels=5,
        drop_path_rate=0.0,
        layer_scale_init_value=1.0,
    )
    return First(ConvNextForImageClassification(config), "pixel_values"), images()


def timm_model(name: str, size: int = 64, **options: Any) -> Callable[[], Made]:
    def make() -> Made:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=5, **options), images(size)

    return make


def block(a: int, b: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, padding=1), nn.BatchNorm2d(b), nn.ReLU())


class UNet(nn.Module):  # type: ignore[misc]
    """Two levels, joined with a margin that is computed from shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = block(3, 16), block(16, 32), block(32, 64)
        self.up2, self.up1 = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.join2, self.join1, self.head = block(64, 32), block(32, 16), nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.down1(x)
        b = self.down2(nn.functional.max_pool2d(a, 2))
        c = self.up2(self.middle(nn.functional.max_pool2d(b, 2)))
        rows, columns = b.shape[2] - c.shape[2], b.shape[3] - c.shape[3]
        c = nn.functional.pad(c, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        d = self.up1(self.join2(torch.cat([b, c], 1)))
        return self.head(self.join1(torch.cat([a, d], 1)))


class Detector(nn.Module):  # type: ignore[misc]
    """As YOLO: residual stages with SiLU, pooling pyramid, neck, boxes and classes at two strides."""

    def __init__(self) -> None:
        super().__init__()

        def unit(a: int, b: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
            conv = nn.Conv2d(a, b, kernel, stride, padding=kernel // 2, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(b), nn.SiLU())

        self.stem, self.down = unit(3, 16, stride=2), unit(16, 32, stride=2)
        self.stage = nn.ModuleList(nn.Sequential(unit(32, 16, 1), unit(16, 32)) for _ in range(2))
        self.deeper, self.squeeze = unit(32, 64, stride=2), unit(64, 32, 1)
        self.pyramid, self.join = unit(128, 64, 1), unit(96, 32)
        self.heads = nn.ModuleList(nn.Conv2d(c, 3 * 7, 1) for c in (32, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(self.stem(x))
        for unit in self.stage:
            x = x + unit(x)
        deep = [self.squeeze(self.deeper(x))]
        for _ in range(3):
            deep.append(nn.functional.max_pool2d(deep[-1], 5, 1, 2))
        y = self.pyramid(torch.cat(deep, 1))
        up = nn.functional.interpolate(y, scale_factor=2.0, mode="nearest")
        levels = [self.join(torch.cat([x, up], 1)), y]
        found = [
            head(level).flatten(2).transpose(1, 2) for head, level in zip(self.heads, levels, strict=True)
        ]
        boxes = torch.cat(found, 1)
        return torch.cat([torch.sigmoid(boxes[..., :3]), torch.exp(boxes[..., 3:6]), boxes[..., 6:]], 2)


class Recurrent(nn.Module):  # type: ignore[misc]
    """Two bidirectional layers over embedded tokens."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 32)
        self.cell = kind(32, 48, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(96, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(self.embed(ids))[0][:, -1])


class Tcn(nn.Module):  # type: ignore[misc]
    """Causal convolutions, each of twice the dilation."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(32, 32, 3, padding=2 * 2**i, dilation=2**i) for i in range(4))
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            y = conv(x)
            x = x + torch.relu(y[:, :, : x.shape[2]])
        return self.head(x.mean(2))


class Graph(nn.Module):  # type: ignore[misc]
    """Messages along edges, added up by scatter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 64), nn.Linear(64, 8)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.second):
            messages = layer(nodes)[edges[0]]
            target = edges[1].unsqueeze(1).expand_as(messages)
            sums = nodes.new_zeros(nodes.shape[0], messages.shape[1])
            nodes = torch.tanh(sums.scatter_add(0, target, messages))
        return nodes


def graph() -> Made:
    return Graph(), lambda n: (torch.randn(64 * n, 16), torch.randint(0, 64 * n, (2, 300 * n)))


ARCHITECTURES: dict[str, Callable[[], Made]] = {
    "vit": vit,
    "bert": bert,
    "gpt2": gpt2,
    "t5_encoder": t5_encoder,
    "whisper_encoder": whisper_encoder,
    "swin": swin,
    "efficientnet": efficientnet,
    "convnext": convnext,
    "mobilenetv3": timm_model("mobilenetv3_small_050", drop_rate=0.0),
    "densenet": timm_model("densenet121", growth_rate=16, block_config=(2, 3, 4, 3)),
    "regnet": timm_model("regnetx_002"),
    "resnet": timm_model("resnet10t"),
    "timm_vit": timm_model("vit_tiny_patch16_224", img_size=64, patch_size=8, embed_dim=96, depth=3),
    "timm_swin": timm_model(
        "swin_tiny_patch4_window7_224",
        size=56,
        img_size=56,
        embed_dim=24,
        depths=(2, 2, 2, 2),
        drop_path_rate=0.0,
    ),
    "unet": lambda: (UNet(), images()),
    "yolo": lambda: (Detector(), images()),
    "gru": lambda: (Recurrent(nn.GRU), lambda n: tokens(n, 16)),
    "lstm": lambda: (Recurrent(nn.LSTM), lambda n: tokens(n, 16)),
    "tcn": lambda: (Tcn(), lambda n: (torch.randn(n, 32, 128),)),
    "gnn": graph,
}
"""The networks by name."""

_KEPT: list[torch.library.Library] = []
"""Operators are gone with the library that declares them."""


def build(architecture: str) -> Made:
    """The network with its first weights, always the same, in training mode."""
    _declare_torchvision()
    torch.manual_seed(0)
    model, draw = ARCHITECTURES[architecture]()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train(), draw


def _declare_torchvision() -> None:
    """Let torchvision be imported where it was built for CUDA and torch was not: nothing here calls it."""
    if _KEPT or "torchvision" in sys.modules:
        return
    try:
        import torchvision  # type: ignore[import-not-found]  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
