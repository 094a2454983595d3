"""The text towers of CLIP and SigLIP: pre-norm blocks over tokens with learned positions.

Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020; Zhai et al., ICCV 2023,
https://arxiv.org/abs/2303.15343.
Reference code: mlfoundations/open_clip at 89fb801, src/open_clip/transformer.py.

Shapes: B sentences, L tokens, D width.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import get_act_layer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from sslzoo.batch import Tokens
from sslzoo.checks import check_at_least, check_choice, check_interval
from sslzoo.random import Keys

Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]
TextPool = Literal["end", "last"]


class TextTransformer(nn.Module):
    """A transformer of text whose features are those of one token, after the final norm.

    The defaults are CLIP's tower beside a ViT-B, without its projection. Names of parameters are
    timm's. Nothing is dropped.

    Args:
        num_ids: V, the size of the tokenizer's vocabulary.
        width: D.
        depth: number of blocks.
        heads: number of attention heads.
        max_length: largest number of tokens, including those of start and end.
        pool: "end": the sentence's last token, CLIP's token of the end; "last": the last position
            of a sentence that is padded to `max_length`, whose padding is attended, as in SigLIP.
        causal: whether a token attends to itself and those before it alone, as in CLIP.
        activation: "gelu"; "quick_gelu", that of OpenAI's weights; "gelu_tanh", SigLIP's in
            Hugging Face's form.
        eps: of the norms; 1e-5 in CLIP, 1e-6 in SigLIP.
        pad: id of the padding, which is read with `pool="last"`; 1 in SigLIP.
        hidden: hidden width of the MLPs; None: 4 D.

    Attributes:
        num_features: D.

    Raises:
        ValueError: `heads` does not divide `width`, or an option is unknown.
    """

    def __init__(
        self,
        num_ids: int = 49408,
        width: int = 512,
        depth: int = 12,
        heads: int = 8,
        max_length: int = 77,
        pool: TextPool = "end",
        causal: bool = True,
        activation: Activation = "gelu",
        eps: float = 1e-5,
        pad: int = 0,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        for name, number in (("num_ids", num_ids), ("depth", depth), ("max_length", max_length)):
            check_at_least(name, number, 1)
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide the width {width}, got {heads}")
        check_interval("pad", pad, 0, num_ids, "[)")
        check_choice("pool", pool, get_args(TextPool))
        check_choice("activation", activation, get_args(Activation))
        self.num_features, self.num_ids, self.max_length = width, num_ids, max_length
        self.pool, self.causal, self.pad = pool, causal, pad
        self.token_embedding = nn.Embedding(num_ids, width)
        self.pos_embed = nn.Parameter(torch.empty(max_length, width))
        norm: Any = partial(nn.LayerNorm, eps=eps)
        act: Any = get_act_layer(activation)
        ratio = (hidden or 4 * width) / width
        self.blocks = nn.ModuleList(
            Block(width, heads, ratio, qkv_bias=True, norm_layer=norm, act_layer=act)
            for _ in range(depth)
        )
        self.norm = norm(width)
        self._initialize(width, depth)

    def _initialize(self, width: int, depth: int) -> None:
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        out = width**-0.5 * (2 * depth) ** -0.5
        stds = {"qkv": width**-0.5, "fc1": (2 * width) ** -0.5, "proj": out, "fc2": out}
        for name, part in self.blocks.named_modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=stds[name.rpartition(".")[2]])
                if ".attn." in name:  # the MLPs' keep torch's, as in the code
                    nn.init.zeros_(part.bias)

    def forward_tokens(self, tokens: Tokens, keys: Keys | None = None) -> Tensor:
        """Features per token after the final norm, (B, L, D).

        With `pool="last"`, L is `max_length`.

        Raises:
            ValueError: the sentences are longer than `max_length`.
        """
        ids, length = tokens.ids, tokens.ids.shape[1]
        if length > self.max_length:
            raise ValueError(
                f"a text must have at most {self.max_length} tokens (max_length), got {length}"
            )
        mask = None
        if self.pool == "last":
            ids = F.pad(ids.masked_fill(~tokens.mask, self.pad), (0, self.max_length - length))
            ids[:, length:] = self.pad
        elif not self.causal:
            mask = tokens.mask[:, None, None]
        x = self.token_embedding(ids) + self.pos_embed[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, attn_mask=mask, is_causal=self.causal)
        return self.norm(x)

    def forward(self, tokens: Tokens, keys: Keys | None = None) -> Tensor:
        """Features (B, D); keys are not used, since nothing is drawn."""
        x = self.forward_tokens(tokens, keys)
        if self.pool == "last":
            return x[:, -1]
        last = tokens.lengths.clamp_min(1) - 1
        return x[torch.arange(len(x), device=x.device), last]
