"""Text backbones: padding is not seen, dropout follows keys, weights are tied."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.backbones import (
    KeyedDropout,
    SentenceConv,
    SentenceSequence,
    SmallTransformer,
    hf_encoder,
)
from sslzoo.batch import Tokens
from sslzoo.heads import MLMHead, Recurrent
from sslzoo.random import Keys, sample_keys


def net(pooling: str = "cls", dropout: float = 0.1) -> SmallTransformer:
    torch.manual_seed(0)
    return SmallTransformer(  # type: ignore[arg-type]
        30, width=16, depth=2, heads=2, max_length=12, dropout=dropout, pooling=pooling
    ).double()


def text(length: int = 12) -> Tokens:
    ids = torch.randint(30, (5, 12), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([1, 3, 7, 8, 2])
    return Tokens(ids[:, :length], lengths)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_is_not_seen(pooling: str) -> None:
    backbone, tokens = net(pooling).eval(), text()
    features = backbone(tokens)
    beyond = torch.arange(12) >= tokens.lengths[:, None]
    other = tokens._replace(ids=torch.where(beyond, 29 - tokens.ids, tokens.ids))
    torch.testing.assert_close(backbone(other), features)
    torch.testing.assert_close(backbone(text(8)), features)
    for row in range(5):
        one = Tokens(tokens.ids[row : row + 1], tokens.lengths[row : row + 1])
        torch.testing.assert_close(backbone(one), features[row : row + 1])


def test_words_and_their_order_matter() -> None:
    backbone = net().eval()
    ids = torch.tensor([[2, 7, 8, 3], [2, 8, 7, 3], [2, 7, 9, 3]])
    a, b, c = backbone(Tokens(ids, torch.full((3,), 4)))
    assert not torch.allclose(a, b)
    assert not torch.allclose(a, c)


def slow_block(block, x: Tensor, n: int) -> Tensor:
    """One sentence, (n, D): attention head by head, written out."""
    y = F.layer_norm(x, x.shape[1:], block.norm1.weight, block.norm1.bias)
    q, k, v = (y @ part.T for part in block.qkv.weight.chunk(3))
    side = x.shape[1] // block.heads
    heads = []
    for h in range(block.heads):
        part = slice(h * side, (h + 1) * side)
        weight = (q[:n, part] @ k[:n, part].T / side**0.5).softmax(1)
        heads.append(weight @ v[:n, part])
    x = x + block.out(torch.cat(heads, 1))
    return x + block.mlp(F.layer_norm(x, x.shape[1:], block.norm2.weight, block.norm2.bias))


def test_equals_the_attention_written_out() -> None:
    backbone, tokens = net().eval(), text()
    got = backbone.forward_tokens(tokens)
    for row, n in enumerate(tokens.lengths.tolist()):
        ids = tokens.ids[row, :n]
        x = backbone.norm_in(backbone.token_embedding.weight[ids] + backbone.place_embedding[:n])
        for block in backbone.blocks:
            x = slow_block(block, x, n)
        torch.testing.assert_close(got[row, :n], backbone.norm(x))


def test_post_norm_equals_torchs_encoder_layer() -> None:
    """Also the outputs of the MLPs before the residual, of blocks with other weights."""
    torch.manual_seed(0)
    backbone = SmallTransformer(30, width=16, depth=2, heads=2, max_length=12, norm_first=False)
    teacher, tokens = copy.deepcopy(backbone.blocks), text()
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    backbone.double().eval(), teacher.double().eval()
    real, fed = tokens.mask, backbone.forward_fed(tokens, teacher)
    ours, theirs = (backbone.embed(tokens) for _ in range(2))
    for own, copied, got in zip(backbone.blocks, teacher, fed, strict=True):
        ours = torch_layer(own)(ours, src_key_padding_mask=~real)
        layer = torch_layer(copied)
        between = layer.norm1(theirs + layer._sa_block(theirs, None, ~real))
        torch.testing.assert_close(got[real], layer._ff_block(between)[real])
        theirs = layer(theirs, src_key_padding_mask=~real)
    torch.testing.assert_close(backbone.forward_tokens(tokens)[real], ours[real])


def torch_layer(block) -> torch.nn.TransformerEncoderLayer:
    layer = torch.nn.TransformerEncoderLayer(16, 2, 64, activation="gelu", batch_first=True)
    layer = layer.double()  # not `eval`: its fast path is not exact
    for dropout in (layer.dropout, layer.dropout1, layer.dropout2):
        dropout.p = 0.0
    layer.self_attn.dropout = 0.0
    layer.self_attn.in_proj_weight.data = block.qkv.weight.data
    layer.self_attn.in_proj_bias.data.zero_()
    pairs = [(layer.self_attn.out_proj, block.out), (layer.linear1, block.mlp[0])]
    pairs += [(layer.linear2, block.mlp[2]), (layer.norm1, block.norm1)]
    for theirs, own in [*pairs, (layer.norm2, block.norm2)]:
        theirs.load_state_dict(own.state_dict())
    return layer


def test_dropout_follows_the_key_alone() -> None:
    backbone, tokens = net().train(), text()
    keys = sample_keys(0, 0, torch.arange(5))
    features = backbone(tokens, keys)
    assert torch.equal(backbone(tokens, keys), features)
    assert not torch.allclose(backbone(tokens, keys.fold("other")), features)
    short = backbone(text(8), keys)
    torch.testing.assert_close(short, features)
    part = Tokens(tokens.ids[2:], tokens.lengths[2:])
    torch.testing.assert_close(backbone(part, Keys(keys.key[2:])), features[2:])
    backbone.eval()
    assert torch.equal(backbone(tokens, keys), backbone(tokens))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_keeps_its_share_and_the_mean(p: float) -> None:
    dropout = KeyedDropout(p, "test")
    out = dropout(torch.ones(64, 20, 30), sample_keys(0, 0, torch.arange(64)))
    kept = out != 0
    torch.testing.assert_close(kept.float().mean().item(), 1 - p, rtol=0, atol=0.01)
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / (1 - p)))
    for channel in range(4):  # of the four in one draw
        share = kept[:, :, channel].float().mean().item()
        assert share == pytest.approx(1 - p, abs=0.05)
    both = (kept[:, :, 0] & kept[:, :, 1]).float().mean().item()
    assert both == pytest.approx((1 - p) ** 2, abs=0.05)
    assert not torch.equal(dropout(torch.ones(64, 20, 30), None), out)  # torch's


def test_head_is_tied_to_the_embedding() -> None:
    backbone, head = net(), MLMHead(16, 30)
    head.tie(backbone.token_embedding)
    assert head.decoder.weight is backbone.token_embedding.weight
    with pytest.raises(ValueError, match=r"num_ids=31 and in_features=16 must .* got \(30, 16\)"):
        MLMHead(16, 31).tie(backbone.token_embedding)


def test_errors_name_what_they_got() -> None:
    with pytest.raises(ValueError, match="width 10, got 4"):
        SmallTransformer(30, width=10)
    with pytest.raises(ValueError, match="got 'max'"):
        SmallTransformer(30, pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"at most 12 tokens .* got 13"):
        net()(Tokens(torch.zeros(1, 13, dtype=torch.int64), torch.tensor([13])))
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1"):
        KeyedDropout(1.0, "test")


@pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="it is there")
def test_a_missing_package_is_named() -> None:
    with pytest.raises(ValueError, match=r"pip install 'sslzoo\[hf\]'"):
        hf_encoder("bert-base-uncased")


def test_hugging_face_encoder_is_a_text_backbone(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=29, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    config.save_pretrained(tmp_path)
    backbone = hf_encoder(str(tmp_path), num_ids=30, pretrained=False)
    assert (backbone.num_features, backbone.num_ids) == (16, 30)
    assert backbone(text()).shape == (5, 16)
    assert backbone.forward_tokens(text()).shape == (5, 12, 16)
    transformers.BertModel(config).save_pretrained(tmp_path)
    pretrained = hf_encoder(str(tmp_path))
    assert all(module.training for module in pretrained.modules())  # with dropout, as SimCSE needs


def test_a_sentence_is_the_mean_of_its_own_convolution() -> None:
    torch.manual_seed(0)
    backbone, tokens = SentenceConv(30, width=6, embedding_dim=5).double(), text()
    features = backbone(tokens)
    for row, length in enumerate(tokens.lengths.tolist()):
        words = backbone.token_embedding(tokens.ids[row, :length])
        padded = F.pad(words, (0, 0, 1, 1))
        one = [
            backbone.conv.weight.flatten(1) @ padded[i : i + 3].T.flatten() + backbone.conv.bias
            for i in range(length)
        ]
        torch.testing.assert_close(features[row], torch.stack(one).relu().mean(0))
    with pytest.raises(ValueError, match="kernel must be odd and at least 1, got 2"):
        SentenceConv(30, kernel=2)


def test_contexts_are_of_the_sentences_so_far() -> None:
    torch.manual_seed(0)
    backbone = SentenceSequence(SentenceConv(30, 6, 5), Recurrent(6, 4)).double()
    ids = torch.randint(30, (2, 4, 7))
    lengths = torch.tensor([[3, 7, 0, 2], [5, 1, 6, 7]])
    z, c = backbone.forward_parts(Tokens(ids, lengths))
    assert z.shape == (2, 4, 6)
    assert c.shape == (2, 4, 4)
    torch.testing.assert_close(z[:, 1], backbone(Tokens(ids[:, 1], lengths[:, 1])))
    torch.testing.assert_close(backbone(Tokens(ids, lengths)), z.mean(1))
    ids[:, 2] = 29 - ids[:, 2]
    later = backbone.forward_parts(Tokens(ids, lengths))[1]
    torch.testing.assert_close(later[:, :2], c[:, :2])
    assert not torch.isclose(later[1, 2:], c[1, 2:]).any()
    with pytest.raises(ValueError, match=r"\(2, 7\); set `window` of the data module"):
        backbone.forward_parts(Tokens(ids[:, 0], lengths[:, 0]))
    with pytest.raises(ValueError, match="the context must have in_features 6"):
        SentenceSequence(SentenceConv(30, 6, 5), Recurrent(5, 4))
