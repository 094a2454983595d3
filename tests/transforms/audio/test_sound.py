"""Waveform, LogMel and its views: scale, silence, where a tone shows, and padding."""

from __future__ import annotations

import math

import pytest
import torch

from sslzoo.batch import Padded
from sslzoo.random import sample_keys
from sslzoo.transforms import LogMel, LogMelViews, Waveform
from sslzoo.transforms.audio.log_mel import mel_filters
from sslzoo.transforms.audio.waveform import GIM_MEAN, GIM_STD

KEYS = sample_keys(0, 0, torch.arange(2))


def test_waveforms_are_scaled_and_padding_stays_zero() -> None:
    wave = torch.tensor([[16384, -32768, 0], [8192, 0, 0]], dtype=torch.int16)
    (view,) = Waveform(0.5, 2.0)([wave], KEYS)
    assert view.tolist() == [[0.0, -0.75, -0.25], [-0.125, -0.25, -0.25]]
    padded = Waveform(0.5, 2.0).evaluation(Padded(wave, torch.tensor([3, 1])))
    assert padded.values.tolist() == [[0.0, -0.75, -0.25], [-0.125, 0.0, 0.0]]
    with pytest.raises(ValueError, match="std must be greater than 0, got 0"):
        Waveform(0.0, 0.0)


def test_greedy_infomax_normalizes_int32_samples() -> None:
    wave = torch.tensor([[1234, -4321]], dtype=torch.int16)
    (view,) = Waveform(GIM_MEAN, GIM_STD)([wave], KEYS)
    wanted = (wave.double() * 65536 + 1456218.75) / 135303504
    torch.testing.assert_close(view.double(), wanted, rtol=1e-6, atol=1e-6)


def test_a_tone_shows_in_its_band() -> None:
    mel = LogMel(8000, bands=20, window=200, hop=80)
    seconds = torch.arange(2000) / 8000
    corners = torch.linspace(2595 * math.log10(1 + 20 / 700), 2595 * math.log10(1 + 4000 / 700), 22)
    for band in (5, 10, 15):
        hertz = 700 * (10 ** (corners[band + 1].item() / 2595) - 1)
        wave = torch.sin(2 * math.pi * hertz * seconds)[None]
        (spectrum,) = mel([wave], KEYS)
        assert spectrum.shape == (1, 23, 20)
        assert (spectrum.argmax(2) == band).all()


def test_energy_is_the_formula_written_out() -> None:
    torch.manual_seed(0)
    wave = torch.randint(-9999, 9999, (1, 300), dtype=torch.int16)
    mel = LogMel(8000, bands=4, window=64, hop=32)
    n = torch.arange(64, dtype=torch.float64)
    hann = 0.5 - 0.5 * (2 * math.pi * n / 64).cos()
    frame = wave[0, 32:96].double() / 32768 * hann
    angle = 2 * math.pi * torch.arange(33, dtype=torch.float64)[:, None] * n / 64
    power = ((frame * angle.cos()).sum(1) ** 2 + (frame * angle.sin()).sum(1) ** 2) / 64
    energy = power @ mel_filters(4, 33, 8000, 20.0, 4000.0).double()
    wanted = 10 * (energy + 1e-8).log10()
    torch.testing.assert_close(mel.spectrum(wave)[0, 1].double(), wanted, rtol=1e-4, atol=1e-3)


def test_silence_is_finite_and_padding_changes_no_frame() -> None:
    mel = LogMel(8000, bands=8, window=200, hop=80)
    assert torch.allclose(mel.spectrum(torch.zeros(1, 400)), torch.tensor(-80.0))
    wave = torch.randint(-999, 999, (2, 800), dtype=torch.int16)
    wave[1, 500:] = 0
    found = mel.evaluation(Padded(wave, torch.tensor([800, 500])))
    assert found.lengths.tolist() == [8, 4]
    torch.testing.assert_close(found.values[1, :4], mel.spectrum(wave[1:, :500])[0])
    assert (found.values[1, 4:] == 0).all()
    assert mel.evaluation(Padded(wave[:, :90], torch.tensor([90, 90]))).lengths.tolist() == [1, 1]


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=r"at least 400 samples .* got 399"):
        LogMel().spectrum(torch.zeros(1, 399))
    with pytest.raises(ValueError, match=r"got 20.0 and 5000 at rate 8000"):
        LogMel(8000, high=5000)


def views(**options: float) -> LogMelViews:
    return LogMelViews(LogMel(8000, bands=16, window=200, hop=80), size=16, **options)


def sounds(batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (3, batch, 1400)
    return list(torch.randint(-9999, 9999, shape, generator=generator, dtype=torch.int16))


def test_without_draws_a_view_is_the_spectrogram() -> None:
    plain = LogMelViews(views().mel, 16, mix=0.0, scale=(1.0, 1.0), gain=0.0)
    own = sounds()[0]
    first, second = plain(sounds(), KEYS)
    assert first.shape == (2, 1, 16, 16)
    torch.testing.assert_close(first, plain.evaluation(own), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(second, first)


def test_mixing_adds_energies_and_a_gain_shifts_all() -> None:
    given = {"scale": (1.0, 1.0), "mean": 0.0, "std": 1.0}
    mixed = LogMelViews(views().mel, 16, mix=0.4, gain=0.0, **given)(sounds(), KEYS)
    own, *others = (views().mel.spectrum(wave).mT for wave in sounds())
    for view, other in zip(mixed, others, strict=True):
        energy = 10 ** (view[:, 0] / 10)
        share = (energy - 10 ** (own / 10)) / (10 ** (other / 10) - 10 ** (own / 10))
        middle = share.flatten(1).median(1).values
        assert ((middle > 0) & (middle < 0.4)).all()
        torch.testing.assert_close(
            share, middle[:, None, None].expand_as(share), rtol=0.05, atol=0.02
        )
    louder = LogMelViews(views().mel, 16, mix=0.0, gain=6.0, **given)(sounds(), KEYS)[0]
    shift = louder[:, 0] - own
    assert (shift.flatten(1).std(1) < 1e-3).all()
    assert (shift.abs() <= 6).all()
    assert shift[0, 0, 0] != shift[1, 0, 0]


def test_views_of_a_sample_do_not_depend_on_its_batch() -> None:
    together = views()(sounds(), KEYS)
    alone = views()([wave[1:] for wave in sounds()], sample_keys(0, 0, torch.tensor([1])))
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[1:], one)


def test_what_views_cannot_be_made_of_is_named() -> None:
    with pytest.raises(ValueError, match="3 windows, got 1"):
        views()(sounds()[:1], KEYS)
    with pytest.raises(ValueError, match="eval_window"):
        views().evaluation(Padded(sounds()[0], torch.tensor([9, 9])))
    with pytest.raises(ValueError, match=r"mix must be in \[0, 1\), got 1\.0"):
        views(mix=1.0)
