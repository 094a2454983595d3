"""Names of speech encoders in fairseq's and transformers' checkpoints, and ours.

Reference code: facebookresearch/fairseq at 3d262bb (wav2vec 2.0, HuBERT, data2vec) and transformers
5.24.0 (Wav2Vec2Model, HubertModel, Data2VecAudioModel).
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from sslzoo.zoo.safe_read import tensors_by_name

_OURS = (
    (r"^(w2v_encoder\.w2v_model|w2v_model|wav2vec2|hubert|data2vec_audio)\.", ""),
    (r"^feature_extractor\.conv_layers\.(\d+)\.(?:0|conv)\.", r"frames.convs.\1."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.(?:2\.1|2|layer_norm)\.", r"frames.norms.\1."),
    (r"^(?:feature_projection\.)?layer_norm\.", "norm."),
    (r"^(?:post_extract_proj|feature_projection\.projection)\.", "project."),
    (r"^(?:mask_emb|masked_spec_embed)$", "mask_token"),
    (r"^encoder\.pos_conv\.(\d+)\.0\.", r"encoder.positions.convs.\1."),
    (r"^encoder\.pos_conv\.0\.", "encoder.positions."),
    (r"^encoder\.pos_conv_embed\.layers\.(\d+)\.conv\.", r"encoder.positions.convs.\1."),
    (r"^encoder\.pos_conv_embed\.conv\.", "encoder.positions."),
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
    (r"\.(?:self_attn|attention)\.(q|k|v|out)_proj\.", r".\1."),
    (r"^(encoder\.layers\.\d+)\.(?:self_attn_layer_norm|layer_norm)\.", r"\1.norm1."),
    (r"\.final_layer_norm\.", ".norm2."),
    (r"\.feed_forward\.intermediate_dense\.", ".fc1."),
    (r"\.feed_forward\.output_dense\.", ".fc2."),
    (r"^encoder\.layer_norm\.", "encoder.norm."),
    (r"^encoder\.", "transformer."),
)
_HEADS = (
    *("quantizer.", "project_q.", "project_hid.", "final_proj.", "label_embs_concat"),
    *("target_glu.", "lm_head.", "classifier.", "projector.", "w2v_encoder.proj.", "ctc_proj."),
)


def speech_encoder(state: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The state of a `SpeechEncoder`, and the names of heads, which are omitted."""
    kept, dropped = {}, []
    if isinstance(state, dict):  # data2vec's teacher is a dictionary of its own
        dropped = [name for name in state if str(name).endswith("_ema")]
        state = {name: value for name, value in state.items() if name not in dropped}
    for full, value in tensors_by_name(state, "a speech checkpoint").items():
        name = full
        for theirs, ours in _OURS:
            name = re.sub(theirs, ours, name)
        if full.startswith(_HEADS) or name.startswith(_HEADS):
            dropped.append(full)
        else:
            kept[name] = value
    return kept, dropped
