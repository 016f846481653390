"""The networks of `compat`: architectures of other libraries, narrow or shallow, and a batch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Case = tuple[nn.Module, Any]  # a network and a batch

WORDS = 200
SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
}  # fmt: skip
TEXT = SMALL | {"vocab_size": WORDS, "max_position_embeddings": 64}
GROUPED = TEXT | {"num_key_value_heads": 2}
IMAGE = SMALL | {"image_size": 32, "patch_size": 8}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": WORDS, "n_positions": 64}
DISTIL = {
    "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": WORDS,
    "max_position_embeddings": 64,
}  # fmt: skip
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": WORDS}
WHISPER = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "vocab_size": WORDS, "num_mel_bins": 16, "max_source_positions": 32,
    "max_target_positions": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip
CLIP = {
    "text_config": TEXT | {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0},
    "vision_config": IMAGE, "projection_dim": 32,
}  # fmt: skip
WAV2VEC2 = SMALL | {
    "conv_dim": (32, 32, 32), "conv_stride": (5, 4, 4), "conv_kernel": (10, 8, 4),
    "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4, "vocab_size": 32,
}  # fmt: skip
Batch = dict[str, Tensor]


def words(*shape: int) -> Tensor:
    return torch.randint(3, WORDS, shape)


def images(size: int, number: int = 2) -> Tensor:
    return torch.randn(number, 3, size, size)


def vision(name: str, size: int = 64, **options: Any) -> Case:
    import torchvision

    return torchvision.models.get_model(name, weights=None, **options), images(size)


def convnext() -> Case:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    widths = [CNBlockConfig(32, 64, 1), CNBlockConfig(64, 128, 2), CNBlockConfig(128, None, 1)]
    return ConvNeXt(widths, num_classes=10), images(64)


def vision_transformer() -> Case:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=10), images(32)


def swin() -> Case:
    from torchvision.models import SwinTransformer

    made = SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=10)
    return made, images(64)


def timm_model(name: str, size: int, **options: Any) -> Case:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=10, **options), images(size)


def mixer() -> Case:
    from timm.models import MlpMixer

    made = MlpMixer(num_classes=10, img_size=64, patch_size=16, num_blocks=2, embed_dim=96)
    return made, images(64)


def hub(model: str, config: str, options: dict[str, Any], batch: Callable[[], Batch]) -> Case:
    import transformers

    made = getattr(transformers, config)(**options)
    return getattr(transformers, model)(made), batch()


def text() -> Batch:
    return {"input_ids": words(4, 12)}


def texts() -> Batch:
    return {"input_ids": words(4, 12), "decoder_input_ids": words(4, 6)}


def pictures() -> Batch:
    return {"pixel_values": images(32, 4)}


def captioned() -> Batch:
    return {"input_ids": words(4, 12), "pixel_values": images(32, 4)}


def spectra() -> Batch:
    return {"input_features": torch.randn(2, 16, 64), "decoder_input_ids": words(2, 6)}


def sound() -> Batch:
    return {"input_values": torch.randn(2, 4000)}


class Graphs(nn.Module):
    """Two layers of a kind on one graph."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.second(self.first(x, edges).relu(), edges)


def graph(kind: str) -> Case:
    from torch_geometric import nn as layers

    make = getattr(layers, kind)
    batch = ((torch.randn(40, 64), torch.randint(40, (2, 160))), None)
    return Graphs(make(64, 96), make(96, 16)), batch


def transformer() -> Case:
    made = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)
    return made, ((torch.randn(4, 9, 32), torch.randn(4, 7, 32)), None)


class LSTMLanguageModel(nn.Module):
    """An embedding, two LSTM layers and a head tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 48)
        self.lstm = nn.LSTM(48, 48, num_layers=2, batch_first=True)
        self.head = nn.Linear(48, WORDS)
        self.head.weight = self.embedding.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(index))[0])


NETWORKS: dict[str, Callable[[], Case]] = {
    "torchvision: MobileNetV3": partial(vision, "mobilenet_v3_small"),
    "torchvision: ConvNeXt": convnext,
    "torchvision: ViT": vision_transformer,
    "torchvision: Swin": swin,
    "timm: EfficientNet": partial(timm_model, "efficientnet_b0", 64),
    "timm: MobileViT": partial(timm_model, "mobilevit_xxs", 64),
    "timm: DeiT": partial(
        timm_model, "deit_tiny_patch16_224", 64, img_size=64, embed_dim=96, depth=2
    ),
    "timm: MLP-Mixer": mixer,
    "transformers: BERT": partial(hub, "BertForSequenceClassification", "BertConfig", TEXT, text),
    "transformers: RoBERTa": partial(hub, "RobertaForMaskedLM", "RobertaConfig", TEXT, text),
    "transformers: DistilBERT": partial(hub, "DistilBertModel", "DistilBertConfig", DISTIL, text),
    "transformers: T5": partial(hub, "T5ForConditionalGeneration", "T5Config", T5, texts),
    "transformers: GPT-2": partial(hub, "GPT2LMHeadModel", "GPT2Config", GPT2, text),
    "transformers: Llama": partial(hub, "LlamaForCausalLM", "LlamaConfig", GROUPED, text),
    "transformers: Qwen2": partial(hub, "Qwen2ForCausalLM", "Qwen2Config", GROUPED, text),
    "transformers: Mistral": partial(hub, "MistralForCausalLM", "MistralConfig", GROUPED, text),
    "transformers: ViT": partial(hub, "ViTForImageClassification", "ViTConfig", IMAGE, pictures),
    "transformers: Whisper": partial(
        hub, "WhisperForConditionalGeneration", "WhisperConfig", WHISPER, spectra
    ),
    "transformers: CLIP": partial(hub, "CLIPModel", "CLIPConfig", CLIP, captioned),
    "transformers: wav2vec2": partial(hub, "Wav2Vec2ForCTC", "Wav2Vec2Config", WAV2VEC2, sound),
    "torch_geometric: GCN": partial(graph, "GCNConv"),
    "torch_geometric: GAT": partial(graph, "GATConv"),
    "torch: nn.Transformer": transformer,
    "torch: LSTM language model": lambda: (LSTMLanguageModel(), words(4, 12)),
    # whole, and so the slowest by far: their moments are up to 4,608 wide
    "torchvision: ResNet-18": partial(vision, "resnet18"),
    "torchvision: ResNet-50": partial(vision, "resnet50"),
}
