"""What transformers and timm call the layers of our networks in their files of weights."""

from experiments.models.efficientnet import STAGES
from experiments.models.swin import DEPTHS

Names = dict[str, tuple[str, ...]]
"""For each layer of ours its name in the file, or the names of several whose outputs together are those of ours."""


def namings(model: str) -> dict[str, Names]:
    """The known namings of this network; empty for a network that no weights are published for."""
    if model == "efficientnet_b0":
        return {"transformers": _efficientnet_transformers(), "timm": _efficientnet_timm()}
    if model == "swin_t":
        return {
            "transformers": _swin_transformers(),
            "timm": _swin_timm("head.fc", first_merge=1),
            "timm before 0.9 and Microsoft": _swin_timm("head", first_merge=0),
        }
    return {}


def _under(ours: str, theirs: str, names: Names) -> Names:
    """These names, inside a module of ours and the module of theirs that is the same."""
    return {f"{ours}.{name}": tuple(f"{theirs}.{other}" for other in others) for name, others in names.items()}


def _efficientnet_transformers() -> Names:
    block: Names = {
        "expand.conv": ("expansion.expand_conv",),
        "expand.norm": ("expansion.expand_bn",),
        "depthwise.conv": ("depthwise_conv.depthwise_conv",),
        "depthwise.norm": ("depthwise_conv.depthwise_norm",),
        "excite.reduce": ("squeeze_excite.reduce",),
        "excite.expand": ("squeeze_excite.expand",),
        "project.conv": ("projection.project_conv",),
        "project.norm": ("projection.project_bn",),
    }
    names: Names = {
        "stem.conv": ("efficientnet.embeddings.convolution",),
        "stem.norm": ("efficientnet.embeddings.batchnorm",),
        "top.conv": ("efficientnet.encoder.top_conv",),
        "top.norm": ("efficientnet.encoder.top_bn",),
        "classifier": ("classifier",),
    }
    for i in range(sum(stage.blocks for stage in STAGES)):
        names |= _under(f"blocks.{i}", f"efficientnet.encoder.blocks.{i}", block)
    return names


def _efficientnet_timm() -> Names:
    excite: Names = {"excite.reduce": ("se.conv_reduce",), "excite.expand": ("se.conv_expand",)}
    expanding: Names = excite | {
        "expand.conv": ("conv_pw",),
        "expand.norm": ("bn1",),
        "depthwise.conv": ("conv_dw",),
        "depthwise.norm": ("bn2",),
        "project.conv": ("conv_pwl",),
        "project.norm": ("bn3",),
    }
    not_expanding: Names = excite | {
        "depthwise.conv": ("conv_dw",),
        "depthwise.norm": ("bn1",),
        "project.conv": ("conv_pw",),
        "project.norm": ("bn2",),
    }
    names: Names = {
        "stem.conv": ("conv_stem",),
        "stem.norm": ("bn1",),
        "top.conv": ("conv_head",),
        "top.norm": ("bn2",),
        "classifier": ("classifier",),
    }
    places = [(s, i, stage) for s, stage in enumerate(STAGES) for i in range(stage.blocks)]
    for n, (s, i, stage) in enumerate(places):
        block = expanding if stage.expansion > 1 else not_expanding
        names |= _under(f"blocks.{n}", f"blocks.{s}.{i}", block)
    return names


def _swin_transformers() -> Names:
    block: Names = {
        "norm1": ("layernorm_before",),
        "attention": ("attention.self",),
        "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.out": ("attention.output.dense",),
        "norm2": ("layernorm_after",),
        "up": ("intermediate.dense",),
        "down": ("output.dense",),
    }
    names: Names = {
        "embed": ("swin.embeddings.patch_embeddings.projection",),
        "embed_norm": ("swin.embeddings.norm",),
        "norm": ("swin.layernorm",),
        "classifier": ("classifier",),
    }
    return names | _swin_stages("swin.encoder.layers", block, first_merge=0)


def _swin_timm(classifier: str, first_merge: int) -> Names:
    block: Names = {
        "norm1": ("norm1",),
        "attention": ("attn",),
        "attention.qkv": ("attn.qkv",),
        "attention.out": ("attn.proj",),
        "norm2": ("norm2",),
        "up": ("mlp.fc1",),
        "down": ("mlp.fc2",),
    }
    names: Names = {
        "embed": ("patch_embed.proj",),
        "embed_norm": ("patch_embed.norm",),
        "norm": ("norm",),
        "classifier": (classifier,),
    }
    return names | _swin_stages("layers", block, first_merge)


def _swin_stages(theirs: str, block: Names, first_merge: int) -> Names:
    """Blocks, and the mergings between stages, the first of which they count to stage ``first_merge``."""
    names: Names = {}
    for s, depth in enumerate(DEPTHS):
        for i in range(depth):
            names |= _under(f"stages.{s}.{i}", f"{theirs}.{s}.blocks.{i}", block)
    merge: Names = {"norm": ("norm",), "reduce": ("reduction",)}
    for s in range(len(DEPTHS) - 1):
        names |= _under(f"merges.{s}", f"{theirs}.{s + first_merge}.downsample", merge)
    return names
