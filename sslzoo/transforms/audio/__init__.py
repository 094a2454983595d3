"""Audio transforms: waveforms and log-mel spectrograms."""
