mod parse_vectors;
