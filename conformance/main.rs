mod captures;
mod corpora;
mod parse_vectors;
