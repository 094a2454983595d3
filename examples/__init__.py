"""Examples of sslzoo inside other programs."""
