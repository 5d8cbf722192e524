"""Builds a network in torch, exports it, and writes what torch makes of a batch; knows nothing of onward.

    python torch_side.py ARCHITECTURE EXPORTER FOLDER

EXPORTER is `script` or `dynamo`. FOLDER gets `model.onnx` (opset 17 or 18, training mode kept, batch
dynamic, no constant folding, so that parameters keep their names), `inputs.npz`, `outputs.npz` and
`gradients.npz`: those of mean((output - target)^2) with respect to each parameter, in float64.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

BATCH = 3
"""Images or sequences in the batch that is compared; the file is exported with two."""

Made = tuple[nn.Module, Callable[[int], tuple[torch.Tensor, ...]]]


class First(nn.Module):  # type: ignore[misc]
    """The first output of a model of transformers."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=False)[0]


def images(channels: int = 3, size: int = 32) -> Callable[[int], tuple[torch.Tensor, ...]]:
    return lambda n: (torch.randn(n, channels, size, size),)


def tokens(length: int = 11) -> Callable[[int], tuple[torch.Tensor, ...]]:
    return lambda n: (torch.randint(1, 90, (n, length)),)


def vit() -> Made:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32,
        patch_size=8, num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return First(ViTForImageClassification(config), "pixel_values"), images()


def bert() -> Made:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=40, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip

    def inputs(n: int) -> tuple[torch.Tensor, ...]:
        ids = torch.randint(1, 90, (n, 11))
        mask = (torch.arange(11) < torch.randint(4, 12, (n, 1))).long()
        return ids, mask

    return First(BertForSequenceClassification(config), "input_ids", "attention_mask"), inputs


def gpt2() -> Made:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=100, n_positions=40, n_embd=32, n_layer=2, n_head=4, use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip

    def inputs(n: int) -> tuple[torch.Tensor, ...]:
        return torch.randint(1, 90, (n, 11)), torch.ones(n, 11, dtype=torch.long)

    return First(GPT2LMHeadModel(config), "input_ids", "attention_mask"), inputs


def t5_encoder() -> Made:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return First(T5EncoderModel(config), "input_ids"), tokens()


def whisper_encoder() -> Made:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64, num_mel_bins=16,
        max_source_positions=20, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
        encoder_layerdrop=0.0,
    )  # fmt: skip
    return First(WhisperEncoder(config), "input_features"), lambda n: (torch.randn(n, 16, 40),)


def swin() -> Made:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4,
        num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, drop_path_rate=0.0,
    )  # fmt: skip
    return First(SwinForImageClassification(config), "pixel_values"), images()


def efficientnet() -> Made:
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        image_size=32, width_coefficient=0.5, depth_coefficient=0.3, hidden_dim=640, num_labels=5,
        dropout_rate=0.0, drop_connect_rate=0.0,
    )  # fmt: skip
    return First(EfficientNetForImageClassification(config), "pixel_values"), images(size=64)


def convnext() -> Made:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(
        hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 2, 1], image_size=64, num_labels=5, drop_path_rate=0.0
    )
    return First(ConvNextForImageClassification(config), "pixel_values"), images(size=64)


def timm_model(name: str, size: int = 64, **options: Any) -> Callable[[], Made]:
    def make() -> Made:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=5, **options), images(size=size)

    return make


def unet() -> Made:
    def block(a: int, b: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())

    class UNet(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.down1, self.down2, self.middle = block(3, 8), block(8, 16), block(16, 32)
            self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
            self.join2, self.join1, self.head = block(32, 16), block(16, 8), nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a = self.down1(x)
            b = self.down2(nn.functional.max_pool2d(a, 2))
            c = self.up2(self.middle(nn.functional.max_pool2d(b, 2)))
            rows, columns = b.shape[2] - c.shape[2], b.shape[3] - c.shape[3]
            c = nn.functional.pad(c, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
            d = self.up1(self.join2(torch.cat([b, c], 1)))
            return self.head(self.join1(torch.cat([a, d], 1)))

    return UNet(), images()


class Recurrent(nn.Module):  # type: ignore[misc]
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embed, self.cell = nn.Embedding(100, 12), kind(12, 10, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(20, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(self.embed(ids))[0][:, -1])


class Tcn(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(6, 6, 3, padding=2 * 2**i, dilation=2**i) for i in range(3))
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            y = conv(x)
            x = x + torch.relu(y[:, :, : x.shape[2]])
        return self.head(x.mean(2))


class Graph(nn.Module):  # type: ignore[misc]
    """Messages along edges, added up by scatter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.second):
            messages = layer(nodes)[edges[0]]
            target = edges[1].unsqueeze(1).expand_as(messages)
            nodes = torch.tanh(
                torch.zeros(nodes.shape[0], messages.shape[1]).scatter_add(0, target, messages)
            )
        return nodes


def graph() -> Made:
    return Graph(), lambda n: (torch.randn(4 * n, 5), torch.randint(0, 4 * n, (2, 9 * n)))


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
    "densenet": timm_model("densenet121", growth_rate=8, block_config=(2, 2, 2, 2)),
    "regnet": timm_model("regnetx_002"),
    "resnet": timm_model("resnet10t"),
    "timm_vit": timm_model("vit_tiny_patch16_224", img_size=64, embed_dim=48, depth=2),
    "timm_swin": timm_model("swin_tiny_patch4_window7_224", img_size=56, embed_dim=24, depths=(2, 2, 2, 2)),
    "unet": unet,
    "gru": lambda: (Recurrent(nn.GRU), tokens()),
    "lstm": lambda: (Recurrent(nn.LSTM), tokens()),
    "tcn": lambda: (Tcn(), lambda n: (torch.randn(n, 6, 17),)),
    "gnn": graph,
}


def main(architecture: str, exporter: str, folder: Path) -> None:
    torch.manual_seed(0)
    model, draw = ARCHITECTURES[architecture]()
    if architecture == "timm_swin":
        draw = images(size=56)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.train()
    example, batch = draw(2), draw(BATCH)
    names = [f"input{i}" for i in range(len(batch))]
    export(copy.deepcopy(model), example, names, exporter, architecture == "gnn", folder / "model.onnx")
    exact = copy.deepcopy(model).double()
    given = [x.double() if x.is_floating_point() else x for x in batch]
    if architecture == "gnn":
        torch.set_default_dtype(torch.float64)
    output = exact(*given)
    target = torch.from_numpy(np.random.default_rng(0).standard_normal(tuple(output.shape)))
    ((output - target) ** 2).mean().backward()
    np.savez(folder / "inputs.npz", **{n: x.numpy() for n, x in zip(names, batch, strict=True)})
    np.savez(folder / "outputs.npz", output=output.detach().numpy(), target=target.numpy())
    found = {n: p.grad.numpy() for n, p in exact.named_parameters() if p.grad is not None}
    np.savez(folder / "gradients.npz", **found)


def export(
    model: nn.Module,
    example: tuple[torch.Tensor, ...],
    names: list[str],
    exporter: str,
    graph: bool,
    path: Path,
) -> None:
    common: dict[str, Any] = {
        "input_names": names, "output_names": ["output"], "training": torch.onnx.TrainingMode.TRAINING,
        "do_constant_folding": False,
    }  # fmt: skip
    if exporter == "script":
        axes = {n: {0: "N"} for n in [*names, "output"]}
        if graph:
            axes = {names[0]: {0: "N"}, names[1]: {1: "E"}, "output": {0: "N"}}
        torch.onnx.export(
            model, example, str(path), dynamo=False, opset_version=17, dynamic_axes=axes, **common
        )
        return
    n = torch.export.Dim("N", min=2, max=4096)
    shapes: tuple[Any, ...] = tuple({0: n} for _ in names)
    if graph:
        shapes = ({0: n}, {1: torch.export.Dim("E", min=2, max=4096)})
    torch.onnx.export(
        model, example, str(path), dynamo=True, opset_version=18, dynamic_shapes=(shapes,)
        if any(p.kind == p.VAR_POSITIONAL for p in _parameters(model)) else shapes,
        external_data=False, optimize=False, **common,
    )  # fmt: skip


def _parameters(model: nn.Module) -> list[Any]:
    import inspect

    return list(inspect.signature(model.forward).parameters.values())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
