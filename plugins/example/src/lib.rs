//! The smallest engine: a bigram language model.
