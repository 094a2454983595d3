"""The sides of each row: what sslzoo and its peers do, one function each."""
