"""wav2vec 2.0: forward and backward of pre-training on the same waveforms, without dropout.

Both sides have frames of 20 ms, spans of 10 frames that mask about half of the utterance, 100
negatives and two codebooks of 320. Ours draws masks and negatives in each call; transformers wants
them from its caller, who gets no time for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.rounds import Rounds

CONVS, ENTRIES, NEGATIVES, SPAN, FRACTION = 7, 320, 100, 10, 0.65


def _run(
    rounds: Rounds, net: nn.Module, step: Callable[[Tensor], tuple[Tensor, Tensor]], **given: Any
) -> None:
    """Rounds of `step`, of waveforms to the whole loss and the contrastive term of one frame."""
    draw = torch.Generator().manual_seed(0)
    waves = torch.randn(given["batch"], given["samples"], generator=draw).to(given["device"])
    count = sum(p.numel() for p in net.parameters())
    step(waves)[0].backward()
    net.zero_grad(set_to_none=True)

    def work() -> dict[str, Any]:
        loss, contrastive = step(waves)
        loss.backward()
        net.zero_grad(set_to_none=True)
        if rounds.number:
            return {}
        return {"loss": contrastive.item(), "parameters": count}

    rounds.repeat(work, given["batch"])


def ours(
    rounds: Rounds, batch: int, samples: int, width: int, depth: int, device: str = "cpu"
) -> None:
    from sslzoo.backbones import ConvFrames, SpeechEncoder, SpeechTransformer
    from sslzoo.batch import Batch
    from sslzoo.heads import GumbelQuantizer
    from sslzoo.masks import SpanMasks
    from sslzoo.methods import Wav2Vec2

    transformer = SpeechTransformer(
        width, depth, width // 64, dropout=0.0, attention_dropout=0.0, layer_drop=0.0
    )
    encoder = SpeechEncoder(ConvFrames((width,) * CONVS), transformer, input_dropout=0.0)
    quantizer = GumbelQuantizer(width, num_entries=ENTRIES, out_features=width)
    masks = SpanMasks(FRACTION, SPAN)
    method = Wav2Vec2(encoder, quantizer, masks, width, NEGATIVES, quantizer_dropout=0.0)
    method.to(device)
    index = torch.arange(batch)

    def step(waves: Tensor) -> tuple[Tensor, Tensor]:
        losses = method.losses(Batch([waves], index=index))
        return sum(losses.values(), start=waves.new_zeros(())), losses["contrastive"]

    _run(rounds, method, step, batch=batch, samples=samples, device=device)


def transformers(
    rounds: Rounds, batch: int, samples: int, width: int, depth: int, device: str = "cpu"
) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining
    from transformers.models.wav2vec2 import modeling_wav2vec2 as theirs

    config = Wav2Vec2Config(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        conv_dim=(width,) * CONVS,
        codevector_dim=width,
        proj_codevector_dim=width,
        num_codevectors_per_group=ENTRIES,
        num_negatives=NEGATIVES,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        feat_proj_dropout=0.0,
        feat_quantizer_dropout=0.0,
        layerdrop=0.0,
    )
    net = Wav2Vec2ForPreTraining(config).to(device).train()
    frames = int(net.wav2vec2._get_feat_extract_output_lengths(torch.tensor(samples)))
    mask = theirs._compute_mask_indices((batch, frames), FRACTION, SPAN)
    negatives = theirs._sample_negative_indices((batch, frames), NEGATIVES, mask)
    given = {
        "mask_time_indices": torch.from_numpy(mask).to(device),
        "sampled_negative_indices": torch.from_numpy(negatives).to(device),
    }

    def step(waves: Tensor) -> tuple[Tensor, Tensor]:
        out = net(waves, **given)
        return out.loss, out.contrastive_loss / int(mask.sum())

    _run(rounds, net, step, batch=batch, samples=samples, device=device)
