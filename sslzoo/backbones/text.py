"""Text backbones: a small Transformer, CPC's convolution, and Hugging Face encoders by name.

A text backbone is an nn.Module with `num_features`, `num_ids` (the size of its vocabulary), and
`forward(tokens, keys=None) -> (B, num_features)`. For a masked language model it also has
`forward_tokens(tokens, keys=None) -> (B, L, num_features)` and `token_embedding`, an nn.Embedding.
`keys` are B keys, one per sentence, for `KeyedDropout`.

Shapes: B sentences, L tokens, D width.
"""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslzoo.backbones.hf_models import load_hf
from sslzoo.backbones.sequence import check_context
from sslzoo.batch import Tokens
from sslzoo.checks import check_at_least, check_choice, check_interval
from sslzoo.random import Keys
from sslzoo.trust.hub_cache import folder_on_disk

Pooling = Literal["cls", "mean"]
_POSITIONS = "position_embeddings", "position_embedding", "wpe"  # tables of learned positions


class KeyedDropout(nn.Module):
    """Dropout whose mask is a function of the sentence's key, the position and the channel.

    So it does not depend on the batch, the padding or the number of ranks. Without keys it is
    torch's dropout. Each 64-bit draw gives four mask values, so p is rounded to 1 / 65536.

    Args:
        p: probability of setting a value to 0.
        purpose: purpose of the draw, unique per dropout of a network.
    """

    def __init__(self, p: float, purpose: str) -> None:
        super().__init__()
        check_interval("p", p, 0, 1, "[)")
        self.p, self.purpose = p, purpose

    def forward(self, x: Tensor, keys: Keys | None) -> Tensor:
        """Drop values of x (B, L, D), with B keys."""
        if keys is None or not self.training or self.p == 0:
            return F.dropout(x, self.p, self.training)
        _, length, width = x.shape
        draws = keys.bits(self.purpose, length, -(-width // 4)).view(torch.int16)
        keep = draws[:, :, :width] >= round(self.p * 65536) - 32768
        return x * keep * (1 / (1 - self.p))


class _Block(nn.Module):
    """Attention, then an MLP; each with a norm before it, or after its residual sum."""

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float, norm_first: bool, name: str
    ) -> None:
        super().__init__()
        self.heads, self.norm_first = heads, norm_first
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        # Without biases: the softmax cancels the keys' bias, whose gradient is rounding noise.
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout1 = KeyedDropout(dropout, f"{name}, attention")
        self.dropout2 = KeyedDropout(dropout, f"{name}, MLP")

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, heads, L, D/heads)
        return self.out(attended.transpose(1, 2).flatten(2))

    def forward(
        self, x: Tensor, mask: Tensor, keys: Keys | None, with_fed: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The block's output and, if asked, that of its MLP before the residual."""
        if self.norm_first:
            x = x + self.dropout1(self.attend(self.norm1(x), mask), keys)
            fed = self.mlp(self.norm2(x))
            return x + self.dropout2(fed, keys), fed if with_fed else None
        x = self.norm1(x + self.dropout1(self.attend(x, mask), keys))
        fed = self.mlp(x)
        return self.norm2(x + self.dropout2(fed, keys)), fed if with_fed else None


class SmallTransformer(nn.Module):
    """A Transformer encoder that trains in minutes on a CPU; 4.3 M parameters by default.

    By default it is pre-norm with a final norm, which trains without warm-up (Xiong et al., ICML
    2020, https://arxiv.org/abs/2002.04745). Initial weights are N(0, 0.02), as in BERT. Dropout is
    on the embeddings and on each residual branch, but not on the attention weights as in BERT.
    Dropout is keyed, which `torch.nn.TransformerEncoder` cannot do.

    Args:
        num_ids: V, the size of the tokenizer's vocabulary.
        width: D.
        depth: number of blocks.
        heads: number of attention heads.
        hidden: hidden width of the MLPs; None: 4 D.
        max_length: largest number of tokens, including [CLS] and [SEP].
        dropout: dropout probability; 0.1 in BERT.
        pooling: features are the first token ("cls") or the mean over the sentence ("mean").
        norm_first: pre-norm, or BERT's post-norm without a final norm.
    """

    def __init__(
        self,
        num_ids: int,
        width: int = 256,
        depth: int = 3,
        heads: int = 4,
        hidden: int | None = None,
        max_length: int = 64,
        dropout: float = 0.1,
        pooling: Pooling = "cls",
        norm_first: bool = True,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide the width {width}, got {heads}")
        check_choice("pooling", pooling, get_args(Pooling))
        self.pooling = pooling
        self.num_features, self.num_ids, self.max_length = width, num_ids, max_length
        self.token_embedding = nn.Embedding(num_ids, width)
        self.place_embedding = nn.Parameter(torch.empty(max_length, width))
        self.norm_in = nn.LayerNorm(width)
        self.dropout = KeyedDropout(dropout, "embedding")
        sizes = width, heads, hidden or 4 * width, dropout, norm_first
        self.blocks = nn.ModuleList(_Block(*sizes, f"{i}") for i in range(depth))
        self.norm = nn.LayerNorm(width) if norm_first else nn.Identity()
        nn.init.normal_(self.place_embedding, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def embed(self, tokens: Tokens) -> Tensor:
        """Normalized sums of embeddings and positions, before dropout. (B, L, D)."""
        length = tokens.ids.shape[1]
        if length > self.max_length:
            raise ValueError(
                f"a view must have at most {self.max_length} tokens (max_length), got {length}"
            )
        return self.norm_in(self.token_embedding(tokens.ids) + self.place_embedding[:length])

    def forward_tokens(self, tokens: Tokens, keys: Keys | None = None) -> Tensor:
        """Features per token, (B, L, D)."""
        x, mask = self.dropout(self.embed(tokens), keys), tokens.mask[:, None, None]
        for block in self.blocks:
            x, _ = block(x, mask, keys)
        return self.norm(x)

    def forward_fed(self, tokens: Tokens, blocks: nn.ModuleList) -> list[Tensor]:
        """Outputs of the MLPs of `blocks` before their residual, for data2vec's teacher.

        Args:
            tokens: B sentences.
            blocks: a copy of this encoder's blocks, without dropout; embeddings and positions are
                this encoder's.

        Returns:
            One tensor (B, L, D) per block.
        """
        x, mask, outputs = self.embed(tokens), tokens.mask[:, None, None], []
        for block in blocks:
            x, fed = block(x, mask, None, with_fed=True)
            outputs.append(fed)
        return outputs

    def forward(self, tokens: Tokens, keys: Keys | None = None) -> Tensor:
        return _pool(self.forward_tokens(tokens, keys), tokens, self.pooling)


class SentenceConv(nn.Module):
    """CPC's sentence encoder: one convolution over word embeddings, ReLU, mean over the sentence.

    Van den Oord, Li and Vinyals, 2018, https://arxiv.org/abs/1807.03748, section 3.3. The mean is
    over the sentence's tokens alone, so padding changes nothing.

    Args:
        num_ids: V, the size of the tokenizer's vocabulary.
        width: D; 2400 in the paper.
        embedding_dim: width of a token's embedding; 620 is that of Skip-Thoughts, whose protocol
            the paper follows.
        kernel: size of the convolution, odd; not known of the paper.
    """

    def __init__(
        self, num_ids: int, width: int = 2400, embedding_dim: int = 620, kernel: int = 3
    ) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and at least 1, got {kernel}")
        self.num_features, self.num_ids = width, num_ids
        self.token_embedding = nn.Embedding(num_ids, embedding_dim)
        self.conv = nn.Conv1d(embedding_dim, width, kernel, padding=kernel // 2)

    def forward(self, tokens: Tokens, keys: Keys | None = None) -> Tensor:
        """Encode ids (B, L) to (B, D); keys are not used, since nothing is drawn."""
        mask = tokens.mask[:, None]  # (B, 1, L)
        x = self.token_embedding(tokens.ids).transpose(1, 2) * mask
        return _pool((self.conv(x).relu() * mask).transpose(1, 2), tokens, "mean")


class SentenceSequence(nn.Module):
    """An encoder of sentences, and a context network over consecutive ones, for `methods.CPC`.

    The features are those of one sentence without its context, as CPC's paper evaluates them.

    Args:
        encoder: sentences (B, L) -> (B, D), with `num_features`, `num_ids` and `token_embedding`
            (`SentenceConv`, `SmallTransformer`, `hf_encoder`).
        context: causal network (B, S, D) -> (B, S, D'), with `in_features` and `out_features`
            (`heads.Recurrent`).

    Attributes:
        num_features: D.
        frame_features: D.
        context_features: D'.

    Raises:
        ValueError: the widths do not fit.
    """

    def __init__(self, encoder: nn.Module, context: nn.Module) -> None:
        super().__init__()
        width, gives = check_context(encoder, context)
        self.encoder, self.context = encoder, context
        self.num_features = self.frame_features = width
        self.context_features = gives
        self.num_ids = int(cast(Any, encoder).num_ids)

    @property
    def token_embedding(self) -> nn.Embedding:
        """The encoder's embedding (V, E)."""
        return cast(Any, self.encoder).token_embedding

    def forward_parts(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Sentences z (B, S, D) and contexts c (B, S, D') of ids (B, S, L)."""
        if tokens.ids.ndim != 3:
            raise ValueError(
                "the view must be consecutive sentences, ids (B, S, L), got "
                f"{tuple(tokens.ids.shape)}; set `window` of the data module, such as "
                "TextLines(window=8)"
            )
        z = self.encoder(Tokens(tokens.ids.flatten(0, 1), tokens.lengths.flatten()))
        z = z.unflatten(0, tokens.lengths.shape)
        return z, self.context(z)

    def forward(self, tokens: Tokens, keys: Keys | None = None) -> Tensor:
        """Features (B, D) of ids (B, L), or the mean over the sentences of ids (B, S, L)."""
        if tokens.ids.ndim == 3:
            return self.forward_parts(tokens)[0].mean(1)
        return self.encoder(tokens, keys)


class HFEncoder(nn.Module):
    """A Hugging Face encoder as a text backbone; its dropout is torch's, not keyed.

    Args:
        model: a model whose output has `last_hidden_state`.
        pooling: features are the first token ("cls") or the mean over the sentence ("mean").

    Attributes:
        num_features: D.
        max_length: largest number of tokens, or None if the positions set no bound.
    """

    def __init__(self, model: nn.Module, pooling: Pooling = "cls") -> None:
        super().__init__()
        check_choice("pooling", pooling, get_args(Pooling))
        self.pooling = pooling
        self.model: Any = model
        self.num_features: int = cast(Any, model).config.hidden_size
        self.max_length: int | None = None
        for name, part in model.named_modules():
            if isinstance(part, nn.Embedding) and name.rpartition(".")[2] in _POSITIONS:
                first = 0 if part.padding_idx is None else part.padding_idx + 1  # as in RoBERTa
                self.max_length = part.num_embeddings - first

    @property
    def token_embedding(self) -> nn.Embedding:
        """The embedding (V, D), tied to the masked language model's output layer."""
        return self.model.get_input_embeddings()

    @property
    def num_ids(self) -> int:
        """V, the size of the vocabulary."""
        return self.token_embedding.num_embeddings

    def forward_tokens(self, tokens: Tokens, keys: Keys | None = None) -> Tensor:
        """Features per token, (B, L, D)."""
        mask = tokens.mask
        return self.model(input_ids=tokens.ids, attention_mask=mask.long()).last_hidden_state

    def forward_layers(self, tokens: Tokens) -> tuple[list[Tensor], Tensor]:
        """The embeddings and each layer's output (B, L, D), and the number of tokens (B,)."""
        mask = tokens.mask
        found = self.model(
            input_ids=tokens.ids, attention_mask=mask.long(), output_hidden_states=True
        )
        return list(found.hidden_states), mask.sum(1)

    def forward(self, tokens: Tokens, keys: Keys | None = None) -> Tensor:
        return _pool(self.forward_tokens(tokens, keys), tokens, self.pooling)


def hf_encoder(
    name: str,
    num_ids: int | None = None,
    pooling: Pooling = "cls",
    pretrained: bool = True,
    local_files_only: bool = False,
) -> nn.Module:
    """A Hugging Face text encoder by name, without its pooler; `hf` takes any encoder.

    Args:
        name: a name such as "bert-base-uncased" or "roberta-base", or a folder.
        num_ids: number of rows to which the embedding is resized (30,523 for bert-base-uncased,
            since `HFTokenizer` adds [DEL]); None: no resize.
        pooling: see `HFEncoder`.
        pretrained: whether to load the weights; otherwise only the configuration is loaded.
        local_files_only: use local files only, without a download.

    Raises:
        ValueError: transformers is not installed, or the repository needs code of its own.
        OSError: the encoder does not exist, is not on this machine, or has no weights in
            safetensors.
    """
    model = load_hf(folder_on_disk(name) if local_files_only else name, pretrained)
    return text_encoder(model, num_ids, pooling, pretrained)


def text_encoder(model: Any, num_ids: int | None, pooling: Pooling, pretrained: bool) -> HFEncoder:
    """A model of transformers as a backbone; for the arguments see `hf_encoder`.

    Raises:
        ValueError: the features would be the same for every text.
    """
    if num_ids is not None:
        check_at_least("num_ids", num_ids, 1)
        model.resize_token_embeddings(num_ids)
    encoder = HFEncoder(model, pooling)
    if pretrained and pooling == "cls" and _is_causal(encoder):
        raise ValueError(
            f"pooling must be 'mean' for {type(model).__name__}, whose first token attends to no "
            "other, so that 'cls' would give every text the same features"
        )
    return encoder


@torch.no_grad()
def _is_causal(encoder: HFEncoder) -> bool:
    """Whether the first token's features depend on it alone."""
    n = encoder.num_ids
    spread = torch.arange(1, 9) * n // 20
    rows = [(n - 1, spread), (n - 1, spread + n // 2), (n // 2, spread)]
    ids = torch.stack([torch.cat([torch.tensor([first]), rest]) for first, rest in rows])
    encoder.eval()
    one, other_rest, other_first = encoder(Tokens(ids, torch.full((3,), ids.shape[1])))
    encoder.train()
    by_rest, by_first = ((one - other).abs().max() for other in (other_rest, other_first))
    return bool(by_rest < 1e-4 * by_first)  # rows of a batch may be rounded differently


def _pool(x: Tensor, tokens: Tokens, pooling: Pooling) -> Tensor:
    """Pool (B, L, D) to (B, D)."""
    if pooling == "cls":
        return x[:, 0]
    mask = tokens.mask[:, :, None]
    return (x * mask).sum(1) / mask.sum(1)
