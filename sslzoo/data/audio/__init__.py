"""Audio data: folders of sound files, LibriSpeech and Speech Commands."""
